"""Gabor functions, and how closely a convolution kernel resembles one.

A Gabor function is a cosine wave under a Gaussian envelope: section 9.10, equations 9.16 to 9.19, of Goodfellow, Bengio
and Courville, "Deep Learning" (2016), where it describes both the simple cells of the visual cortex and the first-layer
kernels that networks learn from natural images.

Positions are in pixels from the centre of the window, x along columns and y along rows; angles are in radians.
Shapes: B kernels, S starts, P = kh * kw pixels. Fits are computed and returned in float64.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MIN_SIGMA = 0.8  # pixels: under a narrower envelope every single pixel is a Gabor function
DEAD_NORM = 1e-3  # relative to the largest norm among the kernels
CONSTANT_VARIANCE = 1e-4  # energy about the mean, relative to the energy

STARTS = 8
STEPS = 20
CHUNK = 64  # kernels fitted at once, to bound the memory


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
        return self.alpha * torch.exp(-self.beta_x * x.square() - self.beta_y * y.square()) * torch.cos(self.f * x + self.phi)

    def kernels(self, window: tuple[int, int]) -> Tensor:
        """The functions on the pixels of a window (kh, kw): [B, kh, kw]."""
        x, y = _pixels(window, self.x0.device)
        return self(x[:, None], y[:, None]).T.unflatten(1, window)

    @property
    def wavelength(self) -> Tensor:
        """Pixels per period, [B]."""
        return 2 * math.pi / self.f

    @property
    def sigma_x(self) -> Tensor:
        """Standard deviation of the envelope along the wave in pixels, [B]."""
        return (2 * self.beta_x).rsqrt()

    @property
    def sigma_y(self) -> Tensor:
        """Standard deviation of the envelope across the wave in pixels, [B]."""
        return (2 * self.beta_y).rsqrt()

    @property
    def n_x(self) -> Tensor:
        """Periods in one sigma_x, [B]: 0 for a blob, large for a grating."""
        return self.sigma_x / self.wavelength

    @property
    def n_y(self) -> Tensor:
        """Wavelengths in one sigma_y, [B]."""
        return self.sigma_y / self.wavelength

    @property
    def bandwidth(self) -> Tensor:
        """Octaves between the two frequencies of half the peak amplitude, [B]; inf where the lower one is not positive."""
        half = math.sqrt(2 * math.log(2)) / self.sigma_x
        return torch.log2((self.f + half) / (self.f - half).clamp(min=0))

    def inside(self, window: tuple[int, int]) -> Tensor:
        """Whether the centre lies in a window (kh, kw), [B]."""
        kh, kw = window
        return (self.x0.abs() <= kw / 2) & (self.y0.abs() <= kh / 2)


@dataclass(frozen=True, eq=False)
class GaborFit:
    """The Gabor functions closest to a batch of kernels, and what there is to know of each fit, [B] each."""

    gabor: Gabor
    window: tuple[int, int]
    r2: Tensor
    effective_pixels: Tensor
    dead: Tensor


def principal_kernel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first principal component over the channels of each kernel (uncentred; one channel is returned as it is).

    `weight` is [O, C, kh, kw]. Returns the kernels [O, kh, kw], signed like their strongest channel, and the share of
    the energy that they hold [O], in 0..1 (0 for a kernel of zeros), both in float64. Raises TypeError for what is not
    a floating-point tensor; ValueError for another rank, no kernels, NaN or inf.
    """
    _check(weight, "weight", "[O, C, kh, kw]", 4)
    weight = weight.double()
    u, s, _ = torch.linalg.svd(weight.flatten(2), full_matrices=False)
    loading = u[..., 0]  # [O, C]
    strongest = loading.gather(1, loading.abs().argmax(1, keepdim=True))
    kernels = torch.einsum("oc,ochw->ohw", loading * strongest.sign(), weight)
    energy = s.square()
    return kernels, energy[:, 0] / energy.sum(1).clamp(min=torch.finfo(s.dtype).tiny)


