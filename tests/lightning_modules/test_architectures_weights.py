"""Weights from a file and from torchvision's store, and what is said where there are none."""

import re
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from kernels.layers import BatchNorm2d, Conv2d
from lightning_modules.architectures import ResNet18
from lightning_modules.architectures.weights import load_weights

NARROW = {"input_shape": (3, 8, 8), "classes": 3, "width": 1 / 32}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = Conv2d(1, 2, 3), BatchNorm2d(2)


def refused(weights: str | Path, network: nn.Module | None = None, model: str = "resnet18") -> str:
    """The one line of the error."""
    with pytest.raises(ValueError) as error:
        load_weights(network or Network(), str(weights), model)
    line = str(error.value)
    assert "\n" not in line
    return line


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_loads_a_file(tmp_path):
    trained = ResNet18(**NARROW)
    path = saved(tmp_path / "resnet18.pth", trained.state_dict())
    loaded = ResNet18(**NARROW, weights=str(path))
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_old_files_have_no_counters(tmp_path):
    network = Network()
    state = {key: value for key, value in Network().state_dict().items() if "num_batches" not in key}
    load_weights(network, str(saved(tmp_path / "old.pth", state)), "resnet18")
    assert torch.equal(network.conv.weight, state["conv.weight"]) and network.bn.num_batches_tracked == 0


def test_names_the_first_difference(tmp_path):
    state = Network().state_dict()
    lacking = {key: value for key, value in state.items() if key != "bn.bias"}
    path = saved(tmp_path / "it.pth", lacking)
    assert refused(path) == f"weights {path} are not of this network: bn.bias is missing there and [2] here"
    saved(path, state | {"fc.weight": torch.ones(3)})
    assert refused(path).endswith("fc.weight is [3] there and missing here")
    saved(path, state | {"conv.weight": torch.ones(4, 1, 3, 3), "conv.bias": torch.ones(4)})
    assert refused(path).endswith("conv.weight is [4, 1, 3, 3] there and [2, 1, 3, 3] here, and 1 more differ")


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_refuses_what_would_run_code(tmp_path, capfd):
    path = saved(tmp_path / "it.pth", {"conv.weight": Harmful()})
    assert re.search(r"weights .*it.pth is refused.*print could run any code", refused(path))
    assert "this ran" not in capfd.readouterr().out


def test_damaged_files_and_others(tmp_path):
    path = saved(tmp_path / "it.pth", Network().state_dict())
    path.write_bytes(path.read_bytes()[:-100])
    assert f"weights {path} is truncated or damaged" in refused(path)
    path.write_text("no weights")
    assert f"weights {path} is truncated or damaged" in refused(path)
    assert "must hold a state_dict" in refused(saved(path, [torch.ones(1)]))
    assert "must hold a state_dict" in refused(saved(path, {"epoch": 3, "state_dict": Network().state_dict()}))


def test_a_file_that_the_system_does_not_give(tmp_path, monkeypatch):
    path = saved(tmp_path / "it.pth", Network().state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
        assert f"weights {path} cannot be read: Permission denied" in refused(path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", mock.Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            load_weights(Network(), str(path), "resnet18")


@pytest.mark.parametrize("weights", ["resnet18.pth", "IMAGENET1K_V3", ".", ""])
def test_neither_a_file_nor_torchvisions(weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refused(weights) == (
        "weights must be a file with a state_dict, or one of torchvision's IMAGENET1K_V1, DEFAULT, "
        f"got {weights!r}, which is neither"
    )


@pytest.fixture
def store(monkeypatch, tmp_path) -> Path:
    """Where torchvision's weights of ResNet-18 would be, had they been downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    path = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    return path


def test_loads_what_was_downloaded(store):
    trained = Network()
    saved(store, trained.state_dict())
    network = Network()
    load_weights(network, "IMAGENET1K_V1", "resnet18")
    assert torch.equal(network.conv.weight, trained.conv.weight)
    saved(store, {"conv.weight": Harmful()})
    assert "is damaged: remove it" in refused("IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (URLError("no route to host"), "(no route to host): where there is no network, give the path of that file"),
        (TimeoutError("timed out"), "(timed out): where there is no network, give the path of that file"),
    ],
)
def test_no_network(store, monkeypatch, error, says):
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "urlopen", fails)
    assert refused("IMAGENET1K_V1").endswith(says)
    assert ResNet18_Weights.IMAGENET1K_V1.url in refused("IMAGENET1K_V1")
