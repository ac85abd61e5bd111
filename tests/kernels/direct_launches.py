"""Direct launches beside Triton's own, on its real launch path with a stub driver; printed as JSON, for test_plan.py.

python -m tests.kernels.direct_launches
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import timeit
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of triton

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from triton import knobs  # noqa: E402
from triton.runtime import driver  # noqa: E402

from experiments.gpu.stub import stubbed  # noqa: E402
from kernels import backend, conv, plan, pool, tuning  # noqa: E402
from kernels.tile import Tile  # noqa: E402
from tests.kernels.launch_cases import SMALL, Case, cases, draw, window  # noqa: E402
from tests.kernels.launch_records import Record, instantly, recorded  # noqa: E402


class Machine:
    """A stubbed GPU, whose current device and stream can be set, and what is launched on it.

    Attributes:
        slow: launches that went through `backend.launch`.
        records: all launches, see `recorded`.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records, self.slow, self.device, self.stream = records, 0, 0, 0
        driver.active.get_current_device = lambda: self.device
        driver.active.get_current_stream = lambda device=0: self.stream + device

    def taken(self, call: Case) -> tuple[list[Record], int]:
        """Return what a call launches, and how many of these launches were Triton's own `kernel[grid](...)`."""
        launched, slow = len(self.records), self.slow
        call()
        return self.records[launched:], self.slow - slow


@contextmanager
def machine() -> Iterator[Machine]:
    through = backend.launch

    def launch(*arguments: Any, **constants: Any) -> Any:
        gpu.slow += 1
        return through(*arguments, **constants)

    with stubbed("sm_90"), instantly(), recorded() as records, mock.patch.object(backend, "launch", launch):
        gpu = Machine(records)
        yield gpu


def differences(gpu: Machine, case: Case) -> tuple[Counter[str], list[str]]:
    """Run every launch of a case twice with the same tensors, as Triton's own and directly; count and compare them."""
    launch = plan.Launch.__call__
    compared: Counter[str] = Counter()
    faults = []

    def twice(self: plan.Launch, *tensors: Tensor | None) -> None:
        with mock.patch.object(plan, "_is_watched", lambda *_: True):
            ours, slow = gpu.taken(lambda: launch(self, *tensors))
        direct, more = gpu.taken(lambda: launch(self, *tensors))
        name = self.kernel.__name__.strip("_")
        compared[name] += 1
        if (len(ours), slow, len(direct), more) != (1, 1, 1, 0):
            faults.append(f"{name}: {len(ours)} launches, {slow} Triton's; then {len(direct)}, {more} Triton's")
        faults.extend(
            f"{name}: {field} is {new!r}, Triton's is {old!r}"
            for field, old, new in zip(Record._fields, ours[-1], direct[-1], strict=True)
            if old != new
        )

    case()  # what is compiled, and plans, for tensors at other addresses
    gpu.stream += 8
    with mock.patch.object(plan.Launch, "__call__", twice):
        case()
    return compared, faults


def check_cases() -> dict[str, int]:
    """Every launch of the cases is the same directly; gives the number of those compared by kernel."""
    total: Counter[str] = Counter()
    with machine() as gpu:
        for name, case in cases().items():
            compared, faults = differences(gpu, case)
            assert compared and not faults, f"{name}: {faults[0] if faults else 'no launch'}"
            total += compared
        assert sum(record.box is not None for record in gpu.records) > 10
    return dict(total)


def plain(offset: int = 0, dtype: torch.dtype = torch.float16) -> Case:
    """A convolution whose input begins `offset` elements into its memory."""
    size = 2 * 16 * 6 * 6
    x = torch.zeros(size + offset, dtype=dtype)[offset:].view(2, 6, 6, 16).movedim(-1, 1)
    weight = draw(16, 16, 3, 3, dtype=dtype)
    return lambda: conv.forward(x, weight, None, None, window((3, 3), padding=1), False)


def check_misaligned() -> None:
    """Triton launches what begins at an odd address, and compiles it apart, whichever came first."""
    for order in ((0, 1), (1, 0)):
        with machine() as gpu:
            for offset in order:
                plain(offset)()
            (aligned,), slow = gpu.taken(plain())
            assert slow == 0 or order == (1, 0)  # then the first aligned one is Triton's
            (aligned,), slow = gpu.taken(plain())
            assert slow == 0
            for offset in (1, 3, 4, 7):
                (odd,), slow = gpu.taken(plain(offset))
                assert slow == 1 and odd.launcher != aligned.launcher
            (again,), slow = gpu.taken(plain(8))  # 16 bytes
            assert slow == 0 and again.launcher == aligned.launcher


