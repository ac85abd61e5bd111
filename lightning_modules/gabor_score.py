"""How much the kernels of a layer resemble Gabor functions, and how much noise would.

A Gabor function has eight parameters and a window few pixels, so that anything resembles one to some degree. The null
model says to which: noise of the same window, fitted in the same way, is exceeded by a kernel above its 95th
percentile. The noise is white; 1/f in amplitude, as natural images are (Field, 1987); and the kernels themselves with
their phases scrambled, which have lost all structure but their power spectrum (Theiler et al., 1992). The last is hard
to exceed for kernels that are smooth, since their scrambled versions are, too.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_modules.gabor import GaborFit, fit_gabor, is_gabor, principal_kernel

MIN_WINDOW = 7
SAMPLES = 256  # of white and of 1/f noise
NOISE = {(7, 7): 0.732, (9, 9): 0.676, (11, 11): 0.641, (13, 13): 0.606, (15, 15): 0.590}  # r2 that 2,000 samples gave
PHASES = 2  # times the turns of the window: scrambled versions of each kernel
LEVEL = 0.95
ORIENTATIONS = 8  # bins of the entropy, the first of them centred on tau = 0
COLUMNS = (
    "r2", "above_null", "gabor", "dead", "orientation", "frequency", "bandwidth", "aspect", "n_x", "n_y", "x0", "y0",
    "share",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Likeness:
    """What was found of the kernels of a layer.

    `kernels` [O, kh, kw] are what was fitted, the first principal components over the channels, which hold a `share`
    [O] of the energy; `null` is the r2 that 95 % of the null model stays below.
    """

    kernels: Tensor
    share: Tensor
    fit: GaborFit
    null: float

    @property
    def strict(self) -> Tensor:
        """Which are strictly Gabor-like, bool [O]: see `is_gabor`, and with an r2 above that of white and 1/f noise."""
        return is_gabor(self.fit) & (self.fit.r2 > noise_r2(self.fit.window))

    def table(self) -> dict[str, Tensor]:
        """A column [O] for each property of the kernels, float64; lengths in pixels, angles in radians.

        `r2` of the best Gabor function; `above_null` and `gabor`, which is `strict`: 1 or 0, as is `dead`;
        `orientation`, the direction of the wave in 0 to pi; `frequency` in cycles a pixel; `bandwidth` in octaves;
        `aspect`, `n_x` and `n_y`, see `Gabor`; the centre `x0`, `y0`; and `share`.
        """
        gabor = self.fit.gabor
        columns = (
            self.fit.r2, self.fit.r2 > self.null, self.strict, self.fit.dead, gabor.tau, 1 / gabor.wavelength,
            gabor.bandwidth, gabor.aspect, gabor.n_x, gabor.n_y, gabor.x0, gabor.y0, self.share,
        )  # fmt: skip
        return {name: column.double() for name, column in zip(COLUMNS, columns, strict=True)}


@torch.no_grad()
def likeness(weight: Tensor, scrambled: bool = True) -> Likeness:
    """The best Gabor functions of the kernels of a layer with weight [O, C, kh, kw], and their null model.

    Args:
        scrambled: whether the null model has the kernels with scrambled phases, which are several times as many to fit,
            besides white and 1/f noise, which are fitted once for a window.

    Raises:
        TypeError: the weight is no floating-point tensor.
        ValueError: it has another rank, is empty, holds NaN or inf, or its window is too small to be measured.
    """
    kernels, share = principal_kernel(weight)
    window = (kernels.shape[1], kernels.shape[2])
    reason = not_measurable(window)
    if reason:
        raise ValueError(f"weight has {reason}")
    fit = fit_gabor(kernels)
    null, live = noise_r2(window), kernels[~fit.dead]
    if scrambled and len(live):
        null = max(null, _percentile(phase_scrambled(live)))
    return Likeness(kernels, share, fit, null)


def not_measurable(window: tuple[int, int]) -> str | None:
    """Why nothing can be said about kernels of a window (kh, kw); None where it can."""
    if min(window) >= MIN_WINDOW:
        return None
    return (
        f"a {window[0]}x{window[1]} window, but Gabor-likeness needs {MIN_WINDOW}x{MIN_WINDOW} or more: white noise "
        "already fits with an R2 of 0.84 in 3x3 and 0.48 in 5x5 windows"
    )


def scores(table: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of a layer, 0-dim float tensors, from the columns [kernels] of its `Likeness.table`.

    `mean_r2` and `median_r2` are over the live kernels (0 if there are none); `fraction_above_null` and `fraction`, of
    the strictly Gabor-like, over all; `dead` is the number of dead ones. Of the kernels above the null:
    `orientation_entropy`, 1 where all of 8 orientations are equally frequent and 0 where there is one only, and the
    (lower) medians `bandwidth_octaves`, `n_x` and `n_y`, inf where the half of them is; NaN if there are none.
    """
    r2, dead, above = table["r2"], table["dead"].bool(), table["above_null"].bool()
    live = r2 if dead.all() else r2[~dead]  # the dead have an r2 of 0
    found = {
        "mean_r2": live.mean(),
        "median_r2": live.quantile(0.5),
        "fraction_above_null": table["above_null"].mean(),
        "fraction": table["gabor"].mean(),
        "orientation_entropy": _entropy(table["orientation"][above]),
        "bandwidth_octaves": _median(table["bandwidth"][above]),
        "n_x": _median(table["n_x"][above]),
        "n_y": _median(table["n_y"][above]),
        "dead": table["dead"].sum(),
    }
    return {name: value.float() for name, value in found.items()}


