"""Whole models on our layers: outputs, gradients and statistics of the original, its keys, and what is fused."""

import copy
import importlib.util
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels import backend, functional, layers
from tests.networks import assert_same_step, run

pytestmark = pytest.mark.usefixtures("triton_only")


class UNet(nn.Module):
    """Two levels down and up again, with skips (Ronneberger et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
        self.bottom = self.block(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.rise2, self.rise1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up2, self.up1 = self.block(32, 16), self.block(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def block(channels: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        deep = self.bottom(self.pool(coarse))
        up = self.up2(torch.cat([self.rise2(deep), coarse], 1))
        return self.head(self.up1(torch.cat([self.rise1(up), fine], 1)))


def zoo(name: str, **options: Any) -> nn.Module:
    """Build a model of torchvision, which the other tests of this file do without."""
    from torchvision import models

    return getattr(models, name)(num_classes=5, **options)


def narrow(model: nn.Module) -> nn.Module:
    """The model with fully connected layers of 64 units instead of 4096, which would take most of the time."""
    width = 64
    for index, layer in enumerate(model.classifier):
        if isinstance(layer, nn.Linear):
            inputs = width if layer.in_features == 4096 else layer.in_features
            outputs = width if layer.out_features == 4096 else layer.out_features
            model.classifier[index] = nn.Linear(inputs, outputs)
    return model


# Images as small as the network takes, of a batch that gives batch norm something to average.
MODELS = {
    "resnet18": (lambda: zoo("resnet18"), 40),
    "resnet50": (lambda: zoo("resnet50"), 40),
    "alexnet": (lambda: narrow(zoo("alexnet", dropout=0.0)), 63),
    "googlenet": (lambda: zoo("googlenet", aux_logits=False, init_weights=False, dropout=0.0), 40),
    "vgg11": (lambda: narrow(zoo("vgg11", dropout=0.0)), 32),
    "mobilenet_v2": (lambda: zoo("mobilenet_v2", dropout=0.0), 40),
    "unet": (UNet, 16),
}
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
TORCHVISION = pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed")
NAMES = [name if name == "unet" else pytest.param(name, marks=TORCHVISION) for name in MODELS]
IMAGES = {"mobilenet_v2": 4}  # of a batch, else 2: its 52 batch norms magnify rounding where they average few values


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_originals(name, device):
    build, size = MODELS[name]
    torch.manual_seed(0)
    model = build().to(device)
    x = torch.randn(IMAGES.get(name, 2), 3, size, size, device=device)
    converted = kernels.convert(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    launches = backend.launch_count()
    ours = run(converted, x, "triton")
    assert backend.launch_count() - launches > 2 * len(converted.report.replaced)  # forward and gradients
    assert_same_step(ours, run(model, x, "torch"), run(copy.deepcopy(model).double(), x.double(), "torch"))


FUSED = {
    "resnet18": {"BatchNorm2d + residual + ReLU": 8, "BatchNorm2d + ReLU": 9},
    "resnet50": {"BatchNorm2d + residual + ReLU": 16, "BatchNorm2d + ReLU": 33},
    "alexnet": {"Conv2d + ReLU": 5, "Linear + ReLU": 2},  # its pooling windows overlap
    "googlenet": {"BatchNorm2d + ReLU": 57},
    "vgg11": {"Conv2d + ReLU": 3, "Conv2d + ReLU + max pooling": 5, "Linear + ReLU": 2},
    "mobilenet_v2": {},  # has ReLU6
    "unet": {"BatchNorm2d + ReLU": 5, "Conv2d + ReLU": 5},
}


@pytest.mark.parametrize("name", NAMES)
def test_chains_are_fused(name, device):
    model = kernels.convert(MODELS[name][0]())
    found = list(model.report.fused.values())
    assert {chain: found.count(chain) for chain in set(found)} == FUSED[name]
    assert set(model.report.left.values()) <= {f"{kind} has no equivalent" for kind in ("Dropout", "ReLU6", "ReLU")}
    assert not any(type(layer) in kernels.conversion.LAYERS for layer in model.modules())
    assert str(model.report).startswith(f"{len(model.report.replaced)} replaced, {len(found)} fused")
    functional.linear(torch.ones(1, 1, device=device), torch.ones(1, 1, device=device))  # for `triton_only`


@TORCHVISION
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_batch_norm_is_folded_for_evaluation(name, device):
    build, size = MODELS[name]
    model = build().to(device).double().train()
    x = torch.randn(2, 3, size, size, device=device, dtype=torch.float64)
    model(x)  # statistics that are not those of the start
    with pytest.raises(ValueError, match="needs a module in evaluation mode"):
        kernels.convert(model, fold_batch_norm=True)
    folded = kernels.convert(model.eval(), fold_batch_norm=True)
    torch.testing.assert_close(folded(x), model(x))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert not any("running" in key for key in folded.state_dict())
    chains = {chain.replace(" + max pooling", "") for chain in folded.report.fused.values()}
    assert chains <= {"Conv2d + residual + ReLU", "Conv2d + ReLU", "Linear + ReLU"}
    with pytest.raises(RuntimeError, match="for evaluation only"):
        folded.train()


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


@pytest.fixture
def images(device) -> Tensor:
    return torch.randn(2, 3, 8, 8, device=device)


def test_copies_pickles_and_loads_the_originals_state(images, device):
    model = small().to(device)
    converted = kernels.convert(model).eval()
    converted.load_state_dict(model.state_dict())
    y = converted(images)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert torch.equal(twin(images), y) and twin.report == converted.report
        assert next(twin.parameters()) is not next(converted.parameters())


def test_the_module_itself_is_not_changed(images, device):
    model = small().to(device)
    state, kinds = copy.deepcopy(model.state_dict()), [type(layer) for layer in model.modules()]
    kernels.convert(model)(images)
    assert [type(layer) for layer in model.modules()] == kinds
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_training_and_evaluation_each_run_their_own_code(images, device):
    class Modes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.extra = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            y = F.dropout(F.relu(self.conv(x)), 0.5, self.training)
            return (y, self.extra(y)) if self.training else y

    model = Modes().to(device)
    converted = kernels.convert(model)
    assert converted.report.fused == {"conv": "Conv2d + ReLU"}
    y, extra = converted(images)
    assert extra.shape[1] == 2 and (y == 0).float().mean() > 0.5
    assert torch.equal(converted.eval()(images), converted(images))
    torch.testing.assert_close(converted(images), model.eval()(images))


def test_frozen_layers_stay_frozen(images, device):
    model = small().to(device)
    model[1].eval()
    converted = kernels.convert(model)
    assert converted.training and not converted.get_submodule("1").training
    before = converted.get_submodule("1").running_mean.clone()
    converted(images)
    assert torch.equal(converted.get_submodule("1").running_mean, before)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)) if x.sum() > 0 else self.conv(-x)


def test_what_cannot_be_traced_has_its_layers_replaced(images, device):
    model = Untraceable().to(device)
    converted = kernels.convert(model)
    assert isinstance(converted, Untraceable) and type(converted.conv) is layers.Conv2d
    assert "cannot trace it" in converted.report.untraced[""] and "untraced the model" in str(converted.report)
    assert converted.report.fused == {} and converted.report.left == {"relu": "ReLU has no equivalent"}
    torch.testing.assert_close(converted(images), model(images))
    with pytest.raises(ValueError, match="fold_batch_norm=True, but torch.fx cannot trace it"):
        kernels.convert(model.eval(), fold_batch_norm=True)


def test_hooks_still_run(images, device):
    model, seen = small().to(device), []
    model[2].register_forward_hook(lambda *_: seen.append("relu"))
    converted = kernels.convert(model)
    converted(images)
    assert seen == ["relu"] and "1" not in converted.report.fused
    whole = small().to(device)
    whole.register_forward_hook(lambda *_: seen.append("model"))
    kernels.convert(whole)(images)
    assert seen[-1] == "model"


def test_a_layer_used_twice_is_not_fused(images, device):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.conv(x)))

    model = Twice().to(device)
    converted = kernels.convert(model)
    assert converted.report.fused == {}
    torch.testing.assert_close(converted(images), model(images))


def test_sums_and_functions_are_fused_where_that_changes_nothing(images, device):
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            both = torch.relu(self.first(x) + self.second(x))  # either could take the other in
            y = self.third(x)
            x = x.relu_()  # changes what the third convolution has read
            return F.max_pool2d(F.relu(y + x), 2) + F.avg_pool2d(both, 2)

    model = Sums().to(device)
    converted = kernels.convert(model)
    assert converted.report.fused == {"second": "Conv2d + residual + ReLU"}
    assert "function max_pool2d" in converted.report.replaced.values()
    torch.testing.assert_close(converted(images.clone()), model(images.clone()))


def test_a_single_layer_is_converted(images, device):
    converted = kernels.convert(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect").to(device))
    assert type(converted) is layers.Conv2d and converted(images).shape == (2, 4, 8, 8)
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got str"):
        kernels.convert("resnet18")


def test_compiles_and_exports(images, device):
    model = kernels.convert(small().to(device)).eval()
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)
    exported = torch.export.export(model, (images,))
    assert any("convnets" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(images), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_trains_in_mixed_precision(layout, images, device):
    model = kernels.convert(small().to(device)).to(memory_format=layout)
    scaler = torch.amp.GradScaler(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        with torch.autocast(device, torch.float16):
            loss = F.cross_entropy(model(images.contiguous(memory_format=layout)), torch.tensor([0, 1], device=device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(p.grad.isfinite().all() for p in model.parameters()) and losses[-1] < losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_step_can_be_captured_in_a_cuda_graph(images, device):
    """Its replay on new images gives what an eager step from the same state gives."""
    model = small().to(device)
    model[6].p = 0.0  # of the dropout: the two would draw differently
    eager = kernels.convert(model)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (images.clone().requires_grad_(),))
    graphed.load_state_dict(eager.state_dict())  # the capture has moved the running statistics

    def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        x = x.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        return {"output": y.detach(), "gradient": x.grad} | gradients | model.state_dict()

    new = torch.randn_like(images)
    torch.testing.assert_close(step(graphed, new), step(eager, new))