@torch.no_grad()
def fit_gabor(kernels: Tensor) -> GaborFit:
    """Fit a Gabor function to each kernel by least squares.

    `kernels` is [B, kh, kw], of any window, and the result lives on its device. Amplitude and phase are solved linearly
    (variable projection, Golub and Pereyra 1973). The other six parameters start from the best points of a grid, the
    best `STARTS` of different waves, and are refined by Levenberg-Marquardt, with sigma_x, sigma_y > 0.8 and f < pi.

    r2 = 1 - residual energy / energy about the mean, clamped to 0..1. The kernel itself is fitted, mean included; only
    the denominator leaves the mean out, so that fitting a constant earns nothing. r2 is 0 for kernels that are nearly
    constant, or dead: of a norm below a thousandth of the largest. White noise has a median r2 (95th percentile) of
    0.30 (0.42) for 7x7, 0.21 (0.29) for 9x9 and 0.15 (0.20) for 11x11 windows.

    Effective pixels are (sum w^2)^2 / sum w^4. The grid is kept for the last windows seen: 42 MB for 11x11.
    Raises TypeError for what is not a floating-point tensor; ValueError for another rank, no kernels, NaN or inf.
    """
    _check(kernels, "kernels", "[B, kh, kw]", 3)
    window = (kernels.shape[1], kernels.shape[2])
    pixels = kernels.double().flatten(1)  # [B, P]
    norm = pixels.norm(dim=1)
    unit = pixels / _positive(norm)[:, None]

    theta = torch.cat([_search(chunk, window) for chunk in unit.split(CHUNK)])  # [B, 6]
    theta[:, 2] %= math.pi  # a wave is the same seen from its other side
    _, _, pair = _quadrature(theta, *_pixels(window, theta.device))
    residual, _, amplitudes = _project(pair, unit)
    cos, sin = amplitudes.unbind(-1)
    x0, y0, tau, f, sigma_x, sigma_y = _decode(theta)
    gabor = Gabor(
        alpha=norm * torch.hypot(cos, sin),
        beta_x=1 / (2 * sigma_x.square()),
        beta_y=1 / (2 * sigma_y.square()),
        f=f,
        phi=torch.atan2(-sin, cos),
        x0=x0,
        y0=y0,
        tau=tau,
    )

    variance = (unit - unit.mean(1, keepdim=True)).square().sum(1)
    dead = norm <= DEAD_NORM * norm.max()
    r2 = (1 - residual.square().sum(1) / _positive(variance)).clamp(0, 1)
    r2 = r2.where(~dead & (variance > CONSTANT_VARIANCE), 0)
    return GaborFit(gabor, window, r2, 1 / _positive(unit.pow(4).sum(1)), dead)


def is_gabor(fit: GaborFit) -> Tensor:
    """Which kernels are strictly Gabor-like, bool [B]: r2 alone is also high for single pixels, blobs and gratings.

    Strict is an r2 above 0.7; a bandwidth of 0.5 to 2.6 octaves, the range of simple cells, which excludes gratings
    and blobs (it implies n_x > 0.26); at least 4 effective pixels; the centre inside the window; and not dead.

    A kernel must also beat chance, and 0.7 does for windows from 7x7: white noise has a 95th percentile of 0.42 for
    7x7, 0.29 for 9x9 and 0.20 for 11x11, but 0.65 for 5x5 and 0.99 for 3x3, where the answer means nothing.
    """
    bandwidth = fit.gabor.bandwidth
    selective = (bandwidth >= 0.5) & (bandwidth <= 2.6)
    return (fit.r2 > 0.7) & selective & (fit.effective_pixels >= 4) & fit.gabor.inside(fit.window) & ~fit.dead


