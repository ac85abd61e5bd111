import subprocess
import sys

import pytest
import torch

from experiments.convolutions import ARCHITECTURES, convolutions_of


@pytest.mark.parametrize(
    ("name", "layers", "distinct", "multiplications"),
    [
        pytest.param("resnet50", 54, 24, 4.089e9, id="resnet50"),  # torchvision's own count: 4.089
        pytest.param("googlenet", 64, 53, 1.507e9, id="googlenet"),  # 1.498 without the auxiliary heads
        pytest.param("alexnet", 8, 8, 0.714e9, id="alexnet"),  # 0.714
        pytest.param("allcnn", 9, 9, 0.271e9, id="allcnn"),
        pytest.param("lenet", 4, 4, 2.873e6, id="lenet"),
    ],
)
def test_layers_are_complete(name, layers, distinct, multiplications):
    found = convolutions_of(name, 2, torch.float16)
    assert sum(layer.count for layer in found) == layers
    assert len(found) == len({layer.problem for layer in found}) == distinct
    work = sum(layer.count * layer.problem.flops for layer in found) / (2 * 2)  # a multiply and an add, two images
    assert work == pytest.approx(multiplications, rel=1e-3)
    assert {layer.problem.dtype for layer in found} == {torch.float16}


def test_problems_of_resnet50():
    layers = convolutions_of("resnet50", 8, torch.bfloat16)
    by_name = {name: layer for layer in layers for name in layer.names}
    assert str(by_name["conv1"].problem) == "7x7 3 -> 64 at 224x224, stride 2, N 8, bfloat16"
    assert by_name["conv1"].problem.output_size == (112, 112)
    assert str(by_name["fc"].problem) == "linear 2048 -> 1000, N 8, bfloat16"
    assert by_name["layer2.1.conv2"].names == ("layer2.1.conv2", "layer2.2.conv2", "layer2.3.conv2")


def test_every_layer_has_a_name_of_the_network():
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            modules = dict(architecture.build().named_modules())
        assert all(path in modules for layer in convolutions_of(name, 1, torch.float32) for path in layer.names)


def test_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="one of resnet50, .*got 'vgg'"):
        convolutions_of("vgg", 1, torch.float32)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        convolutions_of("lenet", 0, torch.float32)


def test_names_are_known_in_no_time():
    code = "import sys; import experiments.convolutions; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
