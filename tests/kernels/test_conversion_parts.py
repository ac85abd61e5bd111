"""Habits of models that people use, each in a small model: fused where possible, with the same results."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import layers

pytestmark = pytest.mark.usefixtures("triton_only")
NORM = "function batch_norm + ReLU"


class NormAct(nn.BatchNorm2d):
    """Batch norm that has its activation, written out as timm's is."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        known = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if known else (None, None)
        training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(x, mean, var, self.weight, self.bias, training, self.momentum, self.eps)
        return self.act(self.drop(x))


class Block(nn.Module):
    """A residual block that adds in place, with a part that may be None, as timm's are."""

    def __init__(self, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), norm(4), nn.ReLU(inplace=True)
        self.downsample, self.attention, self.checkpointing = nn.Conv2d(4, 4, 1), None, False

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = checkpoint(self.conv, x) if self.checkpointing else self.conv(x)
        x = self.norm(x)
        if self.attention is not None:
            x = self.attention(x)
        shortcut = self.downsample(shortcut)
        x += shortcut
        return self.relu(x)


class Dense(nn.Module):
    """Takes one tensor or several, and keeps the outputs of all blocks in a list, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(4 * n), nn.ReLU()) for n in (1, 2))
        self.convs = nn.ModuleList(nn.Conv2d(4 * n, 4, 1) for n in (1, 2))

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        features = [x] if isinstance(x, Tensor) else list(x)
        for layer, conv in zip(self.layers.children(), self.convs.children(), strict=True):
            features.append(conv(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


class Named(nn.Module):
    """Gives an OrderedDict that it fills item by item, as segmentation models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        result = OrderedDict()
        result["out"] = self.body(x)
        result["in"] = x
        return result


class Split(nn.Module):
    """Sets parts of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :2] = F.relu(self.norm(self.conv(x)))[:, 2:]
        return y


class Checked(nn.Module):
    """Looks at its input's size before anything else, as segmentation_models_pytorch's models do."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise ValueError("width must be even")
        return self.head(self.part(x))


class Around(nn.Module):
    """Has a part in the middle that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = Block(), Checked(Block()), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


MODELS = {
    "norm with activation": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), NormAct(4)), 1),
    "residual": (Block, 1),
    "residual, norm with activation": (lambda: Block(lambda channels: NormAct(channels, act=False)), 1),
    "list": (Dense, 2),
    "OrderedDict": (Named, 1),
    "item assignment": (Split, 1),
    "checks its input": (lambda: Checked(Block()), 2),
    "a part in the middle": (Around, 4),
}


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, gradients and buffers."""
    x = x.clone().requires_grad_()
    y = model(x)
    outputs = list(y.values()) if isinstance(y, dict) else [y]
    sum((y * torch.linspace(-1, 1, y.numel(), device=x.device).view_as(y)).sum() for y in outputs).backward()
    return [*outputs, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(2, 4, 6, 6, device=device)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_fuses_and_is_bitwise_the_model(name, training, x):
    build, fused = MODELS[name]
    model = build().to(x.device)
    for norm in filter(lambda part: isinstance(part, nn.BatchNorm2d), model.modules()):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), nn.init.normal_(norm.weight)
    converted = kernels.convert(model.train(training))
    assert len(converted.report.fused) == fused
    twins = [converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))]
    with kernels.use_backend("torch"):
        expected = step(copy.deepcopy(model), x)
        for twin in twins:
            torch.testing.assert_close(step(copy.deepcopy(twin), x), expected, rtol=0, atol=0)
    y = converted(x)
    assert type(y) is type(model(x))
    torch.testing.assert_close(y, model(x))


def test_the_report_says_what_keeps_its_code(x):
    report = kernels.convert(Around().to(x.device)).report
    assert report.untraced == {
        "middle": "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to control flow"
    }
    assert set(report.fused) == {"first.downsample", "middle.part.downsample", "middle.head.0", "last.downsample"}
    layers.Linear(1, 1).to(x.device)(x[..., :1])
    assert kernels.convert(nn.Sequential(NormAct(4), nn.Conv2d(4, 4, 1))).report.fused == {"0.batch_norm": NORM}


def test_a_list_may_be_given_where_a_tensor_was_traced(x):
    model = Dense().to(x.device)
    converted = kernels.convert(model)
    torch.testing.assert_close(converted([x]), model([x]))
    torch.testing.assert_close(converted(x), model(x))