def noise_r2(window: tuple[int, int]) -> float:
    """The r2 below which 95 % of noise of a window (kh, kw) stays: of white or 1/f noise, whichever has more.

    Of common windows it is known (1/f noise has more in all of them), of others measured once.
    """
    return NOISE.get(window) or measured_noise_r2((min(window), max(window)))


@lru_cache(maxsize=64)
def measured_noise_r2(window: tuple[int, int]) -> float:
    generator = torch.Generator().manual_seed(0)
    return max(_percentile(noise(SAMPLES, window, generator)) for noise in (white_noise, pink_noise))


def white_noise(count: int, window: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Independent normal pixels [count, kh, kw]."""
    return torch.randn(count, *window, generator=generator, dtype=torch.float64)


def pink_noise(count: int, window: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise [count, kh, kw] whose amplitude falls as 1/f, cut out of fields four times as wide, without their mean."""
    field = (4 * window[0], 4 * window[1])
    fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64) for side in field)
    frequency = torch.hypot(fy[:, None], fx)
    spectrum = torch.fft.fft2(white_noise(count, field, generator)) / frequency
    spectrum[:, 0, 0] = 0
    return torch.fft.ifft2(spectrum).real[:, : window[0], : window[1]]


def phase_scrambled(kernels: Tensor) -> Tensor:
    """Kernels [B, kh, kw], several times each, with their amplitudes at each frequency and random phases.

    The phases are the same for all, and with each also turned by quarters as far as the window lets them: so the result
    does not depend on how the kernels are turned, or on their order.
    """
    window = (kernels.shape[1], kernels.shape[2])
    low, high = sorted(window)
    noise = white_noise(PHASES, (low, high), torch.Generator().manual_seed(0))
    turned = [noise.rot90(turns, (1, 2)) for turns in range(4)]
    noise = torch.cat([each for each in turned if each.shape[1:] == window])
    phases = torch.fft.fft2(noise).sgn().to(kernels.device)  # [P, kh, kw]
    return torch.fft.ifft2(torch.fft.fft2(kernels)[:, None].abs() * phases).real.flatten(0, 1)


def _percentile(noise: Tensor) -> float:
    return float(fit_gabor(noise).r2.quantile(LEVEL))


def _median(values: Tensor) -> Tensor:
    return values.median() if len(values) else values.new_tensor(math.nan)


def _entropy(orientations: Tensor) -> Tensor:
    if not len(orientations):
        return orientations.new_tensor(math.nan)
    bins = (orientations * (ORIENTATIONS / math.pi) + 0.5).long() % ORIENTATIONS
    share = bins.bincount(minlength=ORIENTATIONS) / len(bins)
    return -torch.special.xlogy(share, share).sum() / math.log(ORIENTATIONS)
