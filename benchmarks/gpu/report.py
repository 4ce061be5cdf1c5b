"""The table for people, in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cbam.bench.cells import BOTH, FORWARD, PLAIN
from cbam.bench.rivals import COPY, COPY_INTO
from cbam.bench.settings import shape_text
from cbam.bench.timing import quartiles
from gpu.correctness import OK
from gpu.figures import (
    copy_share,
    dram_passes,
    mean,
    microseconds,
    modules,
    over_ours,
    targets,
    times_plain,
)
from gpu.module import CALL, GRAPH, HOT
from gpu.network import ALL
from gpu.plan import Scale
from gpu.store import Store

LONGEST_NAME = 70
KERNELS_SHOWN = 12
QUIET = ("check", "compile module", "compile network")
"""Jobs whose errors stand elsewhere, or do not matter."""


def report(store: Store, scale: Scale) -> str:
    """Return the whole table.

    Args:
        store: The results.
        scale: Of the run.
    """
    parts = [_header(store), _targets(store, scale), _checks(store)]
    for batch, dtype, layout in _module_groups(store):
        parts += [_modules(store, mode, batch, dtype, layout) for mode in (FORWARD, BOTH)]
    parts += [_networks(store), _host(store), _dram(store), _kernels(store), _rest(store)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(store: Store) -> str:
    found, environment = store.content["identity"], store.content["environment"]
    device = environment.get("gpu", {})
    lines = ["# The operator on a GPU", ""]
    if found["scale"] != "full":
        lines += [
            f"**A {found['scale']} run: it shows that everything works; the numbers mean little or nothing.**",
            "",
        ]
    memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in device else ""
    units = f", {device['multiprocessors']} multiprocessors" if "multiprocessors" in device else ""
    versions = {"python": environment["python"], "CUDA": device.get("cuda"), **device.get("packages", {})}
    shown = ", ".join(f"{name} {version or 'not there'}" for name, version in versions.items())
    lines.append(
        f"- device: {found['device']}{memory}{units}; operator ({device.get('backend')}): {device.get('operator')}"
    )
    lines.append(f"- {shown}")
    lines.append(f"- host: {environment['machine']['cpu']}, {environment['machine']['cores']} cores")
    if device.get("state"):
        lines.append("- " + ", ".join(f"{name} {value}" for name, value in device["state"].items()))
    lines.append(f"- commit {found['commit'] or 'not known'}, code {found['code']}")
    for result in store.results("state"):
        loaded = ", ".join(f"{name} {result[name]}" for name in device.get("state", {}) if name in result)
        lines += [f"- after the first timings: {loaded}"] if loaded else []
    started = ", ".join(session["started"] for session in store.content["sessions"])
    return "\n".join([*lines, f"- {started}"])


def _targets(store: Store, scale: Scale) -> str:
    rows = []
    for target in targets(store, scale.batches[0], scale.network_batches[0]):
        sign = "≥" if target.faster else "≤"
        measured = "" if target.measured is None else f"{target.measured:.3g}"
        rows.append(
            [target.figure, f"{sign} {target.must:g}", f"{sign} {target.aim:g}", measured, target.verdict]
        )
    note = "Modules: geometric mean over the stages of ResNet-50, bfloat16, channels_last, cold cache."
    return _section("To reach", [note], ["figure", "must", "aim", "measured", "verdict"], rows)


def _checks(store: Store) -> str:
    results = store.results("check")
    if not results and not any(job["kind"] == "check" for job in store.jobs.values()):
        return ""
    counts = Counter(result["status"] for result in results)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    worst = max(results, key=lambda r: r.get("share_of_rule") or 0.0, default=None)
    lines = [
        f"{summary or 'none finished'}. The rule: at most twice plain torch's error in the same type, against float64."
    ]
    if worst and worst.get("share_of_rule"):
        lines.append(
            f"Closest to it: {worst['share_of_rule']:.2f} of what is allowed ({worst['name']}, {worst['where']})."
        )
    rows = [
        [result["name"], result["status"], "; ".join(result.get("failures", [])) or result.get("why", "")]
        for result in results
        if result["status"] != OK
    ]
    rows += [
        [n, "no answer", j["error"]] for n, j in store.jobs.items() if j["kind"] == "check" and "error" in j
    ]
    return _section("Correctness", lines, ["check", "status", "why"], rows)


def _module_groups(store: Store) -> list[tuple[int, str, str]]:
    return list(
        dict.fromkeys((r["shape"][0], r["dtype"], r["memory_format"]) for r in store.results("module"))
    )


def _modules(store: Store, mode: str, batch: int, dtype: str, layout: str) -> str:
    results = modules(store, mode, batch, dtype, layout)
    if not results:
        return ""
    heads = ["", *(shape_text(result["shape"][1:]) for result in results), "copy limit", "/ ours"]
    rows = []
    for kind in (CALL, GRAPH, HOT):
        providers = dict.fromkeys(name for result in results for name in result["samples_us"].get(kind, {}))
        rows.append([f"**{kind}**"] + [""] * (len(heads) - 1))
        for name in providers:
            times = [_micro(microseconds(result, name, kind)) for result in results]
            share = None if name in (COPY, COPY_INTO) else mean(results, copy_share, name, kind)
            ratio = mean(results, over_ours, name, kind)
            rows.append([name, *times, _percent(share), _times(ratio)])
    notes = [note for result in results for note in result["notes"]]
    lines = ["Microseconds, medians; the last columns are geometric means.", *dict.fromkeys(notes)]
    lines.append(
        f"Widest quartiles: {_widest(r['samples_us'].get(CALL, {}) for r in results)} of the median apart."
    )
    if mode == BOTH:
        sizes = {"kept": "saved_bytes", "peak": "peak_bytes"}
        for word, field in sizes.items():
            shares = {
                name: [r[field][name] / r["bytes"] for r in results if name in r[field]]
                for name in results[0][field]
            }
            text = ", ".join(f"{name} {max(values):.2f}" for name, values in shares.items() if values)
            lines.append(f"Memory {word}, in sizes of the map, at most: {text}.")
    return _section(f"{mode}, N={batch}, {dtype}, {layout}", lines, heads, rows)


def _networks(store: Store) -> str:
    rows, lines = [], []
    for result in store.results("network"):
        lines += [f"The network is {result['source']}.", *result["notes"]]
        for name in ALL:
            if name not in result["samples_us"]:
                continue
            time = statistics.median(result["samples_us"][name])
            peak, saved = (result.get(field, {}).get(name) for field in ("peak_bytes", "saved_bytes"))
            plain = result.get("saved_bytes", {}).get(PLAIN)
            rows.append([
                f"{result['mode']}, batch {result['batch']}, {result['way']}", name, f"{time / 1000:.2f}",
                f"{1e6 * result['batch'] / time:.0f}", f"{times_plain(result, name) or float('nan'):.3f}",
                f"{peak / 2**20:.0f}" if peak else "",
                f"{saved / 2**20:.0f} ({saved / plain:.3f})" if saved and plain else "",
            ])  # fmt: skip
    heads = ["", "network", "ms", "images/s", "times plain", "peak MiB", "kept MiB (times plain)"]
    return (
        _section("ResNet-50, AMP bfloat16, channels_last", dict.fromkeys(lines), heads, rows) if rows else ""
    )


def _host(store: Store) -> str:
    rows = []
    for result in store.results("host"):
        modes = result["samples_us"]
        for name in dict.fromkeys(name for samples in modes.values() for name in samples):
            rows.append([name, *(_micro(statistics.median(modes[mode][name])) for mode in modes)])
        heads = ["", *modes]
        shape = shape_text(result["shape"])
    lines = (
        [] if not rows else [f"Microseconds of the host for a call that nobody waits for, {shape} bfloat16."]
    )
    return _section("Host overhead", lines, heads, rows) if rows else ""


def _dram(store: Store) -> str:
    results = store.results("traffic")
    if not results:
        return ""
    rows = [
        [
            p["provider"],
            shape_text(p["shape"]),
            p["direction"],
            *(f"{p[k]:.2f}" for k in ("read", "written", "passes")),
        ]
        for p in dram_passes(store)
    ]
    lines = [f"Not counted: {result['why']}." for result in results if "why" in result]
    heads = ["", "map", "direction", "read", "written", "passes"]
    return _section("DRAM traffic, in sizes of the map", lines, heads, rows)


def _kernels(store: Store) -> str:
    parts = []
    for result in store.results("kernels"):
        for region in result["regions"]:
            table = sorted(region["kernels"].items(), key=lambda item: -item[1][1])
            total = sum(row[1] for row in region["kernels"].values())
            launches = sum(row[0] for row in region["kernels"].values())
            rows = [[_short(name), f"{n:.1f}", _micro(us)] for name, (n, us) in table[:KERNELS_SHOWN]]
            if len(table) > KERNELS_SHOWN:
                rows.append([f"and {len(table) - KERNELS_SHOWN} more", "", ""])
            lines = [f"{launches:.0f} launches, {total:.0f} us."]
            title = f"Kernels of forward+backward, {region['provider']}, {shape_text(region['shape'])}"
            parts.append(_section(title, lines, ["kernel", "launches", "us"], rows))
    return "\n\n".join(parts)


def _rest(store: Store) -> str:
    rows = [[name, why] for name, why in store.content["skipped"].items()]
    rows += [
        [name, job["error"]]
        for name, job in store.jobs.items()
        if "error" in job and job["kind"] not in QUIET
    ]
    return _section("Not measured", [], ["", "why"], rows) if rows else ""


def _section(title: str, lines: Iterable[str], heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = [f"## {title}", ""]
    for line in lines:
        text += [line, ""]
    if rows:
        text += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        text += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(text).rstrip()


def _widest(samples: Iterator[dict[str, list[float]]] | Any) -> str:
    spreads = []
    for cell in samples:
        for values in cell.values():
            low, middle, high = quartiles(values)
            spreads.append((high - low) / middle)
    return _percent(max(spreads, default=0.0))


def _micro(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