def _check(tensor: Tensor, name: str, shape: str, rank: int) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor {shape}, got {given}")
    if tensor.ndim != rank or tensor.numel() == 0:
        raise ValueError(f"{name} must be {shape} and not empty, got shape {list(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} {list(tensor.shape)} must be finite, got NaN or inf")


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _rotate(x: Tensor, y: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """x' and y' of equations 9.18 and 9.19."""
    cos, sin = torch.cos(tau), torch.sin(tau)
    return x * cos + y * sin, y * cos - x * sin


def _pixels(window: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The coordinates x and y of a window's pixels, [P] each."""
    rows, columns = (torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2 for side in window)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.flatten(), y.flatten()


def _decode(theta: Tensor) -> tuple[Tensor, ...]:
    """x0, y0, tau, f, sigma_x and sigma_y, [...] each, of the unbounded parameters theta [..., 6]."""
    x0, y0, tau, f, sigma_x, sigma_y = theta.unbind(-1)
    return x0, y0, tau, math.pi * torch.sigmoid(f), MIN_SIGMA + sigma_x.exp(), MIN_SIGMA + sigma_y.exp()


def _quadrature(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x' and y' [..., P], and the pair of waves [..., 2, P] under the envelope, cos(f x') and sin(f x')."""
    x0, y0, tau, f, sigma_x, sigma_y = (value[..., None] for value in _decode(theta))
    x, y = _rotate(x - x0, y - y0, tau)
    envelope = torch.exp(-0.5 * ((x / sigma_x).square() + (y / sigma_y).square()))
    return x, y, torch.stack([envelope * torch.cos(f * x), envelope * torch.sin(f * x)], -2)


def _project(pair: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit kernels [..., P] by the pair: residual [..., P], orthonormal basis [..., 2, P] and amplitudes [..., 2]."""
    ridge = 1e-12 * torch.eye(2, dtype=pair.dtype, device=pair.device)  # sin(f x') vanishes with f
    lower = torch.linalg.cholesky_ex(pair @ pair.mT + ridge).L
    basis = torch.linalg.solve_triangular(lower, pair, upper=False)
    along = basis @ kernels[..., None]  # [..., 2, 1]
    amplitudes = torch.linalg.solve_triangular(lower.mT, along, upper=True)
    return kernels - (along * basis).sum(-2), basis, amplitudes.squeeze(-1)


def _jacobian(theta: Tensor, x: Tensor, y: Tensor, pair: Tensor, amplitudes: Tensor) -> Tensor:
    """Derivatives [..., 6, P] by theta of the Gabor function with these amplitudes, at x', y' of `_quadrature`."""
    _, _, tau, f, sigma_x, sigma_y = (value[..., None] for value in _decode(theta))
    a, b = amplitudes[..., None].unbind(-2)
    cos, sin = pair.unbind(-2)
    w = a * cos + b * sin
    by_phase = b * cos - a * sin
    by_x = f * by_phase - w * x / sigma_x.square()
    by_y = -w * y / sigma_y.square()
    columns = [
        by_y * torch.sin(tau) - by_x * torch.cos(tau),
        -by_x * torch.sin(tau) - by_y * torch.cos(tau),
        by_x * y - by_y * x,
        by_phase * x * f * (1 - f / math.pi),
        w * (x / sigma_x).square() * (1 - MIN_SIGMA / sigma_x),
        w * (y / sigma_y).square() * (1 - MIN_SIGMA / sigma_y),
    ]
    return torch.stack(columns, -2)


def _normal_equations(theta: Tensor, kernels: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residual energy [...], descent direction J r [..., 6] and J P J^T [..., 6, 6], P projecting the pair away."""
    x, y, pair = _quadrature(theta, x, y)
    residual, basis, amplitudes = _project(pair, kernels)
    jacobian = _jacobian(theta, x, y, pair, amplitudes)
    along = jacobian @ basis.mT
    gradient = (jacobian @ residual[..., None]).squeeze(-1)
    return residual.square().sum(-1), gradient, jacobian @ jacobian.mT - along @ along.mT


def _search(kernels: Tensor, window: tuple[int, int]) -> Tensor:
    """The best theta [B, 6] for kernels [B, P] of unit norm, by Levenberg-Marquardt from the best starts."""
    x, y = _pixels(window, kernels.device)
    theta = _starts(kernels, window)  # [B, S, 6]
    kernels = kernels[:, None].expand(-1, STARTS, -1)
    energy, gradient, curvature = _normal_equations(theta, kernels, x, y)
    damping = torch.full_like(energy, 0.01)
    for _ in range(STEPS):
        diagonal = damping[..., None] * curvature.diagonal(dim1=-2, dim2=-1) + 1e-9
        step, _ = torch.linalg.solve_ex(curvature + torch.diag_embed(diagonal), gradient)
        trial = _normal_equations(theta + step, kernels, x, y)
        better = trial[0] < energy
        theta = torch.where(better[..., None], theta + step, theta)
        energy = torch.where(better, trial[0], energy)
        gradient = torch.where(better[..., None], trial[1], gradient)
        curvature = torch.where(better[..., None, None], trial[2], curvature)
        damping = damping * torch.where(better, 0.3, 4.0)
    return theta[torch.arange(len(theta)), energy.argmin(1)]


def _starts(kernels: Tensor, window: tuple[int, int]) -> Tensor:
    """For kernels [B, P] the best start of each wave of the grid, for the best `STARTS` waves: [B, S, 6]."""
    theta, basis = _grid(window, kernels.device)
    energy = (kernels @ basis.flatten(0, 2).T).square().unflatten(1, basis.shape[:3]).sum(1)  # [B, W, E]
    energy, envelope = energy.max(2)
    wave = energy.topk(STARTS).indices
    return theta[wave, envelope.gather(1, wave)]


@lru_cache(maxsize=2)
def _grid(window: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Starts [W, E, 6], of W = 12 x 6 waves under E = 25 x 12 envelopes, and their orthonormal bases [2, W, E, P]."""
    (kh, kw), side = window, max(window)
    tau, f, y0, x0, sigma_x, aspect = torch.cartesian_prod(
        torch.arange(12, dtype=torch.float64) * math.pi / 12,
        (torch.arange(6, dtype=torch.float64) + 0.5) / 6,  # of pi
        torch.arange(-2, 3, dtype=torch.float64) / 5 * kh,
        torch.arange(-2, 3, dtype=torch.float64) / 5 * kw,
        torch.logspace(0, math.log10(side / 3), 4, dtype=torch.float64),
        torch.tensor([0.5, 1, 2], dtype=torch.float64),
    ).unbind(-1)
    excess = (torch.stack([sigma_x, sigma_x * aspect]) - MIN_SIGMA).clamp(min=0.1)
    theta = torch.stack([x0, y0, tau, f.logit(), *excess.log()], -1).to(device).unflatten(0, (72, 300))
    x, y = _pixels(window, device)
    basis = []
    for wave in theta:
        _, _, pair = _quadrature(wave, x, y)  # [E, 2, P]
        basis.append(_project(pair, torch.zeros_like(x))[1])
    return theta, torch.stack(basis).movedim(2, 0).contiguous()
