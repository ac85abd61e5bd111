import math

import pytest
import torch
from torch.testing import assert_close

from lightning_modules.gabor import fit_gabor
from lightning_modules.gabor_score import (
    COLUMNS,
    LEVEL,
    NOISE,
    ORIENTATIONS,
    PHASES,
    SAMPLES,
    Likeness,
    likeness,
    measured_noise_r2,
    noise_r2,
    not_measurable,
    phase_scrambled,
    pink_noise,
    scores,
    white_noise,
)
from tests.lightning_modules.test_gabor import IMPOSTORS, WAVELET, WINDOW, noisy, random_gabors


def scores_of(kernels: torch.Tensor) -> dict[str, float]:
    return {name: float(score) for name, score in scores(likeness(kernels[:, None]).table()).items()}


@pytest.fixture(scope="module")
def kernels() -> torch.Tensor:
    """Gabor functions in noise of a quarter of their energy, and pure noise."""
    return torch.cat([noisy(random_gabors(24, seed=1).kernels(WINDOW), 0.25, seed=2), white_noise(8, WINDOW, rng(3))])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("window", [(7, 7), (9, 9), (11, 11)], ids=str)
def test_white_noise_is_hardly_ever_gabor_like(window):
    """At most one in a hundred; 5 % are above the null's 95th percentile, or fewer where 1/f noise has more."""
    found = scores_of(white_noise(300, window, rng(4)))
    assert found["fraction"] <= 0.01
    assert found["fraction_above_null"] <= 1.5 * (1 - LEVEL)


@pytest.mark.parametrize("window", NOISE, ids=str)
def test_noise_of_the_null_is_above_it_as_often_as_it_says(window):
    """Within four standard deviations of what so many samples say of a percentile, and these of the share above it."""
    r2 = fit_gabor(pink_noise(400, window, rng(5))).r2
    for found, samples in ((noise_r2(window), 2000), (measured_noise_r2(window), SAMPLES)):
        deviation = math.sqrt(LEVEL * (1 - LEVEL) * (1 / samples + 1 / len(r2)))
        assert (r2 > found).double().mean() == pytest.approx(1 - LEVEL, abs=4 * deviation)


def test_gabor_functions_are_above_the_null_and_noise_is_not(kernels):
    found = likeness(kernels[:, None])
    table = found.table()
    assert table["above_null"].tolist() == [1] * 24 + [0] * 8
    assert found.null >= noise_r2(WINDOW)
    gabors = random_gabors(24, seed=1)
    assert_close(table["frequency"][:24], 1 / gabors.wavelength, rtol=0.1, atol=0)
    assert (table["bandwidth"][:24] - gabors.bandwidth).abs().median() < 0.3


@pytest.mark.parametrize("name", IMPOSTORS)
def test_impostors_do_not_score(name):
    """One kernel of two is Gabor-like: not the impostor."""
    assert scores_of(torch.stack([IMPOSTORS[name], WAVELET]))["fraction"] == 0.5


@pytest.mark.parametrize("factor", [-1.0, 1e3, -1e-3])
def test_scores_do_not_depend_on_scale_and_sign(kernels, factor):
    other = scores_of(factor * kernels)
    assert other == pytest.approx(scores_of(kernels), abs=1e-4)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("window", [(11, 11), (7, 9)], ids=str)
def test_scores_do_not_depend_on_quarter_turns_and_order(turns, window):
    """Nor does the null model, which some of these noisy kernels are close to."""
    kernels = noisy(random_gabors(24, seed=1).kernels(window), 0.6, seed=2)
    found, turned = (likeness(each[:, None]) for each in (kernels, kernels.flip(0).rot90(turns, (1, 2))))
    assert turned.null == pytest.approx(found.null, abs=1e-6)
    values = ({name: float(value) for name, value in scores(each.table()).items()} for each in (turned, found))
    assert next(values) == pytest.approx(next(values), abs=1e-3, nan_ok=True)
    assert 0 < found.table()["above_null"].mean() < 1


def test_scrambled_kernels_are_part_of_the_null():
    """Those with a narrow band resemble a wave more than other noise."""
    smooth = IMPOSTORS["narrow band"][None, None]
    assert likeness(smooth, scrambled=False).null == noise_r2(WINDOW)
    assert likeness(smooth).null > noise_r2(WINDOW)


def test_half_a_layer_without_an_envelope_has_no_median():
    columns = {name: torch.ones(4, dtype=torch.float64) for name in COLUMNS}
    columns["bandwidth"] = torch.tensor([1.0, math.inf, math.inf, math.inf])
    assert scores(columns)["bandwidth_octaves"] == math.inf
    columns["bandwidth"] = torch.tensor([1.0, 2.0, 3.0, math.inf])
    assert scores(columns)["bandwidth_octaves"] == 2


def test_colours_count_by_their_principal_component(kernels):
    colours = torch.tensor([0.6, -0.3, 0.2], dtype=torch.float64)
    grey, coloured = likeness(kernels[:, None]), likeness(kernels[:, None] * colours[:, None, None])
    assert_close(coloured.fit.r2, grey.fit.r2, rtol=0, atol=1e-6)
    assert_close(coloured.share, torch.ones_like(coloured.share))


def test_entropy_of_orientations():
    def entropy(*orientations: float, above: float = 1.0) -> float:
        columns = {name: torch.zeros(len(orientations)) for name in COLUMNS}
        columns |= {"above_null": torch.full_like(columns["r2"], above), "orientation": torch.tensor(orientations)}
        return float(scores(columns)["orientation_entropy"])

    step = math.pi / ORIENTATIONS
    assert entropy(0.1, 0.1, math.pi - 0.1) == 0
    assert entropy(*(i * step for i in range(ORIENTATIONS))) == pytest.approx(1)
    assert entropy(0.0, 4 * step) == pytest.approx(math.log(2) / math.log(ORIENTATIONS))
    assert math.isnan(entropy(0.1, 0.2, above=0))


def test_pink_noise_has_the_spectrum_it_says():
    """Energy falls as 1/f^2: four times less from each octave of frequency to the next."""
    fields = pink_noise(200, (64, 64), rng(7))
    assert fields.shape == (200, 64, 64)
    energy = torch.fft.fft2(fields).abs().square().mean(0)
    octaves = [energy[0, low : 2 * low].mean() for low in (4, 8, 16)]
    assert 3 < octaves[0] / octaves[1] < 5 and 3 < octaves[1] / octaves[2] < 5


def test_scrambled_phases_keep_the_amplitudes(kernels):
    scrambled = phase_scrambled(kernels)
    versions = len(scrambled) // len(kernels)
    kept = kernels.repeat_interleave(versions, 0)
    assert versions == 4 * PHASES
    assert_close(torch.fft.fft2(scrambled).abs(), torch.fft.fft2(kept).abs())
    assert not torch.allclose(scrambled, kept)
    above = (fit_gabor(each).r2 > likeness(kernels[:, None]).null for each in (scrambled, kernels))
    assert next(above).double().mean() <= 1 - LEVEL < 0.5 < next(above).double().mean()


def test_dead_layers_and_small_windows():
    assert isinstance(likeness(torch.zeros(3, 1, 7, 7)), Likeness)
    assert not_measurable((7, 9)) is None
    assert "5x9 window" in str(not_measurable((5, 9)))
    with pytest.raises(ValueError, match="weight has a 3x3 window, but Gabor-likeness needs 7x7 or more"):
        likeness(torch.ones(1, 1, 3, 3))
