"""Carry a GPU run to a machine without a network: the tree, a few wheels, and kernels that are compiled already.

    python -m experiments.gpu.bundle [--triton VERSION] [--target sm_90] [--output build/gpu-bundle.tar.xz]

There: unpack it and run `make gpu`. Kernels are found by Triton only where its version, its build for the same Python
and the code agree; elsewhere they are compiled anew, in a minute on 16 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from experiments.gpu.step import MARK
from experiments.precompile.relocation import relocate
from lightning_modules.files import replacing

FOLDER = Path("build/gpu-bundle")  # in the tree that is carried
WHEELS = ("jsonargparse", "typeshed-client", "docstring-parser")  # what trainers' images often lack; without binaries
LEFT_OUT = (".llir", ".source")  # large, and read by nobody
LIMIT = 60 << 20  # bytes


def unpacked(tree: Path) -> dict[str, str]:
    """Return the environment in which steps find what a bundle brought: nothing where there is none.

    This process finds its packages from then on, as it decides by them which steps can run.
    Its kernels go to a cache folder beside it, since Triton's cache names its files by absolute paths.
    """
    folder = tree / FOLDER
    environment: dict[str, str] = {}
    if (folder / "site").is_dir():
        paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        sys.path.append(str(folder / "site"))
    if (folder / "triton-cache").is_dir() and "TRITON_CACHE_DIR" not in os.environ:
        cache = folder / "triton-cache"
        relocate(cache)
        environment["TRITON_CACHE_DIR"] = str(cache.resolve())
    return environment


def fetch_wheels(folder: Path) -> None:
    """Unpack pure Python packages, as they need no installing."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--only-binary=:all:", "--dest", str(wheels), *WHEELS], check=True)
    for wheel in wheels.glob("*.whl"):
        if not wheel.name.endswith("-none-any.whl"):
            raise ValueError(f"{wheel.name} is for one platform only, and cannot be carried to any other")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    shutil.rmtree(wheels)


def install_triton(release: str, folder: Path) -> Path | None:
    """Return where a Triton is, installed into `folder` if need be; None for the one of this environment."""
    if release == version("triton"):
        return None
    if not (folder / release / "triton").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder / release), f"triton=={release}"], check=True)
    return folder / release


def compile_kernels(folder: Path, target: str, triton: str | None) -> None:
    """Compile what the layers and the training step launch, by a Triton beside the installed one if one is named."""
    environment = os.environ | {
        "CONVNETS_GPU_TARGET": target, "TRITON_CACHE_DIR": str((folder / "triton-cache").resolve()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    beside = None if triton is None else install_triton(triton, FOLDER.parent / "triton")
    if beside is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(beside.resolve()), str(Path.cwd())])
    command = [sys.executable, "-m", "experiments.gpu.steps.ahead"]
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    records = [json.loads(line.removeprefix(MARK)) for line in printed.splitlines() if line.startswith(MARK)]
    if faults := [record["fault"] for record in records if record.get("fault")]:
        raise RuntimeError(f"{len(faults)} faults while compiling; the first: {faults[0]}")
    for path in (folder / "triton-cache").rglob("*"):
        if path.suffix in LEFT_OUT:
            path.unlink()


def tracked_files() -> list[str]:
    """Return the files of the tree that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and Path(name).is_file()]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m experiments.gpu.bundle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--triton", metavar="VERSION", help="of the other machine; default: the installed one")
    parser.add_argument("--target", default="sm_90", metavar="NAME", help="of the other machine; default: sm_90")
    parser.add_argument("--output", type=Path, default=Path("build/gpu-bundle.tar.xz"), metavar="FILE")
    options = parser.parse_args(arguments)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    fetch_wheels(FOLDER)
    compile_kernels(FOLDER, options.target, options.triton)
    with replacing(options.output) as draft, tarfile.open(draft, "w:xz") as archive:
        for name in tracked_files():
            archive.add(name, f"triton-convnets/{name}")
        archive.add(FOLDER, f"triton-convnets/{FOLDER}")
    size = options.output.stat().st_size
    kernels = sum(1 for _ in (FOLDER / "triton-cache").rglob("*.cubin"))
    print(f"{options.output}: {size / 2**20:.1f} MiB, {kernels} kernels for {options.target}")
    if size > LIMIT:
        print(f"more than {LIMIT >> 20} MiB", file=sys.stderr)
    return int(size > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
