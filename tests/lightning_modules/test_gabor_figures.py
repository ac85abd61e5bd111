import math

import numpy as np
import torch

from lightning_modules.gabor import Gabor
from lightning_modules.gabor_figures import KINDS, columns_of, kinds, report, shapes
from lightning_modules.gabor_score import likeness, white_noise


def kernel(tau: float) -> torch.Tensor:
    """A Gabor function of 11x11 whose wave goes in the direction tau, downwards from the right."""
    values = {"alpha": 1, "beta_x": 1 / 8, "beta_y": 1 / 12, "f": 1.3, "phi": 0, "x0": 0, "y0": 0, "tau": tau}
    return Gabor(**{name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}).kernels(
        (11, 11)
    )


def test_directions_are_as_seen_in_the_picture():
    """Down to the right is on the lower right, and on the upper left, which is where the half circle shows it."""
    polar = shapes(likeness(kernel(math.radians(30))[None]), "it").axes[0]
    ((angle, frequency),) = np.concatenate([points.get_offsets() for points in polar.collections])
    assert math.isclose(math.degrees(angle), 150, abs_tol=1)
    assert math.isclose(frequency, 1.3 / (2 * math.pi), abs_tol=0.01)


def test_the_area_of_simple_cells_is_longer_along_the_bars():
    """sigma_x is at most 0.92 sigma_y: n_y is the larger one."""
    plane = shapes(likeness(kernel(0.5)[None]), "it").axes[1]
    (area,) = (each for each in plane.collections if str(each.get_label()).startswith("simple cells"))
    (path,) = area.get_paths()
    assert (
        path.contains_point((0.5, 1.0)) and not path.contains_point((0.5, 0.4)) and not path.contains_point((0.2, 0.5))
    )


def test_each_live_kernel_is_of_one_kind():
    noise = white_noise(6, (11, 11), torch.Generator().manual_seed(1))
    found = likeness(torch.cat([kernel(1.0), noise, 0 * kernel(0.2)])[:, None])
    columns = columns_of([found, found])
    counts = [int(kind.sum()) for kind in kinds(columns)]
    assert len(counts) == len(KINDS) and counts == [2, 0, 12]
    assert np.sum(kinds(columns), axis=0).max() == 1


def test_a_report_shows_the_r2_of_each_kernel():
    found = likeness(torch.cat([kernel(1.0), white_noise(4, (11, 11), torch.Generator().manual_seed(1))])[:, None])
    texts = [text.get_text() for text in report(found, "conv").axes[0].texts]
    assert texts == [f"{r2:.2f}" for r2 in sorted(found.fit.r2.tolist(), reverse=True)]
