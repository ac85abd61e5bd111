"""Turn what a command raises into one line and an exit code."""

import difflib
import os
import re
import sys
import sysconfig
import traceback
from types import FrameType
from typing import Any

DEBUG = "CONVNETS_DEBUG"  # 1 shows tracebacks
OF_USER = 2
UNEXPECTED = 1
INTERRUPTED = 130

OURS = ("experiments", "kernels", "lightning_modules")
OPTIONS = {  # classes of what a recipe makes, and the option that names it
    "lightning.pytorch.callbacks.callback.Callback": "--trainer.callbacks",
    "lightning.pytorch.loggers.logger.Logger": "--trainer.logger",
    "lightning.pytorch.plugins.precision.precision.Precision": "--trainer.precision",
    "lightning.pytorch.accelerators.accelerator.Accelerator": "--trainer.accelerator",
    "lightning.pytorch.core.datamodule.LightningDataModule": "--data",
    "torch.utils.data.dataset.Dataset": "--data",
    "torch.utils.data.dataloader._BaseDataLoaderIter": "--data",  # also of what workers raise, and of their end
    "torch.optim.optimizer.Optimizer": "--model.optimizer",
    "torch.optim.lr_scheduler.LRScheduler": "--model.lr_scheduler",
    "torch.nn.modules.module.Module": "--model",
}
NOT_AN_OPTION = "lightning.pytorch.core.module.LightningModule"  # a module too, whose code is ours
STATED = (
    "ValueError",
    "TypeError",
    "OSError",
    "ImportError",
    "ArgumentError",
    "MisconfigurationException",
)  # for the user


def report(error: Exception) -> int:
    """Print the line of an error, unless another process has, and return the exit code."""
    if not first_to_fail():
        return failed()
    line, code = explain(error)
    print(line, file=sys.stderr, flush=True)
    return failed(code)


def report_interrupt(interrupt: KeyboardInterrupt) -> int:
    """Print what an interrupt says of how to go on, and return the exit code."""
    if first_process():
        print(": ".join(filter(None, ("convnets: interrupted", str(interrupt)))), file=sys.stderr)
    return INTERRUPTED


def explain(error: Exception) -> tuple[str, int]:
    """Return the line that says what is wrong, and the exit code.

    Where a library has raised the error, the line begins with the option that made the object it was raised in. What is
    neither written for the user nor raised in such an object is unexpected: a fault of this project.
    """
    text = in_one_line(str(error))
    if is_out_of_memory(error):
        size = re.search(r"tried to allocate ([\d.]+ \w+)|allocate ([\d.]+ \w+)", text, re.IGNORECASE)
        wanted = f" ({size[1] or size[2]} at once)" if size else ""
        return f"convnets: error: not enough memory{wanted}: use smaller images, batches or networks", OF_USER
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    innermost = frames[-1]
    file = innermost.f_code.co_filename
    is_of_library = "site-packages" in file or file.startswith(("<frozen ", sysconfig.get_path("stdlib")))
    if _is_a(error, ("DistNetworkError", "DistStoreError")):
        return f"convnets: error: the processes cannot meet at MASTER_ADDR and MASTER_PORT: {text}", OF_USER
    is_stated = _is_a(error, STATED) or (isinstance(error, RuntimeError) and _package(innermost) == "lightning")
    is_ours = _package(innermost) in OURS
    until = ("lightning",) if is_stated else ("lightning", *OURS)  # what is not stated may be a fault of ours
    option = option_of(frames, until) if is_of_library or not (is_stated or is_ours) else None
    if not is_stated or (option and not text):
        text = ": ".join(filter(None, (type(error).__name__, text)))
    if is_stated or option:
        return f"convnets: error: {f'{option}: ' if option else ''}{text}", OF_USER
    return f"convnets: unexpected error: {text} ({DEBUG}=1 shows where)", UNEXPECTED


def option_of(frames: list[FrameType], until: tuple[str, ...]) -> str | None:
    """Return the option whose object has raised an error, and its class; None if no such object has.

    Args:
        frames: of the error's traceback, the innermost last.
        until: packages whose code is not of such an object: what has called it is not to blame.
    """
    for frame in reversed(frames):
        made = frame.f_locals.get("self")
        names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(made).__mro__}
        option = next((option for name, option in OPTIONS.items() if name in names), None)
        if option and NOT_AN_OPTION not in names:
            return f"{option} ({type(getattr(made, '_dataset', made)).__name__})"
        if _package(frame) in until:
            break
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Return True if memory was wanted that there is not, as torch, NumPy and Python say it."""
    said = re.search(r"allocate memory|tried to allocate|overflow", next(iter(str(error).splitlines()), ""))
    is_said = _is_a(error, ("RuntimeError",)) and bool(said)
    return is_said or _is_a(error, ("MemoryError", "OutOfMemoryError")) or "DefaultCPUAllocator" in str(error)


def did_you_mean(message: str, known: list[str]) -> str:
    """Return what to add to a parser's complaint about an option: the names close to it, if any."""
    option = re.search(r"(?:option '|arguments: --)([\w.]+)", message)
    close = difflib.get_close_matches(option[1], known) if option else []
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def in_one_line(message: str) -> str:
    """Return a message without line breaks, a traceback, and what jsonargparse tells of other types it has tried."""
    worker = re.match(r"Caught \w+ in DataLoader worker.*^\w+: (.*)", message, re.DOTALL | re.MULTILINE)
    message = worker[1] if worker else message  # without the worker's traceback
    no_path = r"Subtypes: \[<class '([\w.]+)'>, <class 'NoneType'>\]\s+Errors:\s+- Expected a dot import path.*"
    message = re.sub(no_path, r"Expected the class path of a \1", message)
    noise = re.compile(
        r"Does not validate against|Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value type: "
        r"|Given value: (Namespace|NestedArg)?[\[(]|Not a valid subclass|Subclass types expect|a class path \("
        r"|a dict with|Expected a (path but|dot import path)"
    )
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    line = " ".join(dict.fromkeys(line for line in lines if line and not noise.match(line)))
    return re.sub(r"\. Got value: Namespace\(.*", "", line)


def write_any_character() -> None:
    """Have a terminal whose encoding lacks a character show its number, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream that a caller has put in may have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def failed(code: int = OF_USER) -> int:
    """Return the exit code of a process that has failed.

    Lightning kills the first process once one that it has started ends with another code than 0: before the first
    itself notices that and ends with its own code, as it does where they are connected by gloo.
    """
    started_by_lightning = not first_process() and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ
    distributed = connected()
    return 0 if started_by_lightning and distributed and distributed.get_backend() == "gloo" else code


def connected() -> Any:
    """Return torch.distributed, where this process trains together with others."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def first_process() -> bool:
    """Return True if this is the only process of the command, or the first of those that train together."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    rank = next(filter(None, ranks), "0")
    return not rank.isdecimal() or int(rank) == 0


def first_to_fail() -> bool:
    """Return True if this process is the one to report its error: of those that train together the first that has one.

    The error of another may be a consequence, or the same. Before they are connected, all have the same.
    """
    distributed = connected()
    if not distributed:
        return first_process()
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("convnets/failed", 1) == 1)
    except RuntimeError:  # the first process keeps the store: it has failed before
        return False


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_a(error: Exception, names: tuple[str, ...]) -> bool:
    """Compare names: what defines some of them takes seconds to import."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
