import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.architectures import (
    ClassificationNet,
    ConnectivityNet,
    MaxoutNet,
    RecurrentLabelling,
    SignalNet,
    SparseAutoencoder,
    SpatialTransducer,
    VideoNet,
)
from tests.lightning_modules.test_architectures import volumes
from tests.lightning_modules.training import assert_trains_as_in_torch

SMALL = [
    *(
        pytest.param(lambda head=head: ClassificationNet((2, 9, 10), head, (4, 5), 3, 2, 2, classes=3), id=head)
        for head in ("fully_connected", "pooled_regions", "class_maps")
    ),
    pytest.param(
        lambda: MaxoutNet((2, 9, 8), (3, 4, 3), (2, 3, 2), (4, 3, 3), (2, 1, 2), (3, 2, 2), 5, 3, classes=3),
        id="maxout",
    ),
    *(
        pytest.param(lambda sharing=sharing: ConnectivityNet((2, 4, 4), sharing, 2, 2, (4, 6), (3, 3), 3), id=sharing)
        for sharing in ("full", "tiled", "local")
    ),
    pytest.param(lambda: SpatialTransducer((2, 7, 6), (3, 4), classes=3), id="spatial-transducer"),
    pytest.param(lambda: RecurrentLabelling((2, 5, 4), (3, 4), steps=2, classes=3), id="recurrent-labelling"),
    pytest.param(lambda: SignalNet((2, 70), (4, 5), 9, classes=3), id="signal"),
    pytest.param(lambda: VideoNet((2, 4, 9, 8), (4, 5), classes=3), id="video"),
]


def labels_for(network: nn.Module, images: Tensor) -> Tensor:
    """Random labels for what the network labels: images or pixels."""
    dense = isinstance(network, RecurrentLabelling | SpatialTransducer)
    shape = (len(images), *images.shape[2:]) if dense else (len(images),)
    return torch.randint(network.classes, shape, device=images.device)


