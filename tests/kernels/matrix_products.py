"""Matrix products in Triton as users write them, to be inspected: y = a @ b, a [M, K], b [K, N], all row-major."""

import triton
import triton.language as tl


@triton.jit
def pointers(
    a_ptr, b_ptr, y_ptr, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A block of y a program, GROUP rows of blocks side by side, as in Triton's tutorial on matrix products."""
    row, column = _block(tl.program_id(0), M, N, BM, BN, GROUP)
    rows = (row * BM + tl.arange(0, BM))[:, None]
    columns = (column * BN + tl.arange(0, BN))[None, :]
    k = tl.arange(0, BK)
    a = a_ptr + rows * K + k[None, :]
    b = b_ptr + k[:, None] * N + columns
    y = tl.full((BM, BN), 0.0, tl.float32)
    for step in range(tl.cdiv(K, BK)):
        left = K - step * BK
        y = tl.dot(tl.load(a, mask=k[None, :] < left, other=0.0), tl.load(b, mask=k[:, None] < left, other=0.0), y)
        a += BK
        b += BK * N
    tl.store(y_ptr + rows * N + columns, y.to(y_ptr.dtype.element_ty), mask=(rows < M) & (columns < N))


@triton.jit
def descriptors(
    a_ptr, b_ptr, y_ptr, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPECIALISED: tl.constexpr,
):  # fmt: skip
    """The same with tensor descriptors, which load by TMA where the GPU has it."""
    row, column = _block(tl.program_id(0), M, N, BM, BN, GROUP)
    a = tl.make_tensor_descriptor(a_ptr, [M, K], [K, 1], [BM, BK])
    b = tl.make_tensor_descriptor(b_ptr, [K, N], [N, 1], [BK, BN])
    out = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN])
    y = tl.full((BM, BN), 0.0, tl.float32)
    for step in tl.range(tl.cdiv(K, BK), warp_specialize=SPECIALISED):
        y = tl.dot(a.load([row * BM, step * BK]), b.load([step * BK, column * BN]), y)
    out.store([row * BM, column * BN], y.to(y_ptr.dtype.element_ty))


@triton.jit
def persistent(
    a_ptr, b_ptr, y_ptr, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The same, the blocks of y dealt out to as many programs as there are."""
    for block in tl.range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
        row, column = _block(block, M, N, BM, BN, GROUP)
        rows = (row * BM + tl.arange(0, BM))[:, None]
        columns = (column * BN + tl.arange(0, BN))[None, :]
        y = tl.full((BM, BN), 0.0, tl.float32)
        for step in range(tl.cdiv(K, BK)):
            k = step * BK + tl.arange(0, BK)
            a = tl.load(a_ptr + rows * K + k[None, :], mask=k[None, :] < K, other=0.0)
            b = tl.load(b_ptr + k[:, None] * N + columns, mask=k[:, None] < K, other=0.0)
            y = tl.dot(a, b, y)
        tl.store(y_ptr + rows * N + columns, y.to(y_ptr.dtype.element_ty), mask=(rows < M) & (columns < N))


@triton.jit
def _block(number, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a block of y."""
    across = tl.cdiv(N, BN)
    first = number // (GROUP * across) * GROUP
    height = tl.minimum(tl.cdiv(M, BM) - first, GROUP)
    within = number % (GROUP * across)
    return first + within % height, within // height
