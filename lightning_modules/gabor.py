"""Gabor functions, and how closely a convolution kernel resembles one.

A Gabor function is a cosine wave under a Gaussian envelope: section 9.10, equations 9.16 to 9.19, of Goodfellow, Bengio
and Courville, "Deep Learning" (2016), where it describes both the simple cells of the visual cortex and the first-layer
kernels that networks learn from natural images.

Positions are in pixels from the centre of the window, x growing with the column and y with the row; angles are in
radians. Shapes: B kernels, S starts, P = kh * kw pixels. Fits are returned in float64.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MIN_SIGMA = 0.8  # pixels: under a narrower envelope every single pixel is a Gabor function
DEAD_NORM = 1e-3  # relative to the largest norm among the kernels
CONSTANT_VARIANCE = 1e-4  # energy about the mean, relative to the energy

STARTS = 12
STEPS = ((3, torch.float32, 4), (3, torch.float32, 2), (12, torch.float64, 1))  # refinement, how many starts go on
CHUNK = 64  # kernels searched at once, to bound the memory
LARGE = 400  # pixels of a window from which on the grid of starts is not kept


@dataclass(frozen=True, eq=False)
class Gabor:
    """A batch of Gabor functions, by the parameters of equation 9.16, each [B].

    alpha is the amplitude, beta_x and beta_y (1/pixel^2) the decay of the envelope along and across the wave,
    f (radians/pixel) the frequency, phi the phase, (x0, y0) the centre and tau the direction of the wave.
    """

    alpha: Tensor
    beta_x: Tensor
    beta_y: Tensor
    f: Tensor
    phi: Tensor
    x0: Tensor
    y0: Tensor
    tau: Tensor

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """w(x, y) = alpha exp(-beta_x x'^2 - beta_y y'^2) cos(f x' + phi), where x and y broadcast against [B]."""
        x, y = _rotate(x - self.x0, y - self.y0, self.tau)
        envelope = torch.exp(-self.beta_x * x.square() - self.beta_y * y.square())
        return self.alpha * envelope * torch.cos(self.f * x + self.phi)

    def kernels(self, window: tuple[int, int]) -> Tensor:
        """The functions sampled at the pixels of a window (kh, kw): [B, kh, kw]."""
        x, y = _pixels(window, self.x0.device)
        return self(x[:, None], y[:, None]).T.unflatten(1, window)

    @property
    def wavelength(self) -> Tensor:
        """Pixels per period, [B]."""
        return 2 * math.pi / self.f

    @property
    def sigma_x(self) -> Tensor:
        """Standard deviation of the envelope along the wave, in pixels, [B]."""
        return (2 * self.beta_x).rsqrt()

    @property
    def sigma_y(self) -> Tensor:
        """Standard deviation of the envelope across the wave, in pixels, [B]."""
        return (2 * self.beta_y).rsqrt()

    @property
    def n_x(self) -> Tensor:
        """sigma_x in wavelengths, [B]: 0 for a blob, large for a grating."""
        return self.sigma_x / self.wavelength

    @property
    def n_y(self) -> Tensor:
        """sigma_y in wavelengths, [B]: large for a long bar."""
        return self.sigma_y / self.wavelength

    @property
    def aspect(self) -> Tensor:
        """sigma_x / sigma_y, [B]: below 1 where the function is longer across its wave, along its bars."""
        return self.sigma_x / self.sigma_y

    @property
    def bandwidth(self) -> Tensor:
        """Octaves between the frequencies of half the peak response, [B]; inf where the lower one is not positive."""
        half = math.sqrt(2 * math.log(2)) / self.sigma_x
        return torch.log2((self.f + half) / (self.f - half).clamp(min=0))

    def inside(self, window: tuple[int, int]) -> Tensor:
        """Whether the centre lies in a window (kh, kw), bool [B]."""
        kh, kw = window
        return (self.x0.abs() <= kw / 2) & (self.y0.abs() <= kh / 2)


@dataclass(frozen=True, eq=False)
class GaborFit:
    """The Gabor functions nearest to B kernels of a window (kh, kw), with the goodness of each fit [B].

    r2 is in 0..1, `effective_pixels` is (sum w^2)^2 / sum w^4 of the kernel, and `dead` (bool) marks a tiny norm.
    """

    gabor: Gabor
    window: tuple[int, int]
    r2: Tensor
    effective_pixels: Tensor
    dead: Tensor


def principal_kernel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first (uncentred) principal component of each kernel over its channels; a single channel is itself.

    `weight` is [O, C, kh, kw]. Returns the kernels [O, kh, kw], with the sign they have in their strongest channel, and
    the share [O] of the energy that they hold, in 0..1, both in float64; the share is 0 where all weights are. Raises
    TypeError unless it is a floating-point tensor, ValueError for another rank, an empty tensor, NaN or inf.
    """
    _check(weight, "weight", "[O, C, kh, kw]", rank=4)
    weight = weight.double()
    u, s, _ = torch.linalg.svd(weight.flatten(2), full_matrices=False)
    loading = u[..., 0]  # [O, C]
    strongest = loading.gather(1, loading.abs().argmax(1, keepdim=True))
    kernels = torch.einsum("oc,ochw->ohw", loading * strongest.sign(), weight)
    energy = s.square()
    return kernels, energy[:, 0] / _positive(energy.sum(1))


@torch.no_grad()
def fit_gabor(kernels: Tensor) -> GaborFit:
    """Fit a Gabor function to each of the kernels [B, kh, kw], of any window, by least squares, on their device.

    Amplitude and phase are solved linearly (variable projection; Golub and Pereyra, 1973). The other six parameters
    start at the best points of a grid, one for each of the `STARTS` best waves, and are refined by Levenberg-Marquardt
    with an analytic Jacobian, at first in float32, the less promising starts for a few `STEPS` only. Both sigmas stay
    above 0.8 pixels and f in 0..pi. Noise has many optima that are nearly as good, so that how it is turned may decide
    which is found: r2 of a kernel differs by 0.01. The grid is kept for two windows, 21 MB for 11x11, but computed
    again for windows of more than 400 pixels.

    r2 = 1 - residual energy / energy about the mean. The kernel is fitted as it is, mean included: only the denominator
    leaves the mean out, so that a constant earns nothing. r2 is 0 for kernels that are nearly constant, or dead: of a
    norm within a thousandth of the largest. Gabor functions have an r2 of 1.000, and 1,000 kernels of white noise:

        window              3x3   5x5   7x7   9x9   11x11
        median r2           0.84  0.48  0.30  0.20  0.15
        95th percentile     0.98  0.64  0.40  0.28  0.20

    Raises TypeError unless it is a floating-point tensor, ValueError for another rank, an empty tensor, NaN or inf.
    """
    _check(kernels, "kernels", "[B, kh, kw]", rank=3)
    window = (kernels.shape[1], kernels.shape[2])
    pixels = kernels.double().flatten(1)  # [B, P]
    norm = pixels.norm(dim=1)
    unit = pixels / _positive(norm)[:, None]

    with torch.autocast(kernels.device.type, enabled=False):
        theta = torch.cat([_search(chunk, window) for chunk in unit.split(CHUNK)])  # [B, 6]
    theta[:, 2] %= math.pi  # half a turn only flips the sine, whose amplitude is solved next
    _, _, pair = _quadrature(theta, *_pixels(window, theta.device))
    amplitudes, _ = torch.linalg.solve_ex(_gram(pair), (pair @ unit[..., None]).squeeze(-1))
    residual = unit - (amplitudes[..., None] * pair).sum(1)
    a, b = amplitudes.unbind(-1)
    x0, y0, tau, f, sigma_x, sigma_y = _decode(theta)
    gabor = Gabor(
        alpha=norm * torch.hypot(a, b),
        beta_x=1 / (2 * sigma_x.square()),
        beta_y=1 / (2 * sigma_y.square()),
        f=f,
        phi=torch.atan2(-b, a),
        x0=x0,
        y0=y0,
        tau=tau,
    )

    variance = (unit - unit.mean(1, keepdim=True)).square().sum(1)
    r2 = (1 - residual.square().sum(1) / _positive(variance)).clamp(0, 1)
    dead = norm <= DEAD_NORM * norm.max()
    r2 = r2.where(~dead & (variance > CONSTANT_VARIANCE), 0)
    effective_pixels = unit.square().sum(1).square() / _positive(unit.pow(4).sum(1))
    return GaborFit(gabor, window, r2, effective_pixels, dead)


def is_gabor(fit: GaborFit) -> Tensor:
    """Which kernels are strictly Gabor-like, bool [B], since r2 is high for blobs, gratings and single pixels too.

    Such a kernel has
    - an r2 above 0.7, which dead and constant kernels never have. The limit is max(0.7, 95th percentile of white noise)
      for windows from 7x7, where the percentiles (0.40, 0.28 for 9x9, 0.20 for 11x11) are all below 0.7; in a 3x3
      window noise itself exceeds it, and the answer means nothing;
    - a bandwidth of 0.5 to 2.6 octaves, that of simple cells, which also implies n_x > 0.26: no grating, no blob;
    - sigma_x within half the window's longer side, so that the window shows the envelope: a ramp is a flank of some
      long, broad wave;
    - at least 4 effective pixels;
    - its centre inside the window.
    """
    gabor = fit.gabor
    selective = (gabor.bandwidth >= 0.5) & (gabor.bandwidth <= 2.6)
    local = (gabor.sigma_x <= max(fit.window) / 2) & gabor.inside(fit.window)
    return (fit.r2 > 0.7) & selective & local & (fit.effective_pixels >= 4)


def _check(tensor: Tensor, name: str, layout: str, rank: int) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor {layout}, got {given}")
    if tensor.ndim != rank or tensor.numel() == 0:
        raise ValueError(f"{name} must be {layout} and not empty, got shape {list(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} {list(tensor.shape)} must be finite, got NaN or inf")


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _rotate(x: Tensor, y: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """x' and y' of equations 9.18 and 9.19, for positions relative to the centre."""
    cos, sin = torch.cos(tau), torch.sin(tau)
    return x * cos + y * sin, y * cos - x * sin


def _pixels(window: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions x and y of a window's pixels, [P] each."""
    rows, columns = (torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2 for side in window)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.flatten(), y.flatten()


def _decode(theta: Tensor) -> tuple[Tensor, ...]:
    """x0, y0, tau, f, sigma_x and sigma_y, [...] each, from the unbounded parameters [..., 6] of the search."""
    x0, y0, tau, f, sigma_x, sigma_y = theta.unbind(-1)
    return x0, y0, tau, math.pi * torch.sigmoid(f), MIN_SIGMA + sigma_x.exp(), MIN_SIGMA + sigma_y.exp()


def _quadrature(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x' and y' [..., P], and the pair [..., 2, P] of cos(f x') and sin(f x') under the envelope."""
    x0, y0, tau, f, sigma_x, sigma_y = (value[..., None] for value in _decode(theta))
    x, y = _rotate(x - x0, y - y0, tau)
    envelope = torch.exp(-0.5 * ((x / sigma_x).square() + (y / sigma_y).square()))
    return x, y, torch.stack([envelope * torch.cos(f * x), envelope * torch.sin(f * x)], -2)


def _gram(pair: Tensor) -> Tensor:
    """The products [..., 2, 2] of a pair [..., 2, P] with itself, with a ridge: a sine may vanish, or be a cosine's."""
    gram = pair @ pair.mT
    limits = torch.finfo(pair.dtype)
    return gram + torch.diag_embed(limits.eps**0.75 * gram.diagonal(dim1=-2, dim2=-1) + limits.tiny)


def _normal_equations(theta: Tensor, kernels: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy [...] that is left less the kernel's own, descent direction [..., 6], Gauss-Newton matrix [..., 6, 6].

    They are free of the amplitudes: the pair is projected out of the Jacobian of fixed ones (Kaufman, 1975). All that
    takes is the products of the Jacobian's rows with each other, with the pair and with the kernel.
    """
    x, y, pair = _quadrature(theta, x, y)
    inverse, _ = torch.linalg.inv_ex(_gram(pair))
    component = pair @ kernels[..., None]  # [..., 2, 1]
    amplitudes = inverse @ component
    vectors = [*_jacobian(theta, x, y, pair, amplitudes), *pair.unbind(-2), kernels.expand_as(x)]
    rows = torch.stack(vectors, -2)
    matrix, overlap, descent = (rows[..., :6, :] @ rows.mT).split([6, 2, 1], -1)
    energy = -(component * amplitudes).sum((-2, -1))
    return energy, (descent - overlap @ amplitudes).squeeze(-1), matrix - overlap @ inverse @ overlap.mT


def _jacobian(theta: Tensor, x: Tensor, y: Tensor, pair: Tensor, amplitudes: Tensor) -> list[Tensor]:
    """Derivatives [..., P] by theta of the pair's sum with fixed amplitudes; x and y are those of `_quadrature`."""
    _, _, tau, f, sigma_x, sigma_y = (value[..., None] for value in _decode(theta))
    cos, sin = pair.unbind(-2)
    a, b = amplitudes.unbind(-2)
    w = a * cos + b * sin
    by_phase = b * cos - a * sin
    w_x, w_y = w * (x / sigma_x.square()), w * (y / sigma_y.square())
    by_x = f * by_phase - w_x  # and -w_y by y
    return [
        -w_y * torch.sin(tau) - by_x * torch.cos(tau),
        w_y * torch.cos(tau) - by_x * torch.sin(tau),
        by_x * y + w_y * x,
        by_phase * x * (f * (1 - f / math.pi)),
        w_x * x * (1 - MIN_SIGMA / sigma_x),
        w_y * y * (1 - MIN_SIGMA / sigma_y),
    ]


def _search(kernels: Tensor, window: tuple[int, int]) -> Tensor:
    """The best theta [B, 6] for kernels [B, P] of norm 1, by Levenberg-Marquardt from S starts each."""
    positions = _pixels(window, kernels.device)
    theta = _starts(kernels, window)  # [B, S, 6]
    damping = torch.full_like(theta[..., 0], 0.1)
    for steps, dtype, kept in STEPS:
        data = [each.to(dtype) for each in (kernels[:, None], *positions)]
        theta, damping = theta.to(dtype), damping.to(dtype)
        state: tuple[Tensor, ...] = (theta, *_normal_equations(theta, *data), damping)
        for _ in range(steps):
            state = _step(state, *data)
        theta, energy, *_, damping = state
        best = energy.topk(kept, dim=1, largest=False).indices
        theta, damping = (value[torch.arange(len(best))[:, None], best] for value in (theta, damping))
    return theta[:, 0]


def _step(state: tuple[Tensor, ...], kernels: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """One step for each start [B, S]; one that would not lower the energy is not taken, and damped more next time."""
    theta, energy, descent, matrix, damping = state
    diagonal = damping[..., None] * matrix.diagonal(dim1=-2, dim2=-1) + 1e-9
    step, _ = torch.linalg.solve_ex(matrix + torch.diag_embed(diagonal), descent)
    trial = (theta + step, *_normal_equations(theta + step, kernels, x, y))
    better = trial[1] < energy  # false for NaN
    taken = (
        torch.where(better.view(*better.shape, *[1] * (new.ndim - 2)), new, old)
        for new, old in zip(trial, state, strict=False)
    )
    return (*taken, damping * torch.where(better, 0.3, 4.0))


def _starts(kernels: Tensor, window: tuple[int, int]) -> Tensor:
    """For kernels [B, P], the S best waves of the grid, each under its best envelope: [B, S, 6]."""
    theta, bases = _grid(window, kernels.device)
    kernels = kernels.float()
    components = ((kernels @ basis.mT).unflatten(1, (2, -1)) for basis in bases)  # [B, 2, E] each
    fitted = torch.stack([each.square().sum(1) for each in components], 1)  # [B, W, E]
    fitted, envelope = fitted.max(2)
    wave = fitted.topk(STARTS).indices
    return theta[wave, envelope.gather(1, wave)]


def _grid(window: tuple[int, int], device: torch.device) -> tuple[Tensor, Iterable[Tensor]]:
    """Starts [W, E, 6], W = 12 x 6 waves under E = 25 x 12 envelopes, and W times their bases [2 * E, P]: float32."""
    return _kept_grid(window, device) if window[0] * window[1] <= LARGE else _made_grid(window, device)


@lru_cache(maxsize=2)
def _kept_grid(window: tuple[int, int], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    theta, bases = _made_grid(window, device)
    return theta, list(bases)


def _made_grid(window: tuple[int, int], device: torch.device) -> tuple[Tensor, Iterable[Tensor]]:
    kh, kw = window
    tau, f, x0, y0, sigma_x, aspect = torch.cartesian_prod(
        torch.arange(12, dtype=torch.float64) * math.pi / 12,
        (torch.arange(6, dtype=torch.float64) + 0.5) / 6,  # of pi
        torch.arange(-2, 3, dtype=torch.float64) / 5 * kw,
        torch.arange(-2, 3, dtype=torch.float64) / 5 * kh,
        torch.logspace(0, math.log10(max(window) / 3), 4, dtype=torch.float64),
        torch.tensor([0.5, 1, 2], dtype=torch.float64),
    ).unbind(-1)
    excess = (torch.stack([sigma_x, sigma_x * aspect]) - MIN_SIGMA).clamp(min=0.1)
    theta = torch.stack([x0, y0, tau, f.logit(), *excess.log()], -1).float().to(device).unflatten(0, (72, 300))
    x, y = (position.float() for position in _pixels(window, device))
    return theta, (torch.cat(_orthonormal(_quadrature(wave, x, y)[2])) for wave in theta)


def _orthonormal(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors [..., P] that span what a pair [..., 2, P] spans, by Gram and Schmidt; with the ridge of `_gram`."""
    cos, sin = pair.unbind(-2)
    limits = torch.finfo(pair.dtype)
    first = cos / (_square(cos) + limits.tiny).sqrt()
    rest = sin - (first * sin).sum(-1, keepdim=True) * first
    return first, rest / (_square(rest) + limits.eps**0.75 * _square(sin) + limits.tiny).sqrt()


def _square(vector: Tensor) -> Tensor:
    """The squared norm [..., 1] of a vector [..., P]."""
    return vector.square().sum(-1, keepdim=True)
