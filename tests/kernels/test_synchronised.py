"""Batch normalisation over processes: two with parts of a batch are one with the whole."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn

from kernels import backend, convert, functional, layers
from tests.kernels.test_norm import EPS, MOMENTUM, Problem, compare, rounded, run

BACKENDS = ["torch", *(["triton"] if backend.INTERPRETING else [])]
PROBLEMS = {
    "all": Problem((5, 3, 4, 3)),
    "channels-last": Problem((5, 3, 4, 3), layout="channels_last"),
    "input-only": Problem((5, 3, 7), given=(), relu=False),
    "no-relu": Problem((5, 3), relu=False),
    "mean-over-spread": Problem((5, 3, 4, 3), mean=1000.0, spread=1.0),
}
PARTS = {
    "unequal": (slice(0, 2), slice(2, 5)),
    "one-empty": (slice(0, 5), slice(5, 5)),
    "one": (slice(0, 1), slice(1, 5)),
}
DTYPES = (torch.float32, torch.float16)


class Block(nn.Module):
    """A residual block on torch.nn, which `convert` fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(self.conv(x)).relu()) + x).relu()


def converted() -> nn.Module:
    torch.manual_seed(0)
    network = convert(Block().double())
    assert sum(isinstance(m, layers.BatchNorm2d) for m in network.modules()) == 2
    return network


def step(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of the input of a step in training."""
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view(y.shape[1:])).sum().backward()
    return {"y": y.detach(), "dinput": x.grad}


def batch() -> Tensor:
    return torch.randn(5, 3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def normalise(t: dict[str, Tensor | None], training: bool, relu: bool) -> Tensor:
    return functional.batch_norm(
        t["input"], t["running_mean"], t["running_var"], t["weight"], t["bias"], training, MOMENTUM, EPS,
        residual=t["residual"], activation="relu" if relu else None, process_group=distributed.group.WORLD,
    )  # fmt: skip


def work(rank: int, folder: str) -> None:
    """Do the work of one of two processes: every case, and a step of a converted network."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for choice in BACKENDS:
        with backend.use_backend(choice):
            for name, problem in PROBLEMS.items():
                for split, parts in PARTS.items():
                    for dtype in DTYPES:
                        wide = ("input", "residual", "dy")
                        whole = rounded(problem, dtype, "cpu")
                        mine = {k: v[parts[rank]] if k in wide and v is not None else v for k, v in whole.items()}
                        results[choice, name, split, dtype] = run(normalise, mine, True, problem.relu)
            network = nn.SyncBatchNorm.convert_sync_batchnorm(converted())
            parallel = nn.parallel.DistributedDataParallel(network)
            result = step(parallel, batch()[PARTS["unequal"][rank]])
            gradients = {name: 2 * p.grad for name, p in network.named_parameters()}  # of the sum, not the average
            results[choice] = result, gradients, dict(network.named_buffers())
            mean, var = torch.arange(3.0), torch.arange(1.0, 4.0)
            functional.batch_norm(torch.ones(0, 3), mean, var, training=True, process_group=distributed.group.WORLD)
            results[choice, "empty"] = mean, var
    torch.save(results, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """The results of two processes."""
    folder: Path = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (str(folder),), 2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("split", PARTS)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("choice", BACKENDS)
def test_two_processes_normalise_as_one(choice, name, split, dtype, results):
    one, other = (result[choice, name, split, dtype] for result in results)
    found = {}
    for key in one:
        if key in ("y", "dinput", "dresidual"):
            found[key] = torch.cat([one[key], other[key]])
        elif "running" in key:
            assert torch.equal(one[key], other[key])
            found[key] = one[key]
        else:
            found[key] = one[key] + other[key]
    compare(PROBLEMS[name], rounded(PROBLEMS[name], dtype, "cpu"), True, found)


@pytest.mark.parametrize("choice", BACKENDS)
def test_a_converted_network_trains_on_two_processes_as_on_one(choice, results):
    network = converted()
    with backend.use_backend(choice):
        expected = step(network, batch())
    for part, result in zip(PARTS["unequal"], results, strict=True):
        found, gradients, buffers = result[choice]
        torch.testing.assert_close(found, {name: t[part] for name, t in expected.items()})
        torch.testing.assert_close(gradients, {name: p.grad for name, p in network.named_parameters()})
        torch.testing.assert_close(buffers, dict(network.named_buffers()))


@pytest.mark.parametrize("by_lightning", [False, True], ids=["torch", "lightning"])
def test_torch_converts_around_our_layers(by_lightning):
    network = nn.Sequential(layers.BatchNorm2d(3, activation="relu"), nn.BatchNorm2d(3), nn.Sequential(converted()))
    ours = [module for module in network.modules() if isinstance(module, layers.BatchNorm2d)]
    expected = copy.deepcopy(network)
    x = batch()
    if by_lightning:
        from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm  # takes long, in each process

        network = TorchSyncBatchNorm().apply(network.double())
    else:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network.double())
    assert [module for module in network.modules() if isinstance(module, layers.BatchNorm2d)] == ours
    assert type(network[1]) is nn.SyncBatchNorm and "synchronised" in repr(network[0])
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in network[2].modules())
    assert torch.equal(network.eval()(x), expected.double().eval()(x))
    assert torch.equal(ours[0].train()(x), expected[0].train()(x)), "one process is plain"


@pytest.mark.parametrize("choice", BACKENDS)
def test_batches_that_are_all_empty_leave_the_running_statistics(choice, results):
    for result in results:
        torch.testing.assert_close(result[choice, "empty"], (torch.arange(3.0), torch.arange(1.0, 4.0)), rtol=0, atol=0)


def test_one_position_is_a_batch_only_together(results):
    with pytest.raises(ValueError, match="training needs more than one value per channel"):
        functional.batch_norm(torch.ones(1, 3), None, None, training=True)
