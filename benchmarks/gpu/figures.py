"""What the measurements say together: ratios, shares of the copy limit, and what is to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cbam.bench.cells import BOTH, FORWARD, INFERENCE, PLAIN, TRAINING, geometric_mean
from cbam.bench.rivals import COPY, COPY_INTO, OPERATOR, is_compiled_peer
from cbam.bench.target import Target
from cbam.bench.timing import ratios
from gpu.module import CALL, GRAPH
from gpu.network import OURS
from gpu.plan import BF16, NHWC
from gpu.store import Store

UNITS = {FORWARD: 2, BOTH: 5}
"""The fewest reads and writes of the map: x in, y out; for backward x and two passes of the gradient, dx out."""
WAYS = {CALL: "as called", GRAPH: "GPU time alone"}


def targets(store: Store, batch: int, network_batch: int) -> Iterator[Target]:
    """Yield every figure that is promised on an H100.

    Args:
        store: The results.
        batch: Of the modules' maps.
        network_batch: Of the networks' images.
    """
    forward, both = (modules(store, mode, batch) for mode in (FORWARD, BOTH))
    for kind, way in WAYS.items():
        share = mean(forward, copy_share, OPERATOR, kind)
        yield Target(f"forward, N={batch}: share of the copy limit, {way}", 0.45, 0.75, True, share)
    for rival, must, aim in (
        ("textbook", 6.0, 10.0),
        ("careful", 3.0, 4.0),
        ("best compiled peer", 1.3, 2.0),
    ):
        for kind, way in WAYS.items():
            measured = mean(both, over_ours, rival, kind)
            yield Target(f"forward+backward, N={batch}: {rival} / ours, {way}", must, aim, True, measured)
    for mode, way, images in (
        (TRAINING, "eager", network_batch),
        (TRAINING, "compiled", network_batch),
        (INFERENCE, "graph", 1),
        (INFERENCE, "compiled", 1),
        (INFERENCE, "eager", network_batch),
        (INFERENCE, "compiled", network_batch),
    ):
        found = network(store, mode, way, images)
        measured = times_plain(found, OURS) if found else None
        yield Target(f"ResNet-50 {mode}, batch {images}, {way}: ours / plain", 1.10, 1.03, False, measured)
    found = network(store, TRAINING, "eager", network_batch)
    saved = found.get("saved_bytes", {}) if found else {}
    share = saved[OURS] / saved[PLAIN] if OURS in saved and PLAIN in saved else None
    yield Target("ResNet-50, bytes kept for backward: ours / plain", 1.02, 1.01, False, share)
    passes = [
        p["passes"] for p in dram_passes(store) if p["provider"] == OPERATOR and p["direction"] == "forward"
    ]
    yield Target(f"DRAM passes, forward, N={batch}, worst stage", 4.2, 2.3, False, max(passes, default=None))


def modules(
    store: Store, mode: str, batch: int, dtype: str = BF16, memory_format: str = NHWC
) -> list[dict[str, Any]]:
    """Return the module results of one mode, batch, type and layout, largest maps first."""
    found = [
        result
        for result in store.results("module")
        if (result["mode"], result["shape"][0], result["dtype"], result["memory_format"])
        == (mode, batch, dtype, memory_format)
    ]
    return sorted(found, key=lambda result: result["shape"][1])


def network(store: Store, mode: str, way: str, batch: int) -> dict[str, Any] | None:
    """Return one network result; None if it was not measured."""
    for result in store.results("network"):
        if (result["mode"], result["way"], result["batch"]) == (mode, way, batch):
            return result
    return None


def microseconds(result: dict[str, Any], provider: str, kind: str) -> float | None:
    """Return a provider's median time in a module result."""
    samples = result["samples_us"].get(kind, {}).get(provider)
    return statistics.median(samples) if samples else None


def copy_share(result: dict[str, Any], provider: str, kind: str) -> float | None:
    """Return the time that the fewest reads and writes would take, at the speed of a copy, over a provider's time."""
    copies = [t for name in (COPY, COPY_INTO) if (t := microseconds(result, name, kind))]
    time = microseconds(result, provider, kind)
    return min(copies) * UNITS[result["mode"]] / 2 / time if copies and time else None


def over_ours(result: dict[str, Any], rival: str, kind: str) -> float | None:
    """Return how many times a rival takes as long as our operator; "best compiled peer" for the fastest of these."""
    samples = result["samples_us"].get(kind, {})
    if rival == "best compiled peer":
        peers = [name for name in samples if is_compiled_peer(name)]
        rival = min(peers, key=lambda name: statistics.median(samples[name]), default="")
    if rival not in samples or OPERATOR not in samples:
        return None
    return statistics.median(ratios(samples[rival], samples[OPERATOR]))


def times_plain(result: dict[str, Any], name: str) -> float | None:
    """Return how many times a network takes as long as the plain one."""
    samples = result["samples_us"]
    if name not in samples or PLAIN not in samples:
        return None
    return statistics.median(ratios(samples[name], samples[PLAIN]))


def dram_passes(store: Store) -> list[dict[str, Any]]:
    """Return bytes moved through DRAM over bytes of the map, the median of the calls, for each map and provider."""
    calls: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for result in store.results("traffic"):
        for region in result.get("regions", ()):
            n, c, h, w = region["shape"]
            map_bytes = 2 * n * c * h * w  # bfloat16
            read, written = (sum(kernel[i] for kernel in region["kernels"]) for i in (1, 2))
            written += region["written_after"]
            key = (tuple(region["shape"]), region["provider"], region["direction"])
            calls.setdefault(key, []).append((read / map_bytes, written / map_bytes))
    found = []
    for (shape, provider, direction), pairs in calls.items():
        read, written = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        found.append(
            {"shape": shape, "provider": provider, "direction": direction, "read": read, "written": written}
            | {"passes": read + written}
        )
    return found


def mean(
    results: Sequence[dict[str, Any]], measure: Callable[..., float | None], *arguments: str
) -> float | None:
    """Return the geometric mean of measure(result, *arguments); None unless every result has it."""
    values = [measure(result, *arguments) for result in results]
    known = [value for value in values if value is not None]
    return geometric_mean(known) if known and len(known) == len(results) else None