class Skips(nn.Module):
    """An upsampling step that may have a skip connection and is called with numbers, as in a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor, height: int, width: int, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, size=(height, width))
        return self.conv(x if skip is None else x + skip)


def test_numbers_and_optional_tensors_are_as_before(x):
    model = Skips().to(x.device)
    converted = kernels.convert(model)
    assert converted.report.fused == {"conv.0": "Conv2d + ReLU"}
    for arguments in ((x, 8, 8), (x, 3, 5), (x, 6, 6, x)):
        torch.testing.assert_close(converted(*arguments), model(*arguments))
    torch.testing.assert_close(converted(x, width=6, height=6, skip=x), model(x, 6, 6, x))
    assert len(converted._graphs) == 4  # for each mode with and without the skip connection
    given = converted._graphs[True, ("skip",)]
    assert given.takes((x, 1, 2.0, x)) and not given.takes((x, 1, True, x)) and not given.takes((x, 1, 1, None))


class Decoder(nn.Module):
    """Takes the features of an encoder as a list, of which it uses some."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.fine = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2))

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.fine(features[0] + self.deep(features[-1]))


def test_a_list_may_be_indexed(x):
    model = Decoder().to(x.device)
    converted = kernels.convert(model)
    runs = count_runs(converted)
    torch.testing.assert_close(converted([x, x, x * 2]), model([x, x, x * 2]))
    torch.testing.assert_close(converted((x, x * 3)), model((x, x * 3)))
    assert runs == [converted] * 2
    with pytest.raises(TypeError):
        model([x, None])
    with pytest.raises(TypeError):
        converted([x, None])


def count_runs(model: nn.Module) -> list[nn.Module]:
    """Let the graphs of a model note in which parts they run."""
    runs: list[nn.Module] = []
    for part in model.modules():
        for graph in vars(part).get("_graphs", {}).values():
            graph.run = lambda self, *inputs, run=graph.run: runs.append(self) or run(self, *inputs)
    return runs


def test_a_model_with_a_converted_part_can_be_converted(x):
    block, outer = Block().to(x.device), Checked(nn.Identity()).to(x.device)
    outer.part = kernels.convert(block)
    converted = kernels.convert(outer)
    assert converted.report.fused == {"head.0": "Conv2d + ReLU"} and list(converted.report.untraced) == [""]
    runs = count_runs(converted)
    outer.part = block
    torch.testing.assert_close(converted(x), outer(x))
    assert runs == [converted.part, converted.head]


class Maybe(nn.Module):
    """Gives None for positive inputs, which no trace can know."""

    def forward(self, x: Tensor) -> Tensor | None:
        return None if float(x.sum()) > 0 else x


class AsksForNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maybe, self.conv = Maybe(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.maybe(x)
        return self.conv(x if y is None else -x)


def test_a_part_that_may_give_none_is_asked_at_each_call(x):
    model = AsksForNone().to(x.device)
    converted = kernels.convert(model)
    assert converted.report.fused == {"conv.0": "Conv2d + ReLU"}
    assert "asks what 'y' is" in converted.report.untraced[""]
    for sign in (1, -1):
        torch.testing.assert_close(converted(sign * x.abs()), model(sign * x.abs()))


def test_a_part_with_code_of_its_own_may_change_its_input(x):
    class Clears(nn.Module):
        def forward(self, x):
            if x.size(0) > 1:
                x[:, 0] = 0
            return x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.clears, self.conv = nn.BatchNorm2d(4), Clears(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            h = self.norm(x)
            return F.relu(h + self.clears(x))

    model = Model().to(x.device)
    torch.testing.assert_close(kernels.convert(model)(x.clone()), model(x.clone()))


class MemoryEfficient(nn.Module):
    """Recomputes in its backward pass, as densenet121(memory_efficient=True) does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), Block()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.stem(x), use_reentrant=False)


def test_checkpoints_recompute(x):
    model = MemoryEfficient().to(x.device)
    converted = kernels.convert(model)
    assert len(converted.report.fused) == 2
    with kernels.use_backend("torch"):
        actual, expected = step(copy.deepcopy(converted), x), step(copy.deepcopy(model), x)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    recomputed = step(copy.deepcopy(converted), x)
    converted.forward = lambda x: converted.block(converted.stem(x))
    actual = step(converted, x)
    for ours, theirs in zip(actual[:-3], recomputed[:-3], strict=True):  # without the statistics of its batch norm
        assert torch.equal(ours, theirs)


def test_folds_around_a_part_that_keeps_its_code(x):
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Checked(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    )
    model(x.cpu())
    model = model.to(x.device).eval()
    folded = kernels.convert(model, fold_batch_norm=True)
    torch.testing.assert_close(folded(x), model(x))
    assert [name for name, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)] == ["2.part.1"]
