import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("triton")

from experiments.inspection import TARGETS  # noqa: E402
from experiments.inspection.reports import Launch, Operation, total  # noqa: E402
from kernels import targets  # noqa: E402
from kernels.estimate import Estimate  # noqa: E402

PRODUCTS = Path(__file__).parents[1] / "kernels" / "matrix_products.py"
LAYER = ("--channels", "32", "--size", "8", "8", "--kernel_size", "3", "--padding", "1", "--batch", "4")
TENSOR = {"shape": [256, 256], "dtype": "float16"}
ARGUMENTS = {"a_ptr": TENSOR, "b_ptr": TENSOR, "y_ptr": TENSOR, "M": 256, "N": 256, "K": 256}
ARGUMENTS |= {"BM": 64, "BN": 64, "BK": 32, "GROUP": 4}


def call(**changes: object) -> str:
    """The text of a file of arguments."""
    return json.dumps({"arguments": ARGUMENTS, "grid": [16], "num_warps": 4} | changes)


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from experiments.__main__ import main; sys.argv[1:] = ['inspect', '-h']\ntry: main()"
    code += "\nexcept SystemExit as stop: sys.exit(stop.code or 'torch' in sys.modules)"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert all(name in page for name in (*TARGETS, "resnet50", "weight_gradient", "--kernel", "--logdir"))


def test_targets_are_those_of_the_kernels():
    assert list(targets.TARGETS) == list(TARGETS)


def test_a_user_s_kernel_in_detail(convnets, tmp_path):
    Path("it.json").write_text(call(flops=2 * 256**3))
    run = convnets(
        "inspect", "--target", "sm_80", "--kernel", f"{PRODUCTS}:pointers", "--arguments", "it.json",
        "--json", "out.json", "--plot", "roofline.png", "--logdir", "logs",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "pointers 64x64x32: 16 blocks of 4 warps" in run.out and "registers a thread" in run.out
    assert re.search(r"estimate: [\d.]+ us, [\d.]+ % of the tensor cores' peak.*limit: \w+", run.out)
    assert "NVIDIA A100 Tensor Core GPU Architecture whitepaper" in run.out and "kernels/estimate.py" in run.out
    figures = json.loads(Path("out.json").read_text())
    (operation,) = figures["operations"]
    (launch,) = operation["launches"]
    assert operation["flops"] == 2 * 256**3 and operation["bytes"] == 3 * 256 * 256 * 2
    assert operation["seconds"] == launch["estimate"]["seconds"] > operation["bound"] > 0
    loops = launch["estimate"]["loops"]
    assert sum(loop["trips"] * loop["products"] for loop in loops) == 256**3
    assert Path("roofline.png").read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator("logs")
    events.Reload()
    assert events.Tags()["images"] == ["roofline/sm_80"]


def test_layers_of_an_architecture(convnets, tmp_path):
    run = convnets(
        "inspect", "--target", "sm_90", "--architecture", "lenet", "--limit", "2", "--operation", "forward",
        "--json", "out.json",
    )  # fmt: skip
    assert run.code == 0, run.err
    figures = json.loads(Path("out.json").read_text())
    rows = figures["operations"]
    assert [(row["group"], row["layer"], row["operation"]) for row in rows] == [
        ("lenet", "conv1", "forward"), ("lenet", "conv2", "forward"),
    ]  # fmt: skip
    (sums,) = figures["totals"]
    assert sums["architecture"] == "lenet" and sums["estimated"] == 2
    assert sums["seconds"] == pytest.approx(sum(row["count"] * row["seconds"] for row in rows))
    assert "estimates, not measurements" in run.out
    assert re.search(r"lenet +│ forward +│ +2 │ +0 │ +0 │ ", run.out)  # two layers, none spills, all estimated


def test_amd_has_no_estimate_and_says_so(convnets):
    run = convnets("inspect", "--target", "gfx942", *LAYER, "--operation", "forward,input_gradient")
    assert run.code == 0, run.err
    assert "gfx942: registers, spills and LDS only" in run.out and "estimate" not in run.out
    assert len(re.findall(r"│ (?:forward|input_gradient) +│ \d+x\d+x\d+ +│ +\d+ │ +0 │ +[\d,]+ │", run.out)) == 2


def test_a_kernel_that_does_not_compile_is_one_line(convnets):
    Path("it.json").write_text(call(arguments=ARGUMENTS | {"BM": 48}))
    run = convnets("inspect", "--target", "sm_80", "--kernel", f"{PRODUCTS}:pointers", "--arguments", "it.json")
    assert re.match(r"pointers does not compile for sm_80: CompilationError: at \d+:\d+: .*power of 2", run.error)


def test_a_kernel_with_other_arguments_is_one_line(convnets):
    Path("it.json").write_text(call(arguments={name: ARGUMENTS[name] for name in ARGUMENTS if name != "GROUP"}))
    run = convnets("inspect", "--target", "sm_80", "--kernel", f"{PRODUCTS}:pointers", "--arguments", "it.json")
    assert run.error == "pointers needs GROUP, which the file of arguments does not give"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "sm_70", *LAYER), "argument --target: invalid choice: 'sm_70'"),
        ((*LAYER,), "the following arguments are required: --target"),
        (("--target", "sm_80"), "give one of --channels, --architecture and --kernel, got none"),
        (("--target", "sm_80", *LAYER, "--architecture", "lenet"), "got --channels and --architecture"),
        (("--target", "sm_80", "--architecture", "lenet", "--stride", "2"), "--stride is for a single layer"),
        (("--target", "sm_80", "--channels", "8", "--stride", "2"), "--stride needs --size"),
        (("--target", "sm_80", *LAYER, "--operation", "backward"), "must be among forward, input_gradient"),
        (("--target", "sm_80", *LAYER, "--groups", "3"), "--groups 3 does not divide --channels 32"),
        (("--target", "sm_80", *LAYER, "--kernel_size", "11"), "the window does not fit --size 8 8"),
        (("--target", "sm_80", *LAYER, "--kernel_size", "3", "3", "3"), "--kernel_size must have 1 or 2 extents"),
        (("--target", "sm_80", *LAYER, "--tile", "64,64"), "argument --tile: must be 3 to 6 whole numbers"),
        (("--target", "sm_80", *LAYER, "--tile", "1,2,3"), "--tile 1,2,3, forward: m must be a power of two >= 16"),
        (("--target", "sm_80", *LAYER, "--tile", "512,512,64"), "a thread would hold 2048 values of the result"),
        (("--target", "sm_80", *LAYER, "--tile", "16,16,16,3"), "--tile 16,16,16,3, forward: warps must be a power of"),
        (
            ("--target", "sm_80", *LAYER, "--stride", str(2**31)),
            "must be a whole number of at most 2147483647",
        ),
        (("--target", "sm_80", *LAYER, "--plot", "it.jpeg"), "--plot must be a .png, .pdf, .svg file"),
        (("--target", "gfx90a", *LAYER, "--logdir", "logs"), "of which there are none for gfx90a"),
        (("--target", "sm_80", "--kernel", "it.py:f"), "--kernel and --arguments go together"),
        (("--target", "sm_80", "--kernel", "it.py", "--arguments", "a"), "--kernel must be PATH.PY:FUNCTION"),
        (("--target", "sm_80", "--kernel", "it.py:f", "--arguments", "a"), "there is no file it.py"),
    ],
)
def test_a_wrong_command_line_is_one_line(convnets, arguments, message):
    assert message in convnets("inspect", *arguments).error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'must hold a mapping with "arguments"'),
        (call(warps=4), "keys are arguments, grid, num_warps, num_stages, flops, bytes, got 'warps'"),
        (call(grid=[0]), '"grid" must be a list of 1 to 3 whole numbers, got [0]'),
        (call(num_warps=3), '"num_warps" must be a power of two, got 3'),
        (call(flops=1.5), '"flops" must be a whole number of at least 1, got 1.5'),
        (call(arguments={"x": {"shape": [4]}}), 'argument \'x\': a tensor has "shape", "dtype"'),
        (call(arguments={"x": {"shape": [4], "dtype": "half precision"}}), "'half precision' is no dtype of torch"),
        (call(arguments={"x": TENSOR | {"strides": [1]}}), "the strides must be 2 whole numbers"),
        (call(arguments={"x": TENSOR | {"shape": [2**62, 8]}}), "argument 'x': Storage size calculation overflowed"),
        (call(arguments={"x": TENSOR | {"strides": [-1, 1]}}), "argument 'x': "),
        (call(arguments={"x": "tl.float17"}), "tl.float17 is no type of triton.language"),
    ],
)
def test_a_wrong_file_of_arguments_is_one_line(convnets, text, message):
    Path("it.json").write_text(text)
    run = convnets("inspect", "--target", "sm_80", "--kernel", f"{PRODUCTS}:pointers", "--arguments", "it.json")
    assert message in run.error