def cross_entropy(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the sum of the outputs' losses, with pixels as rows: the loss of maps is nondeterministic on a GPU."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return sum(F.cross_entropy(scores.movedim(1, -1).flatten(0, -2), labels.flatten()) for scores in outputs)


@pytest.mark.parametrize("build", SMALL)
def test_trains_through_triton_as_in_torch(build, device, triton_only):
    network = build().to(device)
    images = torch.randn(8, *network.input_shape, device=device)
    assert_trains_as_in_torch(network, cross_entropy, images, labels_for(network, images))


def test_an_autoencoder_trains_through_triton_as_in_torch(device, triton_only):
    def loss(outputs: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
        reconstruction, code = outputs
        return (code.square() + 0.01).sqrt().mean() + (reconstruction - images).square().mean()

    images = torch.randn(8, 2, 8, 9, device=device)
    assert_trains_as_in_torch(SparseAutoencoder((2, 8, 9), 4, 5, stride=2).to(device), loss, images, images)


@pytest.mark.parametrize("build", SMALL)
def test_scores(build):
    network = build().eval()
    images = torch.randn(2, *network.input_shape)
    labels = labels_for(network, images)
    assert network(images).shape == (2, network.classes, *labels.shape[1:])
    assert network(images[:0]).shape == (0, network.classes, *labels.shape[1:])


def test_volumes_of_the_heads_of_figure_9_11():
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        for head, expected in {
            "fully_connected": {"body": (1, 64, 16, 16), "fc": (1, 1000)},
            "pooled_regions": {"body": (1, 64, 3, 3), "fc": (1, 1000)},
            "class_maps": {"body": (1, 64, 16, 16), "maps": (1, 1000, 16, 16), "average": (1, 1000, 1, 1)},
        }.items():
            network = ClassificationNet(head=head)
            assert volumes(network, images) == expected
            units = {"fully_connected": 16_384, "pooled_regions": 576}
            assert head == "class_maps" or network.fc.in_features == units[head]
        assert volumes(network.body, images) == {
            "0": (1, 64, 256, 256),
            "1": (1, 64, 64, 64),
            "2": (1, 64, 64, 64),
            "3": (1, 64, 16, 16),
        }


def test_a_window_for_each_convolution():
    network = ClassificationNet((1, 16, 16), "class_maps", (4, 5), kernel_size=(11, 1), pool=2, classes=7)
    assert [network.body[i].kernel_size for i in (0, 2)] == [(11, 11), (1, 1)]
    assert network(torch.randn(2, 1, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize("head", ["pooled_regions", "class_maps"])
def test_heads_for_images_of_any_size(head):
    network = ClassificationNet((1, 16, 16), head, (4, 5), pool=2, regions=3, classes=7)
    for height, width in ((network.smallest, network.smallest), (7, 31), (40, 16)):
        assert network(torch.randn(2, 1, height, width)).shape == (2, 7)
    with pytest.raises(ValueError, match=rf"\[N, 1, H, W\] with H and W of at least {network.smallest}, got"):
        network(torch.randn(2, 1, network.smallest - 1, 40))


def test_class_maps_are_averaged_over_positions():
    network = ClassificationNet((1, 8, 8), "class_maps", (4,), pool=2, classes=3)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images), network.maps(network.body(images)).mean((2, 3)))


def test_volumes_of_the_maxout_network():
    network = MaxoutNet()
    with torch.no_grad():
        assert volumes(network.body, torch.randn(1, 3, 32, 32)) == {
            "0": (1, 3, 32, 32),
            "1": (1, 96, 33, 33),
            "2": (1, 96, 16, 16),
            "3": (1, 96, 16, 16),
            "4": (1, 192, 15, 15),
            "5": (1, 192, 7, 7),
            "6": (1, 192, 7, 7),
            "7": (1, 192, 9, 9),
            "8": (1, 192, 5, 5),
            "9": (1, 192, 5, 5),
        }
    assert network.head[0].in_features == 4800 and network.head[0].out_features == 2500
    mnist = MaxoutNet((1, 28, 28), (48, 48, 24), (2, 2, 4), paddings=(0, 3, 3), hidden=0)
    assert mnist(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_maxout_is_the_largest_of_linear_functions():
    network, images = MaxoutNet((1, 9, 9), (3, 4, 3), kernel_sizes=(3, 3, 3), hidden=5).eval(), torch.randn(2, 1, 9, 9)
    conv = network.body[1]
    pieces = F.conv2d(images, conv.weight, conv.bias, padding=conv.padding)  # [N, 6, 15, 15]
    torch.testing.assert_close(conv(images), pieces.unflatten(1, (3, 2)).amax(2))


def test_parameters_of_each_connectivity():
    full, tiled, local = (ConnectivityNet(connectivity=c, tile=3) for c in ("full", "tiled", "local"))
    for layer, positions in (("conv1", 12 * 12), ("conv2", 6 * 6)):
        for name in ("weight", "bias"):
            shared = full.get_parameter(f"{layer}.{name}").numel()
            assert tiled.get_parameter(f"{layer}.{name}").numel() == 9 * shared
            assert local.get_parameter(f"{layer}.{name}").numel() == positions * shared
    assert volumes(local, torch.randn(2, 1, 12, 12)) == {
        "conv1": (2, 16, 12, 12),
        "pool1": (2, 16, 6, 6),
        "conv2": (2, 32, 6, 6),
        "pool2": (2, 32, 3, 3),
        "fc": (2, 10),
    }


@pytest.mark.parametrize("connectivity", ["tiled", "local"])
def test_equal_kernels_make_each_connectivity_a_convolution(connectivity):
    full, other = ConnectivityNet(groups=4), ConnectivityNet(connectivity=connectivity, groups=4)
    state = other.state_dict()
    for name, value in full.state_dict().items():
        state[name] = value.expand_as(state[name])
    other.load_state_dict(state)
    images = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(other(images), full(images))


def test_each_output_channel_sees_two_input_channels():
    network = ConnectivityNet(filters=(4, 4), groups=2)
    volume = torch.randn(1, 4, 6, 6, requires_grad=True)
    (seen,) = torch.autograd.grad(network.conv2(volume)[:, :2].sum(), volume)
    assert [bool(channel.any()) for channel in seen[0]] == [True, True, False, False]


@pytest.mark.parametrize("network", [SpatialTransducer((2, 9, 9), (3, 4, 5)), RecurrentLabelling((2, 9, 9), (3, 4))])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (13, 7)])
def test_labels_for_images_of_any_size(network, size):
    assert network.eval()(torch.randn(2, 2, *size)).shape == (2, 11, *size)


def test_volumes_of_the_spatial_transducer():
    network, shapes = SpatialTransducer().eval(), {}
    for name in ("stem", "down.0", "down.1", "down.2", "up.0", "up.1", "up.2", "scores"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    network(torch.randn(1, 3, 64, 64))
    assert shapes == {
        "stem": (16, 64, 64),
        "down.0": (32, 32, 32),
        "down.1": (64, 16, 16),
        "down.2": (64, 8, 8),
        "up.0": (64, 16, 16),
        "up.1": (32, 32, 32),
        "up.2": (16, 64, 64),
        "scores": (11, 64, 64),
    }


def test_volumes_of_the_signal_network():
    network, signals = SignalNet(), torch.randn(2, 1, 1024)
    assert [tuple(shape[1:]) for shape in volumes(network.body, signals).values()] == [
        *((16, 256), (16, 256), (16, 64)),
        *((32, 64), (32, 64), (32, 16)),
        *((64, 16), (64, 16), (64, 4)),
    ]
    assert volumes(network, signals) == {"body": (2, 64, 4), "average": (2, 64, 1), "fc": (2, 10)}
    assert network.eval()(torch.randn(1, 1, *network.smallest)).shape == (1, 10)


def test_volumes_of_the_video_network():
    network, videos = VideoNet(), torch.randn(2, 1, 8, 24, 24)
    assert volumes(network.body, videos) == {
        "0": (2, 8, 8, 12, 12),
        "1": (2, 16, 4, 6, 6),
        "2": (2, 32, 2, 3, 3),
    }
    assert volumes(network, videos) == {"body": (2, 32, 2, 3, 3), "average": (2, 32, 1, 1, 1), "fc": (2, 9)}
    assert network(torch.randn(1, 1, *network.smallest)).shape == (1, 9)


def test_the_autoencoder_is_tied():
    network, images = SparseAutoencoder((2, 9, 10), 6, 4, stride=3), torch.randn(3, 2, 9, 10)
    assert list(network.state_dict()) == ["conv.weight"]
    reconstruction, code = network(images)
    assert code.shape == (3, 6, 2, 3)
    torch.testing.assert_close(code, F.conv2d(images, network.conv.weight, stride=3))
    (transposed,) = torch.autograd.grad(
        (F.conv2d(images.requires_grad_(), network.conv.weight, stride=3) * code).sum(), images
    )
    torch.testing.assert_close(reconstruction, transposed)


def test_the_autoencoder_of_one_position_is_reconstruction_ica():
    network, patches = SparseAutoencoder((1, 5, 5), 7, 5), torch.randn(4, 1, 5, 5)
    reconstruction, code = network(patches)
    kernels = network.conv.weight.flatten(1)
    torch.testing.assert_close(code.flatten(1), patches.flatten(1) @ kernels.T)
    torch.testing.assert_close(reconstruction.flatten(1), patches.flatten(1) @ kernels.T @ kernels)


def test_steps_of_the_recurrent_labelling():
    network, images = RecurrentLabelling((2, 6, 5), (3, 4), steps=3), torch.randn(2, 2, 6, 5)
    network.eval()
    first, second, third = network.refinements(images)
    assert torch.equal(network(images), third)
    assert not torch.equal(first, second)
    network.steps = 1
    assert torch.equal(network(images), first)
    network.train().steps = 3
    last, *earlier = network(images)
    assert len(earlier) == 2 and last.shape == earlier[0].shape == (2, 11, 6, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClassificationNet(head="mean"), r"head must be one of fully_connected, .*got 'mean'"),
        (lambda: ClassificationNet(kernel_size=(11, 3, 1)), r"one for each of 2 filters, got \(11, 3, 1\)"),
        (lambda: ClassificationNet((3, 15, 256)), r"at least \(1, 16, 16\), got \(3, 15, 256\)"),
        (lambda: ClassificationNet((3, 11, 12), "pooled_regions"), r"at least \(1, 12, 12\), got \(3, 11, 12\)"),
        (lambda: MaxoutNet((1, 5, 28), paddings=(0, 3, 3)), r"\(8, 8, 5\).*leave something, got \(1, 5, 28\)"),
        (lambda: ConnectivityNet(connectivity="sparse"), r"one of full, tiled, local, got 'sparse'"),
        (lambda: ConnectivityNet(kernel_sizes=(5, 4)), r"kernel_sizes must be odd, got \(5, 4\)"),
        (lambda: ConnectivityNet(groups=3), r"groups"),
        (lambda: ConnectivityNet((1, 3, 8)), r"at least \(1, 4, 4\)"),
        (lambda: SpatialTransducer((0, 8, 8)), r"at least \(1, 1, 1\), got \(0, 8, 8\)"),
        (lambda: RecurrentLabelling(steps=0), r"steps must be at least 1, got 0"),
        (lambda: SignalNet((1, 252)), r"\(channels, length\) of at least \(1, 253\), got \(1, 252\)"),
        (lambda: SignalNet(kernel_size=80), r"kernel_size must be odd, got 80"),
        (lambda: VideoNet((1, 3, 24, 24)), r"\(channels, depth, height, width\) of at least \(1, 4, 8, 8\)"),
        (lambda: SparseAutoencoder((1, 10, 24)), r"at least \(1, 11, 11\), got \(1, 10, 24\)"),
    ],
)
def test_what_cannot_be_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (ClassificationNet((1, 16, 16)), (2, 1, 16, 17), r"\[N, 1, 16, 16\], got \[2, 1, 16, 17\]"),
        (MaxoutNet((1, 28, 28), hidden=0), (2, 3, 28, 28), r"\[N, 1, 28, 28\], got \[2, 3, 28, 28\]"),
        (ConnectivityNet(), (2, 1, 13, 12), r"\[N, 1, 12, 12\]"),
        (SpatialTransducer(), (3, 32, 32), r"\[N, 3, H, W\] with H and W of at least 1, got \[3, 32, 32\]"),
        (RecurrentLabelling(), (2, 1, 32, 32), r"\[N, 3, H, W\].*got \[2, 1, 32, 32\]"),
        (SignalNet(), (2, 1, 252), r"\[N, 1, L\] with L of at least 253, got \[2, 1, 252\]"),
        (VideoNet(), (2, 1, 8, 7, 24), r"\[N, 1, D, H, W\] with D and H and W of at least 4 and 8 and 8"),
        (SparseAutoencoder(), (2, 1, 24, 10), r"H and W of at least 11, got \[2, 1, 24, 10\]"),
    ],
)
def test_images_that_do_not_fit(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network(torch.randn(shape))
