"""Convolutional network kernels in Triton: functions, layers, and the choice of backend."""

from kernels.backend import use_backend

__all__ = ["use_backend"]
