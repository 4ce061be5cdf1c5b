"""What is measured, in the order of importance: what does not fit into the time is left out from the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cbam.bench.cells import BOTH, FORWARD, INFERENCE, PLAIN, TRAINING
from cbam.bench.network import SE, TEXTBOOK
from cbam.bench.settings import shape_text
from gpu.network import OURS, OURS_APART

STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
ODD = ((2, 33, 17, 3), (1, 257, 5, 5), (3, 1, 4, 1), (1, 5, 1, 1), (1, 100, 2, 31), (9, 7, 3, 3))
BF16, NHWC = "bfloat16", "channels_last"
TYPES = ((BF16, NHWC), (BF16, "contiguous"), ("float16", NHWC), ("float32", NHWC), ("float32", "contiguous"),
         ("float16", "contiguous"))  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One thing for a worker to do.

    Args:
        name: What tells it from all others; its result goes by that.
        kind: Which function does it, see `worker.KINDS`.
        arguments: For that.
        needs: Seconds; it is not begun with less time left.
        limit: Seconds after which it is given up.
        serves: Name of the job that this one prepares, and without which it is not needed.
    """

    name: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    needs: float = 5.0
    limit: float = 60.0
    serves: str = ""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        name: full, quick or tiny.
        stages: Maps (C, H, W) of the modules.
        odd: Maps of odd shapes.
        types: Types and layouts that are checked.
        check_batch: Samples in the maps that are checked.
        large: A map past 2**31 elements.
        batches: Of the modules, the most important first.
        network_batches: The same for the networks.
        size: Height and width of the images.
        more: Further types and layouts for the modules, at the first batch.
        compiled: Whether the rivals are compiled too.
        rounds, seconds: Of each measurement.
    """

    name: str
    stages: tuple[tuple[int, int, int], ...] = STAGES
    odd: tuple[tuple[int, int, int, int], ...] = ODD
    types: tuple[tuple[str, str], ...] = TYPES
    check_batch: int = 32
    large: tuple[int, int, int, int] = (1340, 512, 56, 56)
    batches: tuple[int, ...] = (128, 32, 1, 256)
    network_batches: tuple[int, ...] = (128, 32, 256, 1)
    size: int = 224
    more: tuple[tuple[str, str], ...] = ((BF16, "contiguous"), ("float32", NHWC))
    compiled: bool = True
    rounds: int = 25
    seconds: float = 0.6

    @property
    def tiny(self) -> bool:
        """Whether it is a dry run."""
        return self.name == "tiny"


SCALES = {
    "full": Scale("full"),
    "quick": Scale(
        "quick", stages=(STAGES[0], STAGES[3]), odd=ODD[:2], types=TYPES[:1] + TYPES[4:5], batches=(128,),
        network_batches=(32,), more=(), compiled=False, rounds=7, seconds=0.3,
    ),
    "tiny": Scale(
        "tiny", stages=((8, 6, 6),), odd=ODD[2:4], types=TYPES[:1] + TYPES[4:5], check_batch=2,
        large=(4, 8, 3, 3), batches=(2,), network_batches=(2,), size=32, more=(), rounds=2, seconds=0.1,
    ),
}  # fmt: skip


def checks(scale: Scale) -> Iterator[Job]:
    """Yield the checks of correctness."""
    last, exact = scale.stages[-1], ("float32", "contiguous")
    ends = dict.fromkeys((scale.stages[0], last))
    for dtype, layout in scale.types:
        for stage in scale.stages:
            yield _check("values", "module", (scale.check_batch, *stage), dtype, layout)
        if (dtype, layout) == scale.types[0]:
            for stage in scale.stages:
                yield _check("values", "epilogue", (scale.check_batch, *stage), dtype, layout, training=True)
    for what in ("graph", "compiled"):
        yield _check(what, "module", (scale.check_batch, *last), BF16, NHWC)
        yield _check(what, "epilogue", (scale.check_batch, *last), BF16, NHWC, training=True)
    yield _check("autocast", "module", (scale.check_batch, *last), BF16, NHWC)
    yield _check("autocast", "module", (scale.check_batch, *last), "float32", NHWC)
    for dtype, layout in (scale.types[0], exact):
        for stage in ends:
            shape = (scale.check_batch, *stage)
            yield _check("values", "norm", shape, dtype, layout, training=True)
            yield _check("values", "norm", shape, dtype, layout)
            yield _check("values", "epilogue", shape, dtype, layout)
            yield _check("values", "module", shape, dtype, layout, training=True, preset="official")
            yield _check("values", "module", shape, dtype, layout, preset="official")
    for dtype, layout in (scale.types[0], exact):
        for stage in ends:
            yield _check("values", "module", (1, *stage), dtype, layout)
            yield _check("values", "epilogue", (1, *stage), dtype, layout, training=True)
        for shape in scale.odd:
            yield _check("values", "module", shape, dtype, layout)
            if shape[0] * shape[2] * shape[3] > 1:
                yield _check("values", "epilogue", shape, dtype, layout, training=True)
    yield _check("large", "module", scale.large, BF16, NHWC)


def ahead(scale: Scale) -> Iterator[Job]:
    """Yield what can be compiled while the checks run."""
    if not scale.compiled or scale.tiny:
        return
    main, *others = scale.batches
    yield from _ahead_of(
        _modules(scale, main, True), "compile module", ("mode", "shape", "dtype", "memory_format")
    )
    for job in _networks(scale, (TRAINING, INFERENCE), "compiled", scale.network_batches[0]):
        for network in job.arguments["names"]:
            arguments = {key: job.arguments[key] for key in ("mode", "batch", "size", "tiny")} | {
                "names": [network]
            }
            yield Job(f"compile {network}, {job.name}", "compile network", arguments, 20, 180, job.name)
    for batch in others[:2]:
        jobs = _modules(scale, batch, True)
        yield from _ahead_of(jobs, "compile module", ("mode", "shape", "dtype", "memory_format"))


def _ahead_of(jobs: Iterator[Job], kind: str, keys: Sequence[str]) -> Iterator[Job]:
    for job in jobs:
        arguments = {key: job.arguments[key] for key in keys}
        yield Job(f"compile {job.name}", kind, arguments, 20, 120, job.name)


def timings(scale: Scale) -> Iterator[Job]:
    """Yield the measurements; they run one after the other."""
    main, *others = scale.batches
    compiled = scale.compiled
    yield from _modules(scale, main, compiled)
    yield Job("state under load", "state")
    yield from _networks(scale, (TRAINING, INFERENCE), "eager", scale.network_batches[0])
    yield from _networks(scale, (INFERENCE,), "graph", 1)
    yield Job("dram traffic", "traffic", {"shapes": _shapes(scale, main)}, needs=30, limit=100)
    yield Job("host overhead", "host", {"dtype": BF16, **_rounds(scale)}, needs=6)
    if compiled:
        yield from _networks(scale, (TRAINING, INFERENCE), "compiled", scale.network_batches[0])
    yield Job("kernels", "kernels", {"shapes": _shapes(scale, main)}, needs=8)
    for batch in others[:2]:
        yield from _modules(scale, batch, compiled)
    for batch in scale.network_batches[1:]:
        yield from _networks(scale, (TRAINING, INFERENCE), "eager", batch)
    for dtype, layout in scale.more:
        yield from _modules(scale, main, False, dtype, layout)
    for batch in others[2:]:
        yield from _modules(scale, batch, compiled)
    if compiled and not scale.tiny:
        yield from _networks(scale, (INFERENCE,), "compiled", 1)


def _check(
    what: str,
    kind: str,
    shape: Sequence[int],
    dtype: str,
    layout: str,
    training: bool = False,
    preset: str = "paper",
) -> Job:
    words = [what, kind, *([preset] if preset != "paper" else []), *(["training"] if training else [])]
    arguments: dict[str, Any] = {
        "what": what,
        "kind": kind,
        "shape": shape,
        "dtype": dtype,
        "memory_format": layout,
    }
    arguments |= {"training": training, "preset": preset}
    return Job(f"check {' '.join(words)} {shape_text(shape)} {dtype} {layout}", "check", arguments, limit=90)


def _shapes(scale: Scale, batch: int) -> list[tuple[int, ...]]:
    return [(batch, *stage) for stage in scale.stages]


def _rounds(scale: Scale) -> dict[str, Any]:
    return {"rounds": scale.rounds, "seconds": scale.seconds}


def _modules(
    scale: Scale, batch: int, compiled: bool, dtype: str = BF16, layout: str = NHWC
) -> Iterator[Job]:
    for mode in (BOTH, FORWARD):
        for stage in scale.stages:
            shape = (batch, *stage)
            arguments: dict[str, Any] = {
                "mode": mode,
                "shape": shape,
                "dtype": dtype,
                "memory_format": layout,
            }
            arguments |= {"compiled": compiled, **_rounds(scale)}
            name = f"modules {mode} {shape_text(shape)} {dtype} {layout}"
            yield Job(name, "module", arguments, needs=12 if compiled else 6, limit=75)


def _networks(scale: Scale, modes: Sequence[str], way: str, batch: int) -> Iterator[Job]:
    names = [PLAIN, OURS, TEXTBOOK, SE]
    if way != "compiled":
        names.insert(2, OURS_APART)
    if way == "compiled" and scale.tiny:
        names = [PLAIN, OURS]
    for mode in modes:
        arguments: dict[str, Any] = {
            "mode": mode,
            "way": way,
            "batch": batch,
            "size": scale.size,
            "tiny": scale.tiny,
        }
        arguments |= {"names": names, "rounds": scale.rounds, "seconds": 4 * scale.seconds}
        needs = 45 if way == "compiled" else 12
        yield Job(f"network {mode} {way} batch {batch}", "network", arguments, needs, limit=150)
