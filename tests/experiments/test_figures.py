import importlib
import json
import re
from pathlib import Path

import pytest

from experiments import figures
from experiments.figures import NAMES
from experiments.gallery.example import Claim, written
from experiments.gallery.run import ROOT, executed, experiment, figures_of, write
from kernels.backend import INTERPRETING


@pytest.mark.parametrize("name", NAMES)
def test_claims_hold(name, tmp_path):
    """Each experiment, run as the command runs it; on the CPU those of Triton interpret its kernels."""
    done = executed(name)
    assert done.example.claims, "an experiment claims something"
    assert [claim for claim in done.example.claims if not claim.holds] == []
    assert done.title and done.notice and done.source and done.shows
    assert (done.launches > 0) == (done.backend == "triton")
    assert done.backend == (experiment(name).BACKEND if INTERPRETING else "torch")
    write(done, tmp_path)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / f"{name}.json").read_text()) == json.loads(json.dumps(figures_of(done)))


def test_every_file_is_listed():
    files = {path.stem.replace("_", "-") for path in Path(figures.__file__).parent.glob("*.py")} - {"--init--"}
    assert files == set(NAMES)


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Claim("", 2, 2), True), (Claim("", 2, 2.1), False), (Claim("", 2, 2.1, within=0.2), True),
        (Claim("", 2, 3, relation=">="), True), (Claim("", 2, 3, relation="<="), False),
        (Claim("", 0, float("nan"), within=1), False), (Claim("", 0, float("nan"), relation=">="), False),
    ],
)  # fmt: skip
def test_a_claim_is_held_to_its_number(claim, holds):
    assert claim.holds == holds


def test_numbers_are_written_as_a_reader_wants_them():
    assert [written(number) for number in (267960.0, 0.12345, 1e-7, 8.5e9)] == [
        "267,960", "0.1235", "1e-07", "8,500,000,000"
    ]  # fmt: skip


def test_the_command(convnets, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert all(name in convnets("figures").out for name in NAMES)
    done = convnets("figures", "zero-padding", "--output", "out", "--logdir", "logs")
    assert done.code == 0 and "holds" in done.out
    assert {path.name for path in Path("out").iterdir()} == {"zero-padding.png", "zero-padding.json"}
    assert list(Path("logs/zero-padding").glob("events*"))


def test_the_gallery_is_one_page_that_needs_no_network(convnets, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("experiments.gallery.run.NAMES", ("zero-padding",))
    assert convnets("figures", "--all", "--output", "out").code == 0
    page = Path("out/index.html").read_text()
    assert "data:image/png;base64," in page and "def forward(" in page and "experiments/figures" not in page
    assert "http" not in page and "<script" not in page


def test_a_claim_that_does_not_hold_is_said(convnets, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(experiment("zero-padding"), "wrong_sizes", lambda: (3, 90))
    done = convnets("figures", "zero-padding", "--output", "out")
    assert done.code == 1 and "DOES NOT HOLD" in done.out
    claims = json.loads(Path("out/zero-padding.json").read_text())["claims"]
    assert [claim["holds"] for claim in claims].count(False) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zero",), "NAME must be one of .*zero-padding.*, got zero"),
        (("zero-padding", "--all"), "either names or --all"),
        (("zero-padding", "--output", "file"), "--output must be a directory, got file: file is a file"),
    ],
)
def test_errors(convnets, arguments, message):
    Path("file").touch()
    assert re.search(message, convnets("figures", *arguments).error)


def test_sources_are_the_projects():
    assert Path(importlib.import_module("experiments").__file__).parent.parent == ROOT
