"""Compiled kernels in one file, to be carried to another machine: MANIFEST, then the files of each kernel's folder.

Only what a launch needs is carried: the binary, its description and the group file that lists them, and before Triton
3.7 the launcher. They are found there if all that Triton names a kernel's folder after is as it was here.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import platform
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.compiler import make_backend
from triton.runtime.cache import triton_key

import kernels
from experiments.precompile.cache import cache_folder, libraries_of
from experiments.precompile.relocation import regroup
from experiments.precompile.target import builds_launchers, gpu_target
from lightning_modules.files import replacing

MANIFEST = "manifest.json"
FORMAT = 1
CARRIED = (".cubin", ".hsaco", ".json", ".so")
MEMBER = re.compile(r"[A-Z2-7]{52}/\w[\w.+-]*")  # a folder of Triton's cache, and a file in it
WORDS = {  # what must agree, and what to call it where it does not
    "format": "archive format", "target": "target", "triton": "Triton", "python": "Python", "machine": "machine",
    "build": "Triton's build", "compiler": "ptxas or Triton's backend", "environment": "Triton's environment variables",
    "kernels": "the code of kernels/ (digest)",
}  # fmt: skip


def manifest_for(target: str) -> dict[str, Any]:
    """Return all that decides whether kernels for `target` are found in the cache and can be used."""
    return {
        "format": FORMAT,
        "target": target,
        "triton": triton.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),  # Triton's build is of one, and launchers are
        "machine": platform.machine(),
        "build": _digest([triton_key().encode()]),
        "compiler": _digest([make_backend(gpu_target(target)).hash().encode()]),
        "environment": {name: str(value) for name, value in sorted(get_cache_invalidating_env_vars().items())},
        "kernels": _code(target),
    }


def _code(target: str) -> str:
    """Return a digest of the kernels, and of the tiles that are chosen for `target`."""
    room = Path(kernels.__file__).parent
    files = [*sorted(room.rglob("*.py")), room / "tuned" / f"{target}.json"]
    return _digest(
        part for file in files if file.is_file() for part in (str(file.relative_to(room)).encode(), file.read_bytes())
    )


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def pack(path: Path, target: str, keys: Iterable[str]) -> int:
    """Write the kernels in those folders of the cache to an archive, those that are there; return their number.

    Raises:
        OSError: the file cannot be written; an earlier one is left as it was.
    """
    cache, count = cache_folder(), 0
    shared: dict[str, None] = {}
    with replacing(path) as draft, tarfile.open(draft, "w:xz") as archive:
        _add(archive, MANIFEST, json.dumps(manifest_for(target), indent=1).encode())
        for key in keys:
            if not _is_complete(cache / key):
                continue
            count += 1
            libraries = (libraries_of(cache / key) or []) if builds_launchers(target) else []
            shared |= dict.fromkeys(libraries)
            _add_folder(archive, cache / key)
        for key in shared:
            _add_folder(archive, cache / key)
    return count


def _is_complete(folder: Path) -> bool:
    return any(folder.glob("__grp__*")) and any(file.suffix in (".cubin", ".hsaco") for file in folder.iterdir())


def _add_folder(archive: tarfile.TarFile, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix in CARRIED and not file.name.startswith("__grp__"):
            _add(archive, f"{folder.name}/{file.name}", file.read_bytes())
    for group in folder.glob("__grp__*"):
        names = [Path(each).name for each in json.loads(group.read_text())["child_paths"].values()]
        content = {"child_paths": {name: name for name in names if Path(name).suffix in CARRIED}}
        _add(archive, f"{folder.name}/{group.name}", json.dumps(content).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def unpack(path: Path, target: str | None) -> tuple[str, int]:
    """Put the kernels of an archive into the cache; return what they are for, and how many they are.

    Members are written as plain files under names of two parts, whatever else the archive says of them, and only once
    all of it has been read. A kernel's group file comes last, without which Triton takes the kernel to be missing.

    Args:
        target: that the archive must be for; None accepts any.

    Raises:
        ValueError: the file is no archive of this command, or its kernels would not be found here.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".precompile-", dir=cache) as draft:
            manifest = _extract(path, Path(draft))
            check(path, manifest, target)
            folders = [folder for folder in Path(draft).iterdir() if folder.is_dir()]
            for folder in folders:
                _install(folder, cache / folder.name)
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"--from {path} is no archive of this command, or is damaged: {error}") from error
    except OSError as error:
        place = "" if error.filename in (None, str(path), path) else f": {error.filename}"  # in the cache
        raise ValueError(f"--from {path}: {error.strerror or error}{place}") from error
    return manifest["target"], sum(any(cache.joinpath(folder.name).glob("__grp__*")) for folder in folders)


def _extract(path: Path, draft: Path) -> dict[str, Any]:
    """Write the members of an archive below `draft`; return its manifest."""
    manifest: Any = None
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None or not (member.name == MANIFEST or MEMBER.fullmatch(member.name)):
                raise tarfile.TarError(f"it has a member {member.name!r}")
            content = file.read()
            if member.name == MANIFEST:
                manifest = json.loads(content)
                continue
            place = draft / member.name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
    if not isinstance(manifest, dict):
        raise tarfile.TarError(f"it has no {MANIFEST}")
    return manifest


def check(path: Path, manifest: Mapping[str, Any], target: str | None) -> None:
    """Hold a manifest to this machine.

    Raises:
        ValueError: they do not agree.
    """
    if manifest.get("format") != FORMAT:
        raise ValueError(f"--from {path} has archive format {manifest.get('format')}, not {FORMAT}")
    here = manifest_for(target or manifest["target"])
    if differing := [name for name, value in here.items() if manifest.get(name) != value]:
        found = "; ".join(f"{WORDS[name]} {manifest.get(name)} there, {here[name]} here" for name in differing)
        raise ValueError(f"--from {path} does not fit: {found}")


def _install(folder: Path, place: Path) -> None:
    """Move the files of a folder to their place, the group files last."""
    place.mkdir(exist_ok=True)
    files = sorted(folder.iterdir(), key=lambda file: file.name.startswith("__grp__"))
    for file in files:
        if file.name.startswith("__grp__"):
            file.write_text(regroup(file.read_text(), place))
        os.replace(file, place / file.name)
