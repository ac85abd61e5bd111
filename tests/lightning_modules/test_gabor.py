import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch.testing import assert_close

from lightning_modules.gabor import (
    Gabor,
    _decode,
    _jacobian,
    _normal_equations,
    _pixels,
    _quadrature,
    _starts,
    fit_gabor,
    is_gabor,
    principal_kernel,
)

WINDOW = (11, 11)

Y, X = torch.meshgrid(torch.arange(11.0) - 5, torch.arange(11.0) - 5, indexing="ij")
SMOOTH = torch.exp(-(X.square() + Y.square()) / 8)
WAVELET = SMOOTH * torch.cos(1.5 * X)
IMPOSTORS = {
    "pixel": ((X == 1) & (Y == -2)).float(),
    "pair of pixels": ((X == 1) & (Y == -2)).float() - ((X == 2) & (Y == -2)).float(),
    "grating": torch.cos(1.2 * X + 0.5 * Y),
    "narrow band": torch.cos(2.4 * X) * torch.exp(-(X.square() + Y.square()) / 32),
    "checkerboard": (-1.0) ** (X + Y),
    "blob": SMOOTH,
    "ramp": X + 0.3 * Y,
    "step": X.sign(),
    "cut off": torch.cos(1.5 * (X - 6)) * torch.exp(-((X - 6).square() + Y.square()) / 8),
    "constant": torch.full_like(X, 0.3),
    "nearly constant": 1 + 1e-3 * WAVELET,
    "dead": 1e-4 * WAVELET,
    "zero": torch.zeros_like(X),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(low: float, high: float, count: int, rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)


def random_gabors(count: int, seed: int) -> Gabor:
    """Gabor functions that a 9x9 window shows whole, all of them within the strict criterion."""
    rng = generator(seed)
    f = uniform(1.2, 1.7, count, rng)
    sigma_x, sigma_y = uniform(1.7, 2.2, count, rng) / f, uniform(1.0, 2.0, count, rng)
    return Gabor(
        alpha=uniform(0.1, 5, count, rng),
        beta_x=1 / (2 * sigma_x.square()),
        beta_y=1 / (2 * sigma_y.square()),
        f=f,
        phi=uniform(-math.pi, math.pi, count, rng),
        x0=uniform(-1.5, 1.5, count, rng),
        y0=uniform(-1.5, 1.5, count, rng),
        tau=uniform(0, math.pi, count, rng),
    )


def white_noise(count: int, window: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(count, *window, generator=generator(seed), dtype=torch.float64)


def noisy(kernels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Kernels plus white noise of a share of their energy."""
    noise = white_noise(len(kernels), tuple(kernels.shape[1:]), seed)
    scale = kernels.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return kernels + math.sqrt(share) * scale[:, None, None] * noise


def r2_of(kernels: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    variance = (kernels - kernels.mean((1, 2), keepdim=True)).square().sum((1, 2))
    return 1 - (kernels - fitted).square().sum((1, 2)) / variance


def test_function_is_equation_9_16():
    alpha, beta_x, beta_y, f, phi, x0, y0, tau = 1.5, 0.1, 0.2, 1.3, 0.4, 0.5, -1.0, 0.7
    x, y = 2.0, -3.0
    along = (x - x0) * math.cos(tau) + (y - y0) * math.sin(tau)
    across = -(x - x0) * math.sin(tau) + (y - y0) * math.cos(tau)
    expected = alpha * math.exp(-beta_x * along**2 - beta_y * across**2) * math.cos(f * along + phi)

    gabor = Gabor(*torch.tensor([[alpha, beta_x, beta_y, f, phi, x0, y0, tau]], dtype=torch.float64).T)
    assert gabor(torch.tensor(x), torch.tensor(y)).item() == pytest.approx(expected)
    kernel = gabor.kernels((9, 11))[0]
    assert kernel[4 - 3, 5 + 2].item() == pytest.approx(expected)  # row y, column x from the centre


def test_function_is_differentiable():
    parameters = torch.tensor([[1.5, 0.1, 0.2, 1.3, 0.4, 0.5, -1.0, 0.7]], dtype=torch.float64).T.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: Gabor(*p).kernels((3, 4)), parameters)


def test_conversions():
    one = torch.ones(1, dtype=torch.float64)
    gabor = Gabor(one, one / 8, one / 18, one * math.pi / 2, 0 * one, 3 * one, -5 * one, 0 * one)
    assert gabor.wavelength.item() == pytest.approx(4)
    assert gabor.sigma_x.item() == pytest.approx(2)
    assert gabor.sigma_y.item() == pytest.approx(3)
    assert gabor.n_x.item() == pytest.approx(0.5)
    assert gabor.n_y.item() == pytest.approx(0.75)
    assert gabor.inside((10, 6)).item()
    assert not gabor.inside((9, 6)).item()
    assert not gabor.inside((10, 5)).item()


def test_bandwidth_spans_the_frequencies_of_half_response():
    one = torch.ones(1, dtype=torch.float64)
    f = math.pi / 2
    gabor = Gabor(one, one / 8, one, one * f, 0 * one, 0 * one, 0 * one, 0 * one)
    low = 2 * f / (1 + 2 ** gabor.bandwidth.item())  # the two frequencies lie evenly about f, a bandwidth apart
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    profile = gabor(x, torch.zeros_like(x))
    response = [(profile * torch.cos(frequency * x)).sum().item() for frequency in (low, f, 2 * f - low)]
    assert response[0] / response[1] == pytest.approx(0.5, abs=1e-3)
    assert response[2] / response[1] == pytest.approx(0.5, abs=1e-3)


def test_bandwidth_of_a_blob_is_infinite():
    one = torch.ones(1)
    assert Gabor(one, one, one, 0.1 * one, one, one, one, one).bandwidth.isinf().all()


@pytest.mark.parametrize("window", [(9, 9), (11, 11), (9, 13)], ids=str)
def test_gabors_are_fitted_exactly(window):
    kernels = random_gabors(32, seed=0).kernels(window)
    fit = fit_gabor(kernels)
    assert fit.r2.min() > 0.99
    assert fit.r2.mean() > 0.9999
    assert is_gabor(fit).all()
    assert_close(fit.gabor.kernels(window), kernels, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("window", "low", "high", "p95"),
    [((7, 7), 0.25, 0.35, 0.45), ((9, 9), 0.17, 0.25, 0.32), ((11, 11), 0.10, 0.20, 0.23)],
    ids=["7x7", "9x9", "11x11"],
)
def test_white_noise_is_not_gabor_like(window, low, high, p95):
    fit = fit_gabor(white_noise(100, window, seed=1))
    assert low <= fit.r2.median() <= high
    assert fit.r2.quantile(0.95) < p95
    assert not is_gabor(fit).any()


def test_r2_is_that_of_the_returned_function():
    kernels = noisy(random_gabors(16, seed=2).kernels(WINDOW), 1.0, seed=3)
    fit = fit_gabor(kernels)
    assert_close(fit.r2, r2_of(kernels, fit.gabor.kernels(WINDOW)))


def test_functions_are_differentiable_in_all_parameters():
    """And so are the quantities that are derived from them."""
    gabor = random_gabors(3, seed=22)
    fields = [field.name for field in dataclasses.fields(Gabor)]

    def derived(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = Gabor(*parameters)
        return made.kernels((5, 7)), made.wavelength, made.bandwidth, made.aspect, made.n_x, made.n_y

    parameters = [getattr(gabor, field).clone().requires_grad_() for field in fields]
    assert torch.autograd.gradcheck(derived, parameters)
    assert_close(gabor.aspect, gabor.n_x / gabor.n_y)


def test_orientation_survives_noise():
    gabors = random_gabors(64, seed=4)
    fit = fit_gabor(noisy(gabors.kernels(WINDOW), 0.5, seed=5))
    assert ((fit.gabor.tau >= 0) & (fit.gabor.tau < math.pi)).all()
    difference = (fit.gabor.tau - gabors.tau) % math.pi
    degrees = torch.rad2deg(torch.minimum(difference, math.pi - difference))
    assert degrees.median() < 2


@pytest.mark.parametrize(
    "transform",
    [lambda k: 1e4 * k, lambda k: 1e-4 * k, lambda k: -k, lambda k: k.rot90(1, (1, 2)), lambda k: k.rot90(2, (1, 2))],
    ids=["larger", "smaller", "sign", "quarter turn", "half turn"],
)
def test_r2_is_invariant(transform):
    kernels = torch.cat([noisy(random_gabors(8, seed=6).kernels((9, 11)), 0.5, seed=7), white_noise(8, (9, 11), 8)])
    assert_close(fit_gabor(transform(kernels)).r2, fit_gabor(kernels).r2, rtol=0, atol=1e-4)


def test_kernels_are_fitted_independently():
    kernels = white_noise(70, (7, 7), seed=9)
    assert_close(fit_gabor(kernels).r2[63:66], fit_gabor(kernels[63:66]).r2, rtol=0, atol=1e-6)


def scipy_r2(kernels: torch.Tensor, starts: int = 8) -> torch.Tensor:
    """R2 [B] of kernels [B, 11, 11], refined one by one over all eight parameters from the best starts of our grid."""
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None]
    x, y = (coordinate.numpy() for coordinate in _pixels(WINDOW, kernels.device))

    def residual(p, kernel):
        a, b, x0, y0, tau, f, sigma_x, sigma_y = p
        u = (x - x0) * np.cos(tau) + (y - y0) * np.sin(tau)
        v = (y - y0) * np.cos(tau) - (x - x0) * np.sin(tau)
        envelope = np.exp(-0.5 * (u / sigma_x) ** 2 - 0.5 * (v / sigma_y) ** 2)
        return envelope * (a * np.cos(f * u) + b * np.sin(f * u)) - kernel

    low, high = [-math.inf] * 5 + [0, 0.8, 0.8], [math.inf] * 5 + [math.pi, math.inf, math.inf]
    points = torch.stack(_decode(_starts(kernels.flatten(1), WINDOW)[:, :starts]), -1)  # [B, starts, 6]
    found = []
    for kernel, own in zip(kernels.flatten(1), points, strict=True):
        fits = [
            least_squares(residual, [0.1, 0.1, *start.tolist()], bounds=(low, high), args=(kernel.numpy(),))
            for start in own
        ]
        found.append(1 - min(2 * fit.cost for fit in fits) / (kernel - kernel.mean()).square().sum())
    return torch.stack(found)


def test_agrees_with_scipy():
    kernels = torch.cat([noisy(random_gabors(3, seed=10).kernels(WINDOW), 0.5, seed=11), white_noise(3, WINDOW, 12)])
    assert fit_gabor(kernels).r2.mean().item() == pytest.approx(scipy_r2(kernels).mean().item(), abs=0.005)


def test_jacobian_matches_autograd():
    rng = generator(13)
    theta = torch.randn(20, 6, generator=rng, dtype=torch.float64)
    amplitudes = torch.randn(20, 2, generator=rng, dtype=torch.float64)
    x, y = _pixels((5, 7), theta.device)
    expected = torch.func.vmap(torch.func.jacrev(lambda t, a: a @ _quadrature(t, x, y)[2]))(theta, amplitudes)
    jacobian = torch.stack(_jacobian(theta, *_quadrature(theta, x, y), amplitudes[..., None]), -2)
    assert_close(jacobian, expected.mT)


def test_descent_matches_autograd_through_the_projection():
    theta = torch.randn(20, 6, generator=generator(14), dtype=torch.float64).requires_grad_()
    kernels = white_noise(20, (5, 7), seed=15).flatten(1)
    energy, descent, _ = _normal_equations(theta, kernels, *_pixels((5, 7), theta.device))
    (gradient,) = torch.autograd.grad(energy.sum() / 2, theta)
    assert_close(descent, -gradient)


@pytest.mark.parametrize("f", [0.01, 0.1, 3.0])
def test_waves_whose_sine_is_almost_their_cosine(f):
    """At any phase, of which some are hardly to be told apart in float32."""
    x = torch.arange(25, dtype=torch.float64)
    waves = torch.stack([torch.cos(f * x + phase).expand(25, 25) for phase in (0.4, 0.8, 1.2, 1.5)])
    assert fit_gabor(waves).r2.min() > 0.99


@pytest.mark.parametrize("name", IMPOSTORS)
def test_impostors_are_not_gabor_like(name):
    fit = fit_gabor(torch.stack([IMPOSTORS[name], WAVELET]))
    assert is_gabor(fit).tolist() == [False, True]
    assert fit.r2.isfinite().all()
    assert fit.dead.tolist() == [name in ("dead", "zero"), False]
    if name in ("constant", "nearly constant", "dead", "zero"):
        assert fit.r2[0] == 0


def test_all_zero_is_all_dead():
    fit = fit_gabor(torch.zeros(3, 7, 7))
    assert fit.dead.all()
    assert (fit.r2 == 0).all()
    assert (fit.gabor.kernels((7, 7)) == 0).all()
    assert (fit.effective_pixels == 0).all()


def test_effective_pixels():
    kernels = torch.zeros(2, 7, 7)
    kernels[0, 3, 3] = -5
    kernels[1, 2:4, 1:4] = 0.1
    assert_close(fit_gabor(kernels).effective_pixels, torch.tensor([1, 6], dtype=torch.float64))


@pytest.mark.parametrize("window", [(7, 13), (13, 7), (3, 3), (1, 9), (1, 1)], ids=str)
def test_any_window(window):
    fit = fit_gabor(white_noise(5, window, seed=16))
    assert fit.window == window
    assert ((fit.r2 >= 0) & (fit.r2 <= 1)).all()
    assert fit.gabor.kernels(window).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_kernels(dtype):
    assert fit_gabor(random_gabors(8, seed=17).kernels(WINDOW).to(dtype)).r2.mean() > 0.999


def test_colour_kernel_is_its_principal_component():
    grey = random_gabors(6, seed=18).kernels(WINDOW)
    colours = torch.tensor([[0.2, -0.9, 0.4]], dtype=torch.float64).expand(6, 3)
    weight = colours[:, :, None, None] * grey[:, None]
    kernels, share = principal_kernel(weight)
    assert_close(kernels, -math.sqrt(0.2**2 + 0.9**2 + 0.4**2) * grey)
    assert_close(share, torch.ones_like(share))

    kernels, share = principal_kernel(noisy(weight.flatten(0, 1), 0.1, seed=19).unflatten(0, (6, 3)))
    assert (share > 0.85).all() and (share < 1).all()
    assert is_gabor(fit_gabor(kernels)).all()


def test_single_channel_is_itself():
    weight = white_noise(4, (7, 9), seed=20)[:, None]
    kernels, share = principal_kernel(weight)
    assert torch.equal(kernels, weight[:, 0])
    assert_close(share, torch.ones_like(share))


def test_share_of_orthogonal_channels():
    weight = torch.zeros(2, 2, 7, 7)
    weight[0, 0, 0, 0], weight[0, 1, 1, 1] = 2, 1
    kernels, share = principal_kernel(weight)
    assert_close(kernels[0], weight[0, 0].double())
    assert_close(share, torch.tensor([0.8, 0], dtype=torch.float64))


def test_principal_kernel_is_differentiable():
    weight = white_noise(6, (3, 4), seed=21).unflatten(0, (2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(principal_kernel, weight)


@pytest.mark.parametrize(
    ("function", "value", "error", "message"),
    [
        (fit_gabor, [[1.0]], TypeError, r"kernels must be a floating-point tensor \[B, kh, kw\], got list"),
        (fit_gabor, torch.ones(2, 7, 7, dtype=torch.int64), TypeError, r"got torch\.int64"),
        (fit_gabor, torch.ones(7, 7), ValueError, r"kernels must be \[B, kh, kw\] and not empty, got shape \[7, 7\]"),
        (fit_gabor, torch.ones(0, 7, 7), ValueError, r"got shape \[0, 7, 7\]"),
        (fit_gabor, torch.full((2, 7, 7), math.nan), ValueError, r"kernels \[2, 7, 7\] must be finite, got NaN or inf"),
        (fit_gabor, torch.full((2, 7, 7), math.inf), ValueError, r"got NaN or inf"),
        (principal_kernel, torch.ones(2, 7, 7), ValueError, r"weight must be \[O, C, kh, kw\].*got shape \[2, 7, 7\]"),
        (principal_kernel, torch.full((2, 3, 7, 7), math.nan), ValueError, r"weight \[2, 3, 7, 7\] must be finite"),
        (principal_kernel, torch.ones(2, 3, 7, 7).cfloat(), TypeError, r"got torch\.complex64"),
    ],
)
def test_wrong_arguments(function, value, error, message):
    with pytest.raises(error, match=message):
        function(value)
