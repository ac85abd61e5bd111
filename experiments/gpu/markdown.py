"""report.md: the tables that go into the documentation, written anew from report.json whenever a step has ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.gpu.plan import STEPS
from experiments.gpu.report import records
from lightning_modules.files import replace

Record = dict[str, Any]
PLOT = "estimated-and-measured.png"
WORST = 10
YES_OR_NO: dict[bool | None, str | None] = {True: "yes", False: "no", None: None}


def write_markdown(content: dict[str, Any], folder: Path, plot: bool = True) -> None:
    """Write report.md, and its plot where matplotlib is installed; without `plot` an earlier one stays.

    Raises:
        OSError: report.md cannot be written.
    """
    failure = draw_plot(content, folder) if plot else ""
    text = markdown(content, (folder / PLOT).exists())
    replace(folder / "report.md", f"{text}\n{failure}\n" if failure else text)


def draw_plot(content: dict[str, Any], folder: Path) -> str:
    """Draw what can be drawn; return why it could not be, "" where it was or there is nothing to draw."""
    try:
        pairs = pairs_of(content)
        if len(pairs) > 1:
            from experiments.gpu.figure import draw

            draw(pairs, folder / PLOT, rehearsal=content["rehearsal"])
    except Exception as error:  # of matplotlib, which has many, or is missing: the tables stand without it
        return f"No plot: {type(error).__name__}: {error}"
    return ""


def markdown(content: dict[str, Any], plotted: bool) -> str:
    title = "Rehearsal of a GPU run" if content["rehearsal"] else f"Measured on {content['machine']['device']}"
    lines = [f"# {title}"]
    if content["rehearsal"]:
        lines += ["", "**No GPU took part.** Times are those of an interpreter on a CPU, for tiny problems."]
    states = [(step.title, content["steps"][step.name]) for step in STEPS if step.name in content["steps"]]
    rows = [(title, state["status"], f"{state['seconds']:.0f}") for title, state in states]
    lines += ["", ", ".join(f"{name} {value}" for name, value in content["machine"].items()) + "."]
    lines += ["", *table(("step", "", "seconds"), rows)]
    for step in STEPS:
        try:
            section = SECTIONS[step.name](content)
        except Exception as error:  # records of a step that went wrong may lack anything; the other sections stand
            section = [f"report.json holds this step's records; they do not make a table: {error!r}"]
        if section:
            lines += ["", f"## {step.title}", "", *section]
            if step.name == "layers" and plotted:
                lines += ["", f"![Estimated and measured time of each operation]({PLOT})"]
    return "\n".join(lines) + "\n"


def pairs_of(content: dict[str, Any]) -> list[Record]:
    """Return the operations that have an estimate and a time: the records of both, merged, the later ones winning."""
    estimates = {(e["key"], e["operation"]): e for e in records(content, "ahead") if e.get("estimated_seconds")}
    measured = {
        (m["key"], m["operation"]): m for m in records(content, "layers") if not m["fault"] and m.get("triton_seconds")
    }
    return [estimates[key] | record for key, record in measured.items() if key in estimates]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table; floats get three significant digits, None a dash."""
    cells = [" | ".join(format_cell(value) for value in row) for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {row} |" for row in cells)]


def format_cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def microseconds(record: Record, name: str) -> float | None:
    value = record.get(name)
    return None if value is None else float(value) * 1e6


def ahead(content: dict[str, Any]) -> list[str]:
    found = records(content, "ahead", what="estimate")
    if not found:
        return []
    training = [
        f" A training step takes {each['kernels']} kernels. {each['fault']}"
        for each in records(content, "ahead", what="training")
    ]
    spilling = [f"{each['key']}, {each['operation']}" for each in found if any(e["spills"] for e in each["launches"])]
    text = (
        f"{len(found)} operations, {sum(len(each['launches']) for each in found)} launches, for {found[0]['target']}."
    )
    text += f" Spilling: {'; '.join(spilling)}." if spilling else " No kernel spills registers."
    missing = [f"- {e['key']}, {e['operation']}: {e['fault']}" for e in records(content, "ahead", what="no estimate")]
    return [text + "".join(training).rstrip(), *(["", "No estimate:", "", *missing] if missing else [])]


def device(content: dict[str, Any]) -> list[str]:
    machine = next(iter(records(content, "device", what="machine")), {})
    facts = [(name, value) for name, value in machine.items() if name not in ("what", "nvidia-smi")]
    facts += list(machine.get("nvidia-smi", {}).items())
    rates = [("copy, GB/s read and written", each["gigabytes"]) for each in records(content, "device", what="copy")]
    rates += [
        (f"matrix product {each['arithmetic']} {each['extent']}, TFLOP/s", each["teraflops"])
        for each in records(content, "device", what="product")
    ]
    clocks = [
        (f"{name}: least, median, most", ", ".join(f"{value:.0f}" for value in values))
        for name, values in content.get("clocks", {}).items()
    ]
    return table(("", ""), [*facts, *rates, *clocks])


def host(content: dict[str, Any]) -> list[str]:
    rows = [
        (each["call"], each["what"], *(microseconds(each, name) for name in ("host_seconds", "goal")), each["fault"])
        for each in records(content, "host")
        if each["what"] != "stub"
    ]
    stub = [
        f"By a stub of the driver, which runs nothing: {each['launches']} launches, {each['descriptors']} descriptors"
        f" for TMA. {each['fault']}"
        for each in records(content, "host", what="stub")
    ]
    return [*stub, *([""] if stub else []), *table(("call", "", "us", "goal", ""), rows)]


def kernels(content: dict[str, Any]) -> list[str]:
    rows = [
        (each["case"], each["dtype"], each.get("error"), each.get("allowed"), each["fault"] or "right")
        for each in records(content, "kernels")
    ]
    return table(("case", "dtype", "largest error", "allowed", ""), rows)


def layers(content: dict[str, Any]) -> list[str]:
    """The heart of the report: each operation's estimate, time, and cuDNN's; how well the estimate ranks them."""
    pairs = pairs_of(content)
    lines = agreement(pairs)
    estimates = {(each["key"], each["operation"]): each for each in records(content, "ahead", what="estimate")}
    rows = []
    for each in records(content, "layers"):
        estimate = estimates.get((each["key"], each["operation"]), {})
        ours, theirs = microseconds(each, "triton_seconds"), microseconds(each, "torch_seconds")
        guess = microseconds(estimate, "estimated_seconds")
        rate = each["flops"] / each["triton_seconds"] / 1e12 if ours else None
        rows.append((
            each["key"], each["operation"], guess, ours, ours / guess if ours and guess else None, theirs,
            ours / theirs if ours and theirs else None, rate, microseconds(each, "triton_host_seconds"),
            estimate.get("limit"), each["fault"] or how_timed(each),
        ))  # fmt: skip
    header = (
        "layer", "operation", "estimate, us", "ours, us", "ours / estimate", "cuDNN, us", "ours / cuDNN", "TFLOP/s",
        "host, us", "limit by the estimate", "",
    )  # fmt: skip
    return [*lines, *([""] if lines else []), *table(header, rows)]


def how_timed(record: Record) -> str:
    """Return how an operation was timed where the host may have been timed too; "" where not."""
    how = str(record.get("timed", "graph"))
    return "" if how in ("graph", "CPU") else f"timed by {how}"


def agreement(pairs: Sequence[Record]) -> list[str]:
    """Return how estimates and times agree: rank correlation, median error, and the worst with their pipes."""
    if len(pairs) < 2:
        return []
    ratios = [each["triton_seconds"] / each["estimated_seconds"] for each in pairs]
    against = [each["triton_seconds"] / each["torch_seconds"] for each in pairs if each.get("torch_seconds")]
    rank = rank_correlation([e["estimated_seconds"] for e in pairs], [e["triton_seconds"] for e in pairs])
    lines = [
        f"{len(pairs)} operations: rank correlation of estimate and time {rank:.3f}; median of measured / estimated"
        f" {statistics.median(ratios):.2f}; median error {100 * statistics.median(abs(r - 1) for r in ratios):.0f} %"
        + (
            f"; geometric mean of ours / cuDNN {math.exp(statistics.fmean(map(math.log, against))):.2f}."
            if against
            else "."
        )
    ]
    worst = sorted(pairs, key=lambda e: -abs(math.log(e["triton_seconds"] / e["estimated_seconds"])))[:WORST]
    rows = []
    for each in worst:
        longest = max(each["launches"], key=lambda launch: launch["estimated_seconds"] or 0.0)
        total = sum(longest["cycles"].values()) or 1.0
        busiest = sorted(longest["cycles"].items(), key=lambda item: -item[1])[:3]
        pipes = [f"{name} {100 * cycles / total:.0f} %" for name, cycles in busiest if cycles]
        rows.append((
            each["key"], each["operation"], each["triton_seconds"] / each["estimated_seconds"], longest["kernel"],
            "x".join(map(str, longest["block"])), ", ".join(pipes),
        ))  # fmt: skip
    header = ("farthest from the estimate", "operation", "measured / estimated", "kernel", "block", "estimated pipes")
    return [*lines, "", *table(header, rows)]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    try:
        return statistics.correlation(a, b)
    except statistics.StatisticsError:  # one of them is constant
        return float("nan")


def tests(content: dict[str, Any]) -> list[str]:
    shares = {each["share"]: each for each in records(content, "tests", what="counts")}  # the last counts of each
    if not shares:
        return []
    collected = sum({e["share"]: e["tests"] for e in records(content, "tests", what="collected")}.values())
    counts = {
        name: sum(each.get(name, 0) for each in shares.values()) for name in ("passed", "failed", "errors", "skipped")
    }
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    failures = [(each["test"], each["when"], each["message"]) for each in records(content, "tests", what="failure")]
    return [f"{text}, of {collected} tests.", *([""] if failures else []), *table(("test", "", "message"), failures)]


def training(content: dict[str, Any]) -> list[str]:
    rows = []
    for each in records(content, "training"):
        milli = {
            name: 1e3 * each[name] if each.get(name) else None for name in ("seconds", "host_seconds", "graph_seconds")
        }
        rows.append((
            each["batch"], each["implementation"], each.get("first_seconds"), *milli.values(),
            YES_OR_NO[each.get("graph_same_bits")], each.get("images_per_second"),
            each["peak_bytes"] / 2**30 if "peak_bytes" in each else None,
            each["fault"] or each.get("graph_fault", ""),
        ))  # fmt: skip
    header = (
        "N", "", "first step, s", "step, ms", "host, ms", "CUDA graph, ms", "same bits", "images/s", "peak, GiB", ""
    )  # fmt: skip
    return table(header, rows)


def tuning(content: dict[str, Any]) -> list[str]:
    rows = []
    for each in records(content, "tuning"):
        figures = each.get("figures", {})
        rows.append((
            each["key"], each["operation"], each["measured_over_estimated"], figures.get("heuristic microseconds"),
            figures.get("microseconds"), each.get("tile"), each["fault"],
        ))  # fmt: skip
    header = ("layer", "operation", "measured / estimated", "before, us", "tuned, us", "tile", "")
    return table(header, rows)


def fit(content: dict[str, Any]) -> list[str]:
    rows = [
        (YES_OR_NO[each.get("graph")], each["seconds"], each["test_accuracy"], YES_OR_NO[each.get("same_bits")],
         each["fault"])
        for each in records(content, "fit")
    ]  # fmt: skip
    return table(("CUDA graphs", "seconds", "test accuracy", "same bits", ""), rows)


def sanitizer(content: dict[str, Any]) -> list[str]:
    found = records(content, "sanitizer")
    return table(("tool", "errors", ""), [(e["tool"], e["errors"], e["fault"] or e.get("note", "")) for e in found])


def profiler(content: dict[str, Any]) -> list[str]:
    found = records(content, "profiler")
    names = [name for each in found for name in each if name not in ("kernel", "fault", "note")]
    names = list(dict.fromkeys(names))
    rows = [(e["kernel"], *(e.get(name) for name in names), e["fault"] or e.get("note", "")) for e in found]
    return table(("kernel", *(n if n == "nanoseconds" else f"{n}, %" for n in names), ""), rows)


def compile(content: dict[str, Any]) -> list[str]:
    rows = []
    for each in records(content, "compile"):
        ours, theirs = microseconds(each, "triton_seconds"), microseconds(each, "compile_seconds")
        rows.append(
            (each["key"], each["operation"], ours, theirs, ours / theirs if ours and theirs else None, each["fault"])
        )
    return table(
        ("layer", "operation", "ours, us, inputs in L2", "torch.compile, us", "ours / torch.compile", ""), rows
    )


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "device": device, "host": host, "ahead": ahead, "kernels": kernels, "layers": layers, "tests": tests,
    "training": training, "tuning": tuning, "fit": fit, "sanitizer": sanitizer, "profiler": profiler,
    "compile": compile,
}  # fmt: skip