def check_misaligned_anywhere() -> None:
    """One odd address among any of the tensors of a launch will do."""
    with machine() as gpu:
        x, weight, y = (draw(2, 16, 6, 6, layout="channels_last") for _ in range(3))
        for _ in range(3):
            _, slow = gpu.taken(lambda: pool.average_pool_gradient(x, window((1, 1)), (6, 6), 1, True))
        assert slow == 0
        launch = next(found.launch for found in plan._plans.values() if isinstance(found, pool._Plan))
        odd = torch.zeros(2 * 16 * 36 + 1, dtype=torch.float16)[1:]
        for tensors in ((odd, x, None), (y, odd, None)):
            (record,), slow = gpu.taken(lambda tensors=tensors: launch(*tensors))
            assert slow == 1
        (last,), slow = gpu.taken(lambda: launch(y, weight, None))
        assert slow == 0 and last.launcher != record.launcher


def check_misaligned_box() -> None:
    """TMA reads from addresses that 16 divides only: from another the input is loaded by addresses."""
    tile = Tile(64, 16, 16, 4, 2, boxes=True)
    with machine() as gpu, tuning.use_tile(tile):
        calls = [plain(), plain(), plain(1), plain(1)]  # all alive, at addresses of their own
        *boxed, first, second = (gpu.taken(call)[0][0] for call in calls)
        assert boxed[0].launcher == boxed[1].launcher != first.launcher == second.launcher
        assert first.box is second.box is None
        assert [(int, record.box.address) for record in boxed if record.box] == [r.arguments[0] for r in boxed]
        assert boxed[0].arguments[0] != boxed[1].arguments[0]


def check_precision() -> None:
    """float32 is multiplied as the flags of torch say at each call, whatever a plan was made for before."""
    rule = torch.backends.cudnn.conv
    before = rule.fp32_precision
    launchers: dict[str, set[int]] = {"ieee": set(), "tf32": set()}
    try:
        with machine() as gpu:
            call = plain(dtype=torch.float32)
            for number, rule.fp32_precision in enumerate(("ieee", "tf32") * 3):
                (record,), slow = gpu.taken(call)
                launchers[rule.fp32_precision].add(record.launcher)
                assert (str, rule.fp32_precision) in record.arguments and slow == (number < 2)
    finally:
        rule.fp32_precision = before
    assert len(launchers["ieee"]) == len(launchers["tf32"]) == 1 and launchers["ieee"] != launchers["tf32"]


def check_blocks() -> None:
    """A forced block is launched inside its `with` block only, and plans are remembered on both sides of it."""
    launchers: dict[Tile, set[int]] = {}
    with machine() as gpu:
        call = plain()
        (usual,), _ = gpu.taken(call)
        for number in range(2):
            for tile in (SMALL, Tile(32, 16, 16, 2, 2)):
                with tuning.use_tile(tile):
                    (forced,), slow = gpu.taken(call)
                    launchers.setdefault(tile, set()).add(forced.launcher)
                    assert slow == (number == 0)
                    with plan.apart("other"):
                        assert gpu.taken(call)[1] == (number == 0)
            (again,), slow = gpu.taken(call)
            assert slow == 0 and again.launcher == usual.launcher
    assert [len(found) for found in launchers.values()] == [1, 1]
    assert len({usual.launcher}.union(*launchers.values())) == 3


def check_hooks() -> None:
    """A launch hook is called for every launch while it is installed, and for none after."""
    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        with machine() as gpu:
            names: list[str] = []

            def hook(metadata: Any, names: list[str] = names) -> None:
                names.append(metadata.get()["name"])

            call = plain()
            call()
            assert gpu.taken(call)[1] == 0
            chain.add(hook)
            try:
                (watched,), slow = gpu.taken(call)
                _, more = gpu.taken(plain())
                assert len(names) == 2 and slow == more == 1 and any(watched.hooks)
            finally:
                chain.remove(hook)
            (record,), slow = gpu.taken(call)
            assert len(names) == 2 and slow == 0 and not any(record.hooks)


def check_pre_run_hooks() -> None:
    """A hook of the kernel alone is called for every launch, too."""
    calls: list[int] = []
    with machine() as gpu:
        call = plain()
        call()
        conv._forward_kernel.add_pre_run_hook(lambda *_, **__: calls.append(1))
        try:
            assert gpu.taken(call)[1] == 1 and len(calls) == 1
        finally:
            conv._forward_kernel.pre_run_hooks.clear()
        assert gpu.taken(call)[1] == 0 and len(calls) == 1


