"""torch.compile on the first layers, beside ours, where there is time left: its compiler takes seconds for each."""

from __future__ import annotations

from experiments.gpu.step import DEVICE, REHEARSAL, earlier, interpret_in_rehearsal, reason, record

interpret_in_rehearsal()

from experiments.bench.measure import Contender, call_of, fair_conditions  # noqa: E402
from experiments.gpu.problems import layers  # noqa: E402
from experiments.gpu.timing import timed  # noqa: E402

FORWARD = "forward"


def main() -> int:
    done = {each["key"] for each in earlier("compile") if not each["fault"]}
    with fair_conditions(DEVICE):
        for key, _, problem in layers()[: 1 if REHEARSAL else None]:
            if key in done:
                continue
            try:
                reached = Contender("compile", DEVICE).prepare(problem, FORWARD)
                tensors = problem.tensors(DEVICE)
                times = {n: timed([call_of(n, problem, FORWARD, *tensors)]).device for n in ("compile", "triton")}
            except Exception as error:  # torch.compile has many; the other layers can go on
                record(key=key, operation=FORWARD, fault=reason(error))
                continue
            seconds = {f"{name}_seconds": value for name, value in times.items()}
            record(key=key, operation=FORWARD, fault="" if reached.close else f"wrong: {reached}", **seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
