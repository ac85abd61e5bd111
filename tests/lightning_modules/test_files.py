"""Files are whole, whatever happens while they are written."""

import errno
import os
from pathlib import Path

import pytest

from lightning_modules.files import replace, replacing, replacing_all
from tests.full_disk import full_disk


def test_a_file_is_replaced_by_another_file(tmp_path):
    path = tmp_path / "figures.json"
    replace(path, "old")
    path.chmod(0o640)
    with path.open() as reader:
        replace(path, "grün")
        assert reader.read() == "old"  # who reads it meanwhile has a whole one
    assert path.read_text(encoding="utf-8") == "grün" and path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_draft_has_the_suffix_and_the_directory_of_its_file(tmp_path):
    with replacing(tmp_path / "plot.png") as draft:
        assert draft.suffix == ".png" and draft.parent == tmp_path
        draft.touch()


def test_an_error_or_an_interruption_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    replace(path, "old")
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), replacing(path) as draft:
            draft.write_text("half")
            raise failure
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_leaves_the_old_file_and_is_told_with_its_path(tmp_path):
    path = tmp_path / "table.csv"
    replace(path, "old")
    with pytest.raises(OSError, match=r"table.csv cannot be written: File too large$"), full_disk(1000):
        replace(path, 2000 * "x")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/x cannot be written: No such file or directory$"):
        replace(tmp_path / "none" / "x", "text")
    with pytest.raises(IsADirectoryError, match="cannot be written: Is a directory$"):
        replace(tmp_path, "text")


def test_an_error_of_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), replacing(tmp_path / "x"):
        (tmp_path / "absent").read_text()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    replace(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    replace(path, "text")
    assert os.read(reader, 10) == b"text" and path.is_fifo()
    os.close(reader)


def test_all_files_or_none_are_replaced(tmp_path):
    with replacing_all(tmp_path / "new") as draft:
        (draft / "maps").mkdir()
        (draft / "maps" / "0.npy").write_text("old")
        (draft / "table.csv").write_text("old")
    kept = tmp_path / "new"
    error = pytest.raises(OSError, match="new cannot be written: File too large")
    with full_disk(1000), error, replacing_all(kept) as draft:
        (draft / "table.csv").write_text("new")
        (draft / "maps").mkdir()
        (draft / "maps" / "0.npy").write_bytes(2000 * b"x")
    (kept / "directory").mkdir()
    with pytest.raises(IsADirectoryError, match="directory is a directory"), replacing_all(kept) as draft:
        (draft / "table.csv").write_text("new")
        (draft / "directory").write_text("new")
    assert [(kept / name).read_text() for name in ("table.csv", "maps/0.npy")] == ["old", "old"]
    assert {path.name for path in kept.iterdir()} == {"table.csv", "maps", "directory"}
    assert Path(kept / "maps").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_read_only_system_is_told_with_the_path(tmp_path, monkeypatch):
    """Where removing the draft, which is not there, fails like the writing."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="last.ckpt cannot be written: Read-only file system"):
        replace(tmp_path / "last.ckpt", b"content")