def check_what_changes_kernels() -> None:
    """Kernels that are compiled for debugging or inspection are launched while that is asked for, not before or after.

    The first launch of a plan may fall into that time.
    """
    changes = [(knobs.runtime, "debug", True)]
    if hasattr(knobs.compilation, "instrumentation_mode"):
        changes.append((knobs.compilation, "instrumentation_mode", "consan"))
    for holder, name, value in changes:
        for first in ("usual", "changed"):
            with machine() as gpu:
                call = plain()
                if first == "usual":
                    usual = gpu.taken(call)[0][0]
                before = getattr(holder, name)
                setattr(holder, name, value)
                try:
                    changed = [gpu.taken(call) for _ in range(3)]
                finally:
                    setattr(holder, name, before)
                usual = gpu.taken(call)[0][0]
                (last,), slow = gpu.taken(call)
                launchers = {record.launcher for (record,), _ in changed}
                assert len(launchers) == 1 and launchers != {usual.launcher}, f"{name}, {first} first"
                assert [count for _, count in changed] == [1, 1, 1] and slow == 0
                assert last.launcher == usual.launcher


def check_caches_cleared() -> None:
    """A kernel that Triton has forgotten stays loaded: what is launched directly would be gone from the GPU."""
    with machine() as gpu:
        call = plain()
        call()
        compiled = [
            weakref.ref(each) for cache, *_ in conv._forward_kernel.device_caches.values() for each in cache.values()
        ]
        conv._forward_kernel.device_caches.clear()
        gc.collect()
        assert gpu.taken(call)[1] == 0 and any(each() is not None for each in compiled)


def check_device_and_stream() -> None:
    """The stream is asked for at each launch; where another device is current, Triton launches."""
    with machine() as gpu:
        call = plain()
        for stream in (0, 24, 8):
            gpu.stream = stream
            (record,), slow = gpu.taken(call)
            assert record.stream == stream and slow == (stream == 0)
        gpu.device = 1
        (record,), slow = gpu.taken(call)
        assert slow == 1 and record.stream == gpu.stream + 1


def check_empty() -> None:
    """Nothing is launched, or counted, where there is nothing to do, however often."""
    x, weight = draw(0, 16, 6, 6), draw(16, 16, 3, 3)
    halving = window((2, 2), 2)
    with machine() as gpu:
        before = backend.launch_count()
        for _ in range(3):
            records, _ = gpu.taken(lambda: conv.forward(x, weight, None, None, window((3, 3)), False))
            assert not records
            records, _ = gpu.taken(lambda: pool.max_pool(x, halving, (3, 3)))
            assert not records
        assert backend.launch_count() == before


def check_threads() -> None:
    """Eight threads that launch many shapes at once launch each of them as often as they say, and as Triton would."""
    shapes = [(batch, side) for batch in range(1, 5) for side in range(3, 11)]
    halving, tap = window((2, 2), 2), window((3, 3), padding=1)
    weight = draw(16, 16, 3, 3)

    def work(number: int) -> None:
        for batch, side in shapes[number:] + shapes[:number]:
            x = draw(batch, 16, side, side, layout="channels_last")
            conv.forward(x, weight, None, None, tap, True)
            pool.max_pool(x, halving, (side // 2, side // 2))

    with machine() as gpu, tuning.use_tile(SMALL):
        before = backend.launch_count()
        with ThreadPoolExecutor(8) as executor:
            list(executor.map(work, range(8)))
        total = 2 * 8 * len(shapes)
        assert backend.launch_count() - before == len(gpu.records) == total
        grids = Counter(record.grid for record in gpu.records)
        assert all(count % 8 == 0 for count in grids.values())
        _, slow = gpu.taken(lambda: work(0))
        assert slow == 0


def check_speed() -> None:
    """A direct launch takes the host less than half as long as one by Triton's binder, with all around it."""
    with stubbed("sm_90"), tuning.use_tile(SMALL):
        call = plain()
        call()
        direct = shortest(call)
        with mock.patch.object(plan, "_is_watched", lambda *_: True):
            by_triton = shortest(call)
    assert direct < by_triton / 2, f"{1e6 * direct:.1f} us directly, {1e6 * by_triton:.1f} us by Triton"


def shortest(call: Case) -> float:
    """Return the seconds of a call, the least of many short rounds."""
    return min(timeit.repeat(call, number=20, repeat=50)) / 20


def main() -> None:
    checks = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
    found: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # what is compiled here is of no use elsewhere
        main()
