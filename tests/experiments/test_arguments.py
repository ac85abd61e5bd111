"""Where tools write is checked before they work, by trying: in one line, and without a trace."""

import json
from pathlib import Path

import pytest

from experiments.arguments import check_file, check_folder

LAYER = ("--channels", "8", "--size", "4", "4")
FILES = {
    "bench --csv": (),
    "bench --plot": ("--limit", "1"),
    "inspect --json": ("--target", "sm_80", *LAYER),
    "inspect --plot": ("--target", "sm_80", *LAYER),
    "precompile --archive": ("--architecture", "LeNet", "--target", "sm_80"),
    "results --markdown": ("digits",),
    "summary --json": ("--architecture", "LeNet"),
    "tune --table": ("--target", "sm_80", "--channels", "8", "--outputs", "8"),
}
FOLDERS = {
    "figures --output": ("stride",),
    "figures --logdir": ("stride",),
    "gabor --output": ("--compare",),
    "inspect --logdir": ("--target", "sm_80", *LAYER),
}
ENDINGS = {"--plot": ".png", "--archive": ".tar.xz"}


def traces() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.fixture
def places(convnets):
    Path("file").touch()
    for ending in ("", *ENDINGS.values()):
        Path(f"folder{ending}").mkdir()
    return convnets


@pytest.mark.parametrize("option", FILES)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("folder", "in an existing directory, got folder{}, which is a directory"),
        ("none/it", "in an existing directory, got none/it{}"),
        ("file/it", "in an existing directory, got file/it{}"),
        ("/proc/it", "/proc/it{} cannot be written: "),
        ("n" * 300, "{} cannot be written: File name too long"),
    ],
    ids=["directory", "missing", "file", "proc", "long"],
)
def test_a_file_that_cannot_be_written_is_found_before_the_work(places, option, path, why):
    tool, name = option.split()
    ending, before = ENDINGS.get(name, ""), traces()
    error = places(tool, *FILES[option], name, path + ending).error
    assert error.startswith(name) and why.format(ending) in error and len(error.splitlines()) == 1
    assert traces() == before


@pytest.mark.parametrize("option", FOLDERS)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("file", "must be a directory, got file: file is a file"),
        ("file/it", "/file is a file"),
        ("/proc/it", "/proc/it cannot be written: "),
        ("n" * 300, " cannot be written: File name too long"),
    ],
    ids=["file", "below", "proc", "long"],
)
def test_a_folder_that_cannot_be_written_is_found_before_the_work(places, option, path, why):
    tool, name = option.split()
    before = traces()
    error = places(tool, *FOLDERS[option], name, path).error
    assert error.startswith(name) and why in error and traces() == before


def test_what_can_be_written_passes_and_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("it.png").write_text("here")
    Path("link").symlink_to("it.png")
    for path in ("it.png", "new.png", "link"):
        check_file(Path(path), "--plot", *((".png",) if path != "link" else ()))
    check_folder(Path("new/below"))
    check_folder(Path())
    check_file(None, "--json")
    assert Path("it.png").read_text() == "here" and traces() == ["it.png", "link"]


def test_what_is_open_already_may_be_written_to(convnets):
    run = convnets("summary", "--architecture", "LeNet", "--json", "/dev/stderr")
    assert run.code == 0 and json.loads(run.err)["network"] == "LeNet"


def test_a_name_that_is_only_an_ending_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"--plot must be a \.png, \.pdf file in an existing directory, got"):
        check_file(tmp_path / ".png", "--plot", ".png", ".pdf")