def operation(seconds: float | None, flops: int, bytes_: int, count: int = 1, kind: str | None = "16") -> Operation:
    """One launch, estimated at so many seconds."""
    found = None if seconds is None else Estimate(seconds, None, 0.0, "tensor", kind, 0.0, 1, 1, 1, (), 0, None)
    launch = Launch("kernel", (), 1, 32, 4, 0, 0, 8 if seconds is None else 0, 1, flops, bytes_, found)
    return Operation("net", "layer", "problem", "forward", count, flops, bytes_, (launch,))


def test_totals_by_hand():
    """Of the bound, which is the memory's 2039 GB/s or the tensor cores' 312 TFLOP/s of an A100."""
    rates = targets.TARGETS["sm_80"].rates
    of_memory = operation(2.0, 0, int(rates.dram_bytes), kind=None)
    of_products = operation(4.0, int(rates.peak("16")), 0, count=3)
    sums = total([of_memory, of_products, operation(None, 1, 1, count=2)], rates)
    assert (sums.operations, sums.estimated, sums.spilling) == (6, 4, 1)
    assert (sums.seconds, sums.bound) == (pytest.approx(2 + 3 * 4), pytest.approx(1 + 3))
    assert sums.of_bound == pytest.approx((1 / 2 * (1 / 4) ** 3) ** (1 / 4)) and sums.of_peak == pytest.approx(1 / 4)


def test_an_operation_is_the_sum_of_its_launches():
    first, second = operation(1.0, 10, 20), operation(3.0, 0, 5, kind=None)
    both = Operation("", "", "problem", "weight_gradient", 1, 10, 20, (*first.launches, *second.launches))
    assert both.seconds == 4.0 and both.longest is second.launches[0]
    unknown = Operation(
        "", "", "problem", "weight_gradient", 1, 10, 20, (*first.launches, *operation(None, 1, 1).launches)
    )
    assert unknown.seconds is None and unknown.of_peak(targets.TARGETS["sm_80"].rates) is None
