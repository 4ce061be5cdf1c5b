"""The table of checks, and the cases that it makes of a kind of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch

from cbam.errors import CBAMError, unknown_name
from cbam.nn.base import AttentionModule
from cbam.nn.kind import AttentionKind, Builder
from cbam.nn.registry import attention_kind, check_options
from cbam.ops.dispatch import BACKENDS, DTYPES
from cbam.testing import copies, network, numbers, tools
from cbam.testing.subject import MEMORY_FORMATS, Subject

SHAPES = ((2, 16, 7, 9), (1, 16, 1, 1), (3, 16, 4, 1))
OTHER_DIMS = ((2, 16, 11), (2, 16, 3, 5, 4))  # where the builder has a parameter `dims`


class Check(NamedTuple):
    """One row of the table.

    Args:
        run: raises an `AssertionError`, or `unittest.SkipTest` where it says nothing about the kind.
        varies: over "dtypes", "memory_formats", "shapes"; otherwise the first one of each is used. All vary over the
            backends.
        dtype: the only one in which it runs, where it does not vary over them.
    """

    run: Callable[[Subject], None]
    varies: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32


_ALL = ("dtypes", "memory_formats", "shapes")
CHECKS: Mapping[str, Check] = {
    "forward": Check(numbers.forward, _ALL),
    "backward": Check(numbers.backward, _ALL),
    "finite differences": Check(numbers.differences, ("memory_formats",), torch.float64),
    "identity": Check(numbers.identity, _ALL),
    "modes": Check(numbers.modes),
    "autocast": Check(numbers.autocast),
    "deepcopy": Check(copies.deepcopy),
    "pickle": Check(copies.pickled),
    "state dict": Check(copies.state_dict),
    "saved": Check(copies.saved),
    "SyncBatchNorm": Check(copies.sync_batch_norm),
    "moving average": Check(copies.moving_average),
    "fx": Check(tools.traced),
    "torch.func": Check(tools.functional),
    "export": Check(tools.export),
    "compile": Check(tools.compiled),
    "attach": Check(network.attached, ("memory_formats",)),
    "attention maps": Check(network.maps),
}


@dataclass(frozen=True)
class Case:
    """One check of one kind of attention; `run` raises where it fails, `str` is its name.

    Args:
        check: its name in `CHECKS`.
        subject: what is checked, and how.
    """

    check: str
    subject: Subject

    def run(self) -> None:
        """Run the check.

        Raises:
            AssertionError: it fails; the message says what was found.
            unittest.SkipTest: it says nothing about this kind.
        """
        s = self.subject
        with s.circumstances():
            CHECKS[self.check].run(s)

    def __str__(self) -> str:
        s = self.subject
        shape = "x".join(map(str, s.shape))
        dtype = str(s.dtype).removeprefix("torch.")
        return (
            f"{s.kind.description(s.options)}: {self.check}, {s.backend}, {dtype}, {s.memory_format}, {shape}"
        )


def cases(
    attention: str | Builder,
    *,
    checks: Iterable[str] | None = None,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    memory_formats: Sequence[str] = MEMORY_FORMATS,
    shapes: Sequence[tuple[int, ...]] | None = None,
    device: str = "cpu",
    **options: Any,
) -> list[Case]:
    """Return the cases of a kind of attention, for `pytest.mark.parametrize`.

    Values and gradients are checked for every combination, everything else in float32 and for the first shape; all of
    it with every backend.

    Args:
        attention: a registered name, or a class or function channels -> module.
        checks: names from `cbam.testing.CHECKS`; by default all.
        backends: of `cbam.set_backend`; by default "auto", and "eager" too for a kind that has a fused operator.
        dtypes: of weights and maps.
        memory_formats: "contiguous", "channels_last".
        shapes: of maps, (N, C, H, W) or with other sizes; by default of usual size, of 1 x 1 and of width 1, and one
            of a signal and one of a volume where the builder has a parameter `dims`.
        device: on which all of it runs.
        **options: of the attention.

    Raises:
        CBAMError: an unknown name of attention, option, check, backend or memory format; a shape that is no map's.

    >>> rows = cases("eca", checks=["forward", "deepcopy"], kernel_size=3)
    >>> print(rows[0])
    eca (k=3): forward, auto, float32, contiguous, 2x16x7x9
    >>> len(rows), rows[-1].run()
    (37, None)

    In a file of tests:

        @pytest.mark.parametrize("case", cbam.testing.cases("my_gate", width=4), ids=str)
        def test_my_gate(case):
            case.run()
    """
    kind = attention_kind(attention)
    check_options(kind, options)
    shapes = tuple(map(tuple, _default_shapes(kind) if shapes is None else shapes))
    _check_names(checks, backends, memory_formats, shapes)
    backends = _default_backends(kind, options, shapes[0]) if backends is None else tuple(backends)
    made = []
    for name in CHECKS if checks is None else checks:
        check = CHECKS[name]
        axes = (
            dtypes if "dtypes" in check.varies else (check.dtype,),
            memory_formats if "memory_formats" in check.varies else memory_formats[:1],
            shapes if "shapes" in check.varies else shapes[:1],
        )
        for backend, dtype, memory_format, shape in product(backends, *axes):
            if memory_format == "channels_last" and len(shape) == 3:
                continue  # a signal has no such format
            subject = Subject(kind, attention, options, backend, dtype, memory_format, shape, device)
            made.append(Case(name, subject))
    return made


def _default_shapes(kind: AttentionKind) -> Sequence[tuple[int, ...]]:
    return (*SHAPES, *OTHER_DIMS) if kind.has_dims else SHAPES


def _default_backends(
    kind: AttentionKind, options: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[str, ...]:
    with torch.random.fork_rng(devices=[]):
        block = kind.build(shape[1], {**options, "dims": len(shape) - 2})
    return (
        ("auto",) if type(block).operator_weights is AttentionModule.operator_weights else ("auto", "eager")
    )


def _check_names(
    checks: Iterable[str] | None,
    backends: Sequence[str] | None,
    memory_formats: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
) -> None:
    for what, given, valid in (
        ("check", checks, CHECKS),
        ("backend", backends, BACKENDS),
        ("memory format", memory_formats, MEMORY_FORMATS),
    ):
        for name in given or ():
            if name not in valid:
                raise unknown_name(what, name, valid)
    for shape in shapes:
        if not 3 <= len(shape) <= 5 or not all(type(size) is int and size >= 0 for size in shape):
            raise CBAMError(f"shapes expects shapes of maps such as (2, 16, 7, 9), given {shape!r}.")
    if not shapes:
        raise CBAMError("shapes expects at least one shape of a map, such as (2, 16, 7, 9).")
