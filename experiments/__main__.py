"""The `convnets` command.

Help is answered from here in no time. The backend is chosen here too: Triton decides whether it interprets when it is
first imported, and almost everything that `experiments.cli` needs imports it.
"""

import codecs
import importlib
import importlib.util
import locale
import os
import sys
from importlib.metadata import version

from experiments import COMMANDS, TOOLS
from experiments.config import setting
from experiments.errors import DEBUG, first_to_fail, report, report_interrupt, write_any_character

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
  --resume all|weights          what fit takes from the checkpoint. all: the run goes on in its directory, with the
                                optimizer, schedule and seed that it was started with; others are refused.
                                weights: a new run starts from its weights
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

exit code:
  0, 2 for an error of yours, 1 for a fault of convnets or a result that is not as expected, 130 when interrupted
"""


def main() -> int:
    """Run the command in `sys.argv` and return its exit code.

    That is 0, 2 for an error of the user, 1 for a fault of this project, and 130 when interrupted.
    """
    args = sys.argv[1:]
    restart_in_utf8(args)
    write_any_character()
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
        return report_interrupt(interrupt)
    except Exception as error:
        if os.environ.get(DEBUG) == "1" and first_to_fail():
            raise
        return report(error)


def restart_in_utf8(args: list[str]) -> None:
    """Start this process again in Python's UTF-8 mode where the locale has another encoding: recipes are in UTF-8."""
    is_utf8 = codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8"
    is_program = args == sys.orig_argv[len(sys.orig_argv) - len(args) :]  # and not called by another one
    if is_program and not is_utf8:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


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


if __name__ == "__main__":
    sys.exit(main())
