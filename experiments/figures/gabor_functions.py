"""Gabor functions: a wave under a Gaussian envelope, over its parameters.

w(x, y) = alpha exp(-beta_x x'^2 - beta_y y'^2) cos(f x' + phi), where x' and y' are x and y from the centre (x0, y0),
turned by tau. Each row varies one parameter: centre and direction say where and along what the function looks, the
betas how fast the envelope falls, frequency and phase what the wave is like. Kernels of this form describe what simple
cells of the visual cortex respond to. To the right, what they are for: waves of all phases are convolved with two Gabor
functions a quarter of a wave apart. Each, a simple cell, follows the phase; the root of the sum of their squares, a
complex cell, does not care: it is invariant to small translations of the wave.
"""

import math

import torch
from torch import Tensor

from experiments.gallery.example import Claim, Example
from experiments.gallery.style import BLUE, ORANGE, SIZE, chart, mosaic, picture
from kernels import conv
from kernels.functional import conv2d
from lightning_modules.gabor import Gabor, fit_gabor

SOURCE = "Deep Learning, section 9.10 and figure 9.18"
SHOWS = (Gabor, conv2d, conv._forward_kernel)
BACKEND = "triton"

WINDOW = (25, 25)
MIDDLE = {"x0": 0.0, "y0": 0.0, "tau": 0.0, "beta_x": 0.03, "beta_y": 0.03, "f": 0.8, "phi": 0.0}
FAMILY = {
    "x0": torch.linspace(-6, 6, 7), "tau": torch.linspace(0, math.pi, 7),
    "beta_x": torch.logspace(-2.5, -0.5, 7), "beta_y": torch.logspace(-2.5, -0.5, 7),
    "f": torch.linspace(0.2, 1.4, 7), "phi": torch.linspace(0, math.pi, 7),
}  # fmt: skip  # in pixels, radians, 1/pixel^2 and radians/pixel
PHASES = torch.linspace(0, 2 * math.pi, 49)
EPSILON = torch.finfo(torch.float64).eps


def draw() -> Example:
    family = {name: gabor(**{name: values}) for name, values in FAMILY.items()}
    even, odd = cells()
    both = torch.hypot(even, odd)

    figure, axes = mosaic(5.0, "AR;BR;CR;DR;ER;FR", width_ratios=(1.25, 1))
    for place, (name, functions) in zip((axes[letter] for letter in "ABCDEF"), family.items(), strict=True):
        picture(place, side_by_side(functions.kernels(WINDOW)), signed=True)
        values = FAMILY[name]
        place.set_ylabel(
            f"{name}\n{values[0]:.2g} to {values[-1]:.2g}", fontsize=SIZE - 2, rotation=0, ha="right", va="center"
        )
    right = axes["R"]
    degrees = PHASES.rad2deg()
    right.plot(degrees, even, color=BLUE, label="simple cell, phi = 0")
    right.plot(degrees, odd, color=ORANGE, label="simple cell, phi = 90°")
    right.plot(degrees, both, color="black", linewidth=2.5, label="complex cell")
    right.set_xticks(range(0, 361, 90))
    right.set_ylim(top=1.5 * float(both.max()))
    right.legend(fontsize=SIZE - 2, loc="upper right")
    chart(right, "answers to waves that move", "phase of the wave, degrees", "response")

    upright, turned = (
        gabor(tau=torch.tensor([tau], dtype=torch.float64)).kernels(WINDOW)[0] for tau in (0.0, math.pi / 2)
    )
    centre = gabor(phi=FAMILY["phi"]).kernels(WINDOW)[:, WINDOW[0] // 2, WINDOW[1] // 2]
    deviation = gabor(f=torch.tensor([0.0]))
    along = deviation(deviation.sigma_x, torch.zeros(1, dtype=torch.float64))
    worst = min(float(fit_gabor(functions.kernels(WINDOW)).r2.min()) for functions in family.values())
    return Example(
        figure,
        [
            Claim("w(x0, y0) - alpha cos(phi)", 0, float((centre - FAMILY["phi"].double().cos()).abs().max()), "book",
                within=EPSILON),
            Claim("envelope one standard deviation from the centre", math.exp(-0.5), float(along), "book",
                within=4 * EPSILON),
            Claim("tau = 90°, less the transpose of tau = 0", 0, float((turned - upright.T).abs().max()),
                within=WINDOW[0] * EPSILON),
            Claim("R2 of the worst fit of the family by Gabor functions", 0.99, worst, "stated beforehand", ">="),
            Claim("swing of a simple cell over phases / of its largest answer", 1.9,
                float((even.max() - even.min()) / even.max()), "stated beforehand", ">="),
            Claim("swing of the complex cell / of its largest answer", 0.05,
                float((both.max() - both.min()) / both.max()), "stated beforehand", "<="),
        ],
        {"complex cell": both.tolist()},
    )  # fmt: skip


def gabor(**varied: Tensor) -> Gabor:
    """Gabor functions of amplitude 1 that vary in what is given, each [B]; the rest is as in the MIDDLE."""
    (count,) = {len(values) for values in varied.values()}
    values = {name: torch.full((count,), value, dtype=torch.float64) for name, value in MIDDLE.items()}
    values |= {name: value.double() for name, value in varied.items()}
    return Gabor(alpha=torch.ones(count, dtype=torch.float64), **values)


def cells() -> tuple[Tensor, Tensor]:
    """Answers [phases] of two simple cells, a quarter of a wave apart, to waves of their direction and frequency."""
    x = torch.arange(WINDOW[1], dtype=torch.float64) - WINDOW[1] // 2
    waves = torch.cos(MIDDLE["f"] * x + PHASES.double()[:, None])  # [phases, W]
    images = waves[:, None, None].expand(-1, 1, *WINDOW)
    kernels = gabor(phi=torch.tensor([0.0, math.pi / 2], dtype=torch.float64)).kernels(WINDOW)[:, None]
    even, odd = conv2d(images, kernels).flatten(1).T  # [phases, 2, 1, 1]
    return even, odd


def side_by_side(kernels: Tensor) -> Tensor:
    """Kernels [B, kh, kw] in a row, with gaps of two pixels."""
    return torch.nn.functional.pad(kernels, (0, 2)).movedim(0, 1).flatten(1)[:, :-2]
