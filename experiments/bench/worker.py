"""`revisions.Worker`'s other end: python -m experiments.bench.worker TREE DEVICE, requests and answers as pickles.

The package `kernels` is the one in TREE, and all else that of this file.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys


def main(tree: str, device: str) -> None:
    sys.path.insert(0, tree)
    importlib.import_module("kernels")  # whose submodules are found beside it from now on
    sys.path.remove(tree)
    from experiments.bench.measure import Contender, fair_conditions

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not come between
    with fair_conditions(device):
        contender = Contender("triton", device)
        while True:
            try:
                method, arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return  # the other end is gone
            try:
                answer, fault = getattr(contender, method)(*arguments), ""
            except Exception as error:  # told to the other end
                answer, fault = None, f"{type(error).__name__}: {error}"
            pickle.dump((answer, fault), answers)
            answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
