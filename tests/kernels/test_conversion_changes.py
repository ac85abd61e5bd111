"""A converted model that is changed or traced later on does what the original would."""

import copy
import importlib.util
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import kernels
from kernels import layers

pytestmark = pytest.mark.usefixtures("triton_only")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.extra = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = y if self.extra is None else self.extra(y)
        return self.relu(y + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.drop = nn.Sequential(Block(), Block()), nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        return self.drop(self.head(self.blocks(image))) * scale


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(2, 4, 6, 6, device=device)


def replaces_a_fused_layer(net):
    net.blocks[0].norm = nn.Identity()


def replaces_a_relu(net):
    net.blocks[1].relu = nn.Tanh()


def replaces_a_pool(net):
    net.head[2] = nn.AvgPool2d(2)


def replaces_a_block(net):
    net.blocks[1] = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.ones_(net.blocks[1].weight)


def replaces_a_layer_that_stands_alone(net):
    net.blocks[0].conv = nn.Identity()


def gives_a_part(net):
    net.blocks[0].extra = nn.Tanh()


def appends_a_part(net):
    net.head.append(nn.Tanh())


def takes_a_part_away(net):
    del net.head[2]


def hooks_a_relu(net):
    net.blocks[0].relu.register_forward_hook(lambda module, inputs, output: output * 2)


def hooks_a_fused_layer(net):
    net.blocks[0].norm.register_forward_hook(lambda module, inputs, output: output - 1)


def hooks_a_block(net):
    net.blocks[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def trains_a_block(net):
    net.blocks[0].train()


def gives_a_block_a_forward(net):
    net.blocks[0].forward = torch.tanh


def gives_a_relu_a_forward(net):
    net.head[1].forward = torch.tanh


def gives_a_fused_layer_a_forward(net):
    net.head[0].forward = torch.tanh


def pools_otherwise(net):
    net.head[2].stride = 1


CHANGES = [
    replaces_a_fused_layer, replaces_a_relu, replaces_a_pool, replaces_a_block, replaces_a_layer_that_stands_alone,
    gives_a_part, appends_a_part, takes_a_part_away, hooks_a_relu, hooks_a_fused_layer, hooks_a_block, trains_a_block,
    gives_a_block_a_forward, gives_a_relu_a_forward, gives_a_fused_layer_a_forward, pools_otherwise,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_made_later_are_honoured(change, x):
    model = Net().to(x.device).eval()
    converted = kernels.convert(model)
    assert len(converted.report.fused) == 3
    before = converted(x)
    for net in (model, converted):
        change(net)
        net.to(x.device)
    torch.testing.assert_close(converted(x), model(x))
    assert not torch.equal(converted(x), before)
    torch.testing.assert_close(copy.deepcopy(converted)(x), model(x))
    torch.testing.assert_close(torch.compile(converted, backend="eager")(x), model(x))


def test_global_hooks_see_every_layer(x):
    model = Net().to(x.device).eval()
    converted = kernels.convert(model)
    converted(x)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module._get_name()))
    try:
        converted(x)
        ours = seen.copy()
        seen.clear()
        model(x)
    finally:
        handle.remove()
    assert [name.removeprefix("Converted") for name in ours] == seen


def test_folding_needs_code_that_goes_one_way(x):
    class Scaled(nn.Sequential):
        def forward(self, x, scale=None):
            y = super().forward(x)
            return y if scale is None else self[0](x) * scale

    model = Scaled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).to(x.device).eval()
    layers.Conv2d(4, 4, 1).to(x.device)(x)
    with pytest.raises(ValueError, match="fold_batch_norm=True, but .* its forward has optional arguments"):
        kernels.convert(model, fold_batch_norm=True)


def test_a_head_may_be_replaced_without_loss(x, monkeypatch):
    """As in fine-tuning: what is not fused itself is called wherever it is."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(6, 2)).to(x.device)
    converted = kernels.convert(model)
    converted[2] = nn.Linear(6, 3).to(x.device)
    seen = []
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: seen.append(x))
    assert converted(x).shape == (2, 4, 6, 3) and not seen


def test_says_what_it_takes(x):
    converted = kernels.convert(Net().to(x.device).eval())
    torch.testing.assert_close(converted(image=x, scale=2.0), 2 * converted(x))
    traced = fx.symbolic_trace(converted)
    assert [node.target for node in traced.graph.nodes if node.op == "placeholder"] == ["image", "scale"]
    assert type(traced.get_submodule("blocks.0.norm")) is layers.BatchNorm2d
    torch.testing.assert_close(traced(x), converted(x))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(converted, (x,), dynamic_shapes={"image": {0: batch}})
    three = torch.cat([x, x[:1]])
    torch.testing.assert_close(exported.module()(three), converted(three))
    torch.testing.assert_close(torch.jit.script(converted)(x), converted(x))
    assert type(converted.blocks[0].norm) is layers.BatchNorm2d


def test_a_traced_model_keeps_its_modes(x):
    traced = fx.symbolic_trace(kernels.convert(Net().to(x.device)))
    norm = traced.get_submodule("blocks.0.norm")
    traced.eval()(x)
    assert norm.num_batches_tracked == 0
    traced.train()(x)
    assert norm.num_batches_tracked == 1 and not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_features_can_be_extracted(x):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = Net().to(x.device).eval()
    converted = kernels.convert(model)
    assert get_graph_node_names(converted) == get_graph_node_names(model)
    nodes = {"blocks.0.relu": "fine", "head.1": "deep"}
    ours, theirs = (create_feature_extractor(net, nodes)(x) for net in (converted, model))
    torch.testing.assert_close(ours, theirs)


def test_a_graph_module_keeps_its_code(x):
    traced = fx.symbolic_trace(Net().to(x.device).eval())
    converted = kernels.convert(traced)
    assert "convert the model that it was traced from" in converted.report.untraced[""]
    torch.testing.assert_close(converted(x), traced(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(converted))(x), traced(x))


def test_a_copy_of_a_changed_model_stays_changed(x):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).to(x.device)
    converted = kernels.convert(model)
    converted[1] = nn.Tanh()
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        torch.testing.assert_close(twin(x), F.tanh(model[0](x)))


def test_many_classes_can_be_compiled(x):
    """torch.compile gives up on a function after eight versions, and these would share one."""
    for number in range(9):
        net = type(f"Net{number}", (Net,), {"forward": lambda self, image: self.head(image) * 2})().to(x.device)
        converted = kernels.convert(net.eval())
        compiled = torch.compile(converted, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), converted(x))
