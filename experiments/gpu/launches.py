"""One launch of each kernel on a small odd problem, for tools that watch launches: python -m experiments.gpu.launches

With "large" it is one launch each of five kernels on problems that fill a GPU.
"""

from __future__ import annotations

import sys

from experiments.gpu.step import DEVICE, REHEARSAL, interpret_in_rehearsal

interpret_in_rehearsal()

import torch  # noqa: E402

from kernels import boxes, conv, norm, norm_gradient, pool, tuning  # noqa: E402
from kernels.checks import make_window  # noqa: E402
from kernels.tile import Tile  # noqa: E402

EPS = 1e-5
LARGE = (4, 16, 16, 8, torch.float32) if REHEARSAL else (32, 128, 128, 28, torch.float16)  # N, C, O, H and W, dtype


def small() -> None:
    """Launch every kernel, with masks on every side: odd extents, a stride, groups, depthwise, TMA."""
    for dtype in (torch.float32,) if REHEARSAL else (torch.float32, torch.float16):
        for channels, groups in ((6, 1), (6, 2), (6, 6)):
            window = make_window("launches", (3, 3), 2, 1, 1, groups)
            x = torch.randn(2, channels, 9, 7, device=DEVICE).to(dtype)
            weight = torch.randn(6, channels // groups, 3, 3, device=DEVICE).to(dtype)
            y = conv.forward(x, weight, None, None, window, True)
            conv.transpose(y, weight, None, y, window, (9, 7), False)
            conv.weight_gradient(x, y, y, window, True)
            if groups == 1:
                conv.forward_max(x, weight, None, window, True, make_window("launches", (2, 2), 1, 0, 1), (4, 3), 1)
        window = make_window("launches", (3, 3), 2, 1, 1)
        largest, taps = pool.max_pool(x, window, (5, 4))
        pool.max_pool_gradient(largest, taps, window, (9, 7))
        pool.average_pool_gradient(pool.average_pool(x, window, (5, 4), 0, False), window, (9, 7), 0, False)
        ones = torch.ones(6, device=DEVICE, dtype=dtype)
        y, mean, var = norm.batch_norm(x, ones, ones, x, None, None, None, EPS, True)
        norm_gradient.batch_norm_gradient(y, x, ones, y, mean, var, EPS, True, True, True)
        if boxes.has_tma(tuning.target()):
            x, weight = (torch.randn(s, device=DEVICE).to(dtype) for s in ((2, 32, 9, 7), (16, 32, 3, 3)))
            with tuning.use_tile(Tile(64, 16, 16, boxes=True)):
                conv.forward(x, weight, None, None, make_window("launches", (3, 3), 1, 1, 1), False)


def large() -> None:
    """Launch a convolution, its two gradients, a pooling and a batch norm."""
    batch, channels, outputs, side, dtype = LARGE
    window = make_window("launches", (3, 3), 1, 1, 1)
    draw = lambda *shape: torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)  # noqa: E731
    x, weight, dy = draw(batch, channels, side, side), draw(outputs, channels, 3, 3), draw(batch, outputs, side, side)
    conv.forward(x, weight, None, None, window, True)
    conv.transpose(dy, weight, None, None, window, (side, side), False)
    conv.weight_gradient(x, dy, None, window, False)
    pool.max_pool(x, make_window("launches", (3, 3), 2, 1, 1), (side // 2,) * 2)
    norm.batch_norm(x, None, None, None, None, None, None, EPS, True)


if __name__ == "__main__":
    torch.manual_seed(0)
    large() if sys.argv[1:] == ["large"] else small()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print("launched")
