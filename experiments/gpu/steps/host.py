"""Measure the host's time of a launch: launchers, functions beside torch's. A rehearsal takes the stub driver."""

from __future__ import annotations

import os
from contextlib import ExitStack

from experiments.gpu.step import DEVICE, REHEARSAL, TARGET, record

os.environ.pop("TRITON_INTERPRET", None)  # also in a rehearsal: compiled kernels are launched, on the stub

import kernels  # noqa: E402
from experiments.gpu.host_calls import launchers, operators  # noqa: E402
from experiments.gpu.timing import host_seconds  # noqa: E402
from kernels import backend  # noqa: E402

ROUNDS = 20


def main() -> int:
    with ExitStack() as stack:
        stub = None
        if REHEARSAL:
            from experiments.gpu.stub import stubbed

            stub = stack.enter_context(stubbed(TARGET))
        stack.enter_context(kernels.use_backend("triton"))
        before = backend.launch_count()
        for kind, calls in (("launcher", launchers(DEVICE)), ("operator", operators(DEVICE))):
            for name, call in calls.items():
                seconds = call.measured(lambda each: host_seconds([each] * 10, rounds=ROUNDS))
                record(what=kind, call=name, host_seconds=seconds, goal=1e-6 * call.goal, fault="")
        if stub is not None:
            counted, launched = backend.launch_count() - before, stub.stub_launches()
            fault = "" if counted == launched else f"{counted} launches were counted, {launched} reached the driver"
            if stub.stub_refused() or not stub.stub_descriptors():
                fault = f"{stub.stub_refused()} of {stub.stub_descriptors()} TMA descriptors were refused"
            record(what="stub", launches=launched, descriptors=stub.stub_descriptors(), fault=fault)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
