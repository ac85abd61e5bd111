"""`convnets precompile --archive` and `--from`: carried, refused where it does not fit, and whole or not at all."""

import io
import json
import tarfile
from pathlib import Path

import pytest

archive = pytest.importorskip("experiments.precompile.archive", reason="triton is not installed")
from experiments.precompile.relocation import relocate  # noqa: E402

KEYS = tuple(letter * 52 for letter in "ABC")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache, with three kernels that are none."""
    folder = tmp_path / "cache"
    for key in KEYS:
        (folder / key).mkdir(parents=True)
        names = ["k.cubin", "k.json", "k.ptx"]
        for name in names:
            (folder / key / name).write_text(f"{name} of {key}")
        group = {"child_paths": {name: str(folder / key / name) for name in names}}
        (folder / key / "__grp__k.json").write_text(json.dumps(group))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def packed(cache, tmp_path, monkeypatch):
    """An archive of two of them, and another cache, which is empty."""
    path = tmp_path / "kernels.tar.xz"
    assert archive.pack(path, "sm_90", [*KEYS[:2], "D" * 52]) == 2
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as content:
        return {member.name: content.extractfile(member).read() for member in content}


def rewrite(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:xz") as content:
        for name, data_ in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data_)
            content.addfile(info, io.BytesIO(data_))
        for info in more:
            content.addfile(info)


def test_an_archive_holds_what_a_launch_needs_under_the_paths_of_its_new_place(packed, tmp_path):
    other = tmp_path / "other"
    assert archive.unpack(packed, None) == ("sm_90", 2)
    assert sorted(path.name for path in other.iterdir()) == list(KEYS[:2])
    for key in KEYS[:2]:
        assert {path.name for path in (other / key).iterdir()} == {"k.cubin", "k.json", "__grp__k.json"}
        group = json.loads((other / key / "__grp__k.json").read_text())["child_paths"]
        assert group == {name: str(other / key / name) for name in ("k.cubin", "k.json")}
        assert (other / key / "k.cubin").read_text() == f"k.cubin of {key}"
    assert archive.unpack(packed, "sm_90") == ("sm_90", 2)  # over what is there


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"triton": "0.1"}, "Triton 0.1 there, "),
        ({"kernels": "0123"}, "the code of kernels/ (digest) 0123 there, "),
        ({"python": "2.7"}, "Python 2.7 there, "),
        ({"format": 2}, "has archive format 2, not 1"),
        ({"target": "sm_80"}, "target sm_80 there, sm_90 here"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(packed, convnets, tmp_path, changed, message):
    members = members_of(packed)
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changed).encode()
    rewrite(packed, members)
    assert message in convnets("precompile", "--from", str(packed), "--target", "sm_90").error
    assert list((tmp_path / "other").iterdir()) == []


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"), tarfile.TarInfo("/tmp/outside"), tarfile.TarInfo(f"{KEYS[0]}/../../outside"),
        tarfile.TarInfo(f"{KEYS[0]}/.hidden"), tarfile.TarInfo(f"{KEYS[0]}/deep/outside"), tarfile.TarInfo("outside"),
        link(f"{KEYS[0]}/link.json", tarfile.SYMTYPE), link(f"{KEYS[0]}/link.json", tarfile.LNKTYPE),
        link(f"{KEYS[0]}/pipe.json", tarfile.FIFOTYPE), link(KEYS[2], tarfile.DIRTYPE),
    ],
    ids=lambda member: f"{member.name.replace(KEYS[0], 'KEY')}-{member.type.decode()}",
)  # fmt: skip
def test_a_malicious_archive_writes_nothing(packed, convnets, tmp_path, member):
    rewrite(packed, members_of(packed), member)
    assert "is no archive of this command, or is damaged: it has a member" in (
        convnets("precompile", "--from", str(packed)).error
    )
    assert list((tmp_path / "other").iterdir()) == [] and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "no manifest", "no archive"])
def test_a_damaged_archive_writes_nothing(packed, convnets, tmp_path, damage):
    content = packed.read_bytes()
    if damage == "no manifest":
        rewrite(packed, {name: data_ for name, data_ in members_of(packed).items() if name != "manifest.json"})
    else:
        packed.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "no archive": b"words"}[damage])
    assert "is no archive of this command, or is damaged" in convnets("precompile", "--from", str(packed)).error
    assert list((tmp_path / "other").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(packed, convnets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    error = convnets("precompile", "--from", str(packed)).error
    assert error == f"--from {packed}: Not a directory: {tmp_path / 'file' / 'cache'}"


def test_an_archive_that_cannot_be_written_leaves_nothing(cache, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add_folder", fail)
    with pytest.raises(OSError, match=r"kernels.tar.xz cannot be written: No space left on device"):
        archive.pack(tmp_path / "kernels.tar.xz", "sm_90", KEYS)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_moved_cache_names_only_files_that_are_there(cache):
    (cache / KEYS[0] / "k.ptx").unlink()
    relocate(cache)
    group = json.loads((cache / KEYS[0] / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(cache / KEYS[0] / name) for name in ("k.cubin", "k.json")}
