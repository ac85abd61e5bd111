"""Imported once by the process that compiling processes are forked from: what each of them would need seconds for."""

from triton.runtime.cache import triton_key

from experiments.inspection import work as work
from kernels import conv as conv
from kernels import norm as norm
from kernels import pool as pool

triton_key()  # a digest of the compiler, which Triton remembers
