"""Convolutional network kernels in Triton: functions, layers, the choice of backend, and whole models on them."""

from kernels.backend import use_backend

# from kernels.conversion import convert

__all__ = ["convert", "use_backend"]
