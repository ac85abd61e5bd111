"""The `convnets` command.

Help is answered from here in no time. The backend is chosen here too: Triton decides whether it interprets when it is
first imported, and almost everything that `experiments.cli` needs imports it.
"""

import importlib
import importlib.util
import os
import re
import sys
from importlib.metadata import version
from typing import Any

from experiments import COMMANDS, TOOLS

HELP = """\
usage: convnets {fit,validate,test,predict} --config RECIPE [options]
       convnets {bench,figures,gabor,gpu,inspect,precompile,results,summary,tune} [options]

Train and evaluate convolutional networks whose layers are Triton kernels.

commands:
  fit         train, then test the checkpoint with the best validation accuracy
  validate    evaluate on the validation split
  test        evaluate on the test split
  predict     write the class of each test image to predictions.csv, beside the checkpoint; maps to files of their own
  bench       check and time the kernels on the layers of classic networks; see convnets bench --help
  figures     the figures of the lecture, each an experiment with numbers; see convnets figures --help
  gabor       how closely learned kernels resemble Gabor functions, in any checkpoint; see convnets gabor --help
  gpu         what a GPU shows of the kernels in a few minutes, as a report; see convnets gpu --help
  inspect     compile kernels for any GPU and estimate how fast they can be; see convnets inspect --help
  precompile  compile all kernels of a network ahead, without a GPU; see convnets precompile --help
  results     run every recipe with several seeds and hold it to what it expects; see convnets results --help
  summary     volumes, receptive fields, parameters and work of a network's layers; see convnets summary --help
  tune        choose the tiles of the kernels for a GPU, with or without one; see convnets tune --help

main options (later ones win over earlier ones, files too):
  -c, --config FILE             a recipe; several are merged from left to right
  --backend auto|triton|torch   who computes the layers. auto: Triton on a GPU, PyTorch on the CPU.
                                triton: without a GPU the kernels are interpreted on the CPU, which is slow.
  --layers kernels|torch        what the network is built of: our layers, or torch.nn's, for which --backend is of no
                                concern; the checkpoints of the one fit the other
  --ckpt_path FILE|best|last    checkpoint to evaluate, or to resume training from;
                                best and last are the newest ones of the recipe's runs
  --compile true                torch.compile the network (with TorchInductor; or --compile BACKEND)
  --cuda_graph true             fit replays training steps as CUDA graphs, on one GPU, with bitwise the same results
  --compile_ahead false         compile a kernel when it is first launched, and not all in parallel before training
  --seed_everything INT         seed of weights and shuffling
  --trainer.max_epochs INT      and so on for every key of a recipe: --model.KEY, --data.KEY, --trainer.KEY
  --print_config                show the complete configuration and stop
  --help                        this page
  --help=full                   every option of a command (slow: it imports everything)
  --version                     the version of convnets

examples:
  convnets fit --config experiments/digits.yaml --backend triton
  convnets fit --config experiments/digits.yaml --ckpt_path last --trainer.max_epochs 30
  convnets test --config experiments/digits.yaml --ckpt_path best
  tensorboard --logdir logs

environment:
  CONVNETS_BACKEND    the backend, where neither --backend nor a recipe names one
  CONVNETS_DEBUG=1    show where an error comes from
"""


def main() -> int:
    """Run the command in `sys.argv` and return its exit code: 0, 2 for an error of the user, 130 when interrupted."""
    args = sys.argv[1:]
    tool = TOOLS.get(args[0]) if args else None
    if not args or (tool is None and ("-h" in args or "--help" in args)):
        print(HELP, end="")
        return 0
    if args == ["--version"]:
        print(f"convnets {version('triton-convnets')}")
        return 0
    try:
        if tool is not None:
            return int(importlib.import_module(tool).main(args[1:]))
        if args[0] not in COMMANDS:
            raise ValueError(f"the first argument must be one of {', '.join((*COMMANDS, *TOOLS))}, got {args[0]!r}")
        sys.argv[1:] = ["--help" if arg == "--help=full" else arg for arg in args]
        prepare_backend(args)
        from experiments.cli import run

        return run()
    except KeyboardInterrupt as interrupt:
        if first_process():
            print(": ".join(filter(None, ("convnets: interrupted", str(interrupt)))), file=sys.stderr)
        return 130
    except Exception as error:
        if not first_to_fail():
            return failed()
        if os.environ.get("CONVNETS_DEBUG") == "1" or not isinstance(error, (ValueError, TypeError, OSError)):
            raise
        print("convnets: error:", in_one_line(str(error)), file=sys.stderr, flush=True)
        return failed()


def failed() -> int:
    """The exit code of a process that has failed.

    Lightning kills the first process once one that it has started ends with another code than 0: before the first
    itself notices that and ends with its own code, as it does where they are connected by gloo.
    """
    started_by_lightning = not first_process() and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ
    distributed = connected()
    return 0 if started_by_lightning and distributed and distributed.get_backend() == "gloo" else 2


def connected() -> Any:
    """torch.distributed, where this process trains together with others."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def first_process() -> bool:
    """Whether this is the only process of the command, or the first of those that train together."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next(filter(None, ranks), "0") == "0"


def first_to_fail() -> bool:
    """Whether this process is the one to report its error: of those that train together the first that has one.

    The error of another may be a consequence, or the same. Before they are connected, all have the same.
    """
    distributed = connected()
    if not distributed:
        return first_process()
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("convnets/failed", 1) == 1)
    except RuntimeError:  # the first process keeps the store: it has failed before
        return False


def in_one_line(message: str) -> str:
    """A message without its line breaks, a traceback, and what jsonargparse tells of types that were tried besides."""
    worker = re.match(r"Caught \w+ in DataLoader worker.*^\w+: (.*)", message, re.DOTALL | re.MULTILINE)
    message = worker[1] if worker else message  # without the worker's traceback
    noise = re.compile(
        r"Does not validate against|Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value type: "
        r"|Given value: (Namespace|NestedArg)?[\[(]|Not a valid subclass|Subclass types expect|a class path \("
        r"|a dict with|Expected a (path but|dot import path)"
    )
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    line = " ".join(line for line in lines if line and not noise.match(line))
    return re.sub(r"\. Got value: Namespace\(.*", "", line)


def prepare_backend(args: list[str]) -> None:
    """Have Triton interpret where it is asked for and its kernels cannot be compiled.

    Raises:
        ValueError: Triton is asked for and not installed, or a config file cannot be read.
    """
    if setting(args, "backend", os.environ.get("CONVNETS_BACKEND") or "auto") != "triton":
        return
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f"backend triton: triton is not installed (on {sys.platform}); choose auto or torch")
    import torch

    if setting(args, "trainer.accelerator", "auto") == "cpu" or not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def setting(args: list[str], key: str, default: str | None) -> Any:
    """What a command line sets a dotted key to, by an option or in a config file; the last wins.

    Raises:
        ValueError: a config file is missing, or is no YAML mapping.
    """
    value: Any = default
    for position, arg in enumerate(args):
        option, equals, text = arg.partition("=")
        if not equals:
            text = args[position + 1] if position + 1 < len(args) else ""
        if option == f"--{key}":
            value = text
        elif option in ("-c", "--config"):
            value = looked_up(read_config(text), key, value)
    return value


def looked_up(config: Any, key: str, default: Any) -> Any:
    """Return what nested mappings have under a dotted key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def read_config(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold a mapping of keys to values, got {type(config).__name__}")
    return config


if __name__ == "__main__":
    sys.exit(main())
