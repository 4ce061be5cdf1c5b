"""Blocks that run their epilogue, relu(attention(norm(u)) + shortcut), as one call of the operator.

Such a block is the same object as before, with the same parts, names, keys and hooks, but of another class: a subclass
of its own. If the block is no longer what was recorded, or there are hooks on a part that would be skipped, its own
forward pass runs. That costs time, never attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cbam.attach.fusion.epilogue import Epilogue, epilogue_of, find_epilogue
from cbam.attach.fusion.recording import Recording, record
from cbam.attach.wrapper import BlockEnd, WithAttention
from cbam.nn.base import has_global_hooks, is_hooked, is_plain
from cbam.ops import dispatch


class WithEpilogue(nn.Module):
    """The first base of the new class of a block; the second is its class before."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns; its epilogue runs together with the attention where possible."""
        plain: Any = super().forward
        if torch.compiler.is_compiling() or len(args) != 1 or kwargs:
            return plain(*args, **kwargs)
        if (
            type(args[0]) not in (Tensor, nn.Parameter)  # torch.fx traces with something else
            or dispatch.backend() == "eager"
            or "_is_replica" in vars(self)  # nn.DataParallel makes new ones in every step
        ):
            return plain(*args)
        parts = _parts_of(self, plain.__func__)
        if parts is None or parts.are_watched():
            return plain(*args)
        u, shortcut = parts.front(self, args[0])
        return parts.site(
            u, block_end=BlockEnd(shortcut, parts.relu, lambda a: parts.back(self, a, shortcut))
        )

    def extra_repr(self) -> str:
        """Say that the class is a subclass of the one printed."""
        return ", ".join(filter(None, (super().extra_repr(), "ends together with its attention")))

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        function, args, *state = reduced
        if _is_made(type(self)):  # its name is that of the class before
            function, args = _new, (type(self).__bases__[1], *args[1:])
        return function, args, *state


@dataclass(frozen=True)
class _Parts:
    """A block in parts: before the site, the site, after the site."""

    front: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    site: WithAttention
    back: Callable[[nn.Module, Tensor, Tensor], Tensor]
    relu: bool
    passed: tuple[tuple[nn.Module, type[nn.Module]], ...]
    entered: tuple[nn.Module, ...]

    @classmethod
    def of(cls, epilogue: Epilogue, site: WithAttention) -> _Parts:
        return cls(
            epilogue.front(),
            site,
            epilogue.back(),
            epilogue.relu,
            epilogue.passed,
            epilogue.recording.entered,
        )

    def are_watched(self) -> bool:
        """Return whether there are hooks that would not run."""
        if has_global_hooks() or not is_plain(self.site, WithAttention) or any(map(is_hooked, self.entered)):
            return True
        return not all(is_plain(module, kind) for module, kind in self.passed)


@dataclass(frozen=True)
class _Found:
    """What was found in a block, and the recordings that this depends on."""

    forward: Callable[..., Any]
    recordings: tuple[Recording, ...]
    parts: _Parts | None

    def holds(self, forward: Callable[..., Any]) -> bool:
        return self.forward is forward and all(recording.holds() for recording in self.recordings)


# Not in the blocks, so that it is neither copied nor pickled with them.
_found: WeakKeyDictionary[nn.Module, _Found] = WeakKeyDictionary()


def _parts_of(block: nn.Module, forward: Callable[..., Any]) -> _Parts | None:
    found = _found.get(block)
    if found is None or not found.holds(forward):
        found = _found[block] = _look(block, forward)
    return found.parts


def _look(block: nn.Module, forward: Callable[..., Any]) -> _Found:
    recordings = []
    for site in block.modules():
        if type(site) is WithAttention and site.position == "output":
            recordings.append(record(block, forward, site))
            epilogue = epilogue_of(block, recordings[-1])
            if epilogue is not None:
                return _Found(forward, (epilogue.recording,), _Parts.of(epilogue, site))
    return _Found(forward, tuple(recordings), None)


def find_blocks(model: nn.Module, sites: list[str]) -> dict[str, tuple[nn.Module, Epilogue]]:
    """Return {site: (block, its epilogue)} for the sites at which the epilogue of a block begins.

    Args:
        model: any module; it is not a block itself.
        sites: paths of modules in it.
    """
    modules = dict(model.named_modules())
    found: dict[str, tuple[nn.Module, Epilogue]] = {}
    for name in sites:
        block, epilogue = _innermost(modules, name)
        if (
            epilogue is not None
            and _takes_a_subclass(type(block))
            and block not in [b for b, _ in found.values()]
        ):
            found[name] = block, epilogue
    return found


def _innermost(modules: dict[str, nn.Module], site: str) -> tuple[nn.Module, Epilogue | None]:
    above = site.rpartition(".")[0]
    while above:
        epilogue = find_epilogue(modules[above], modules[site])
        if epilogue is not None:
            return modules[above], epilogue
        above = above.rpartition(".")[0]
    return modules[site], None


def with_epilogue(block: nn.Module) -> None:
    """Let a block run its epilogue together with its attention."""
    cls: Any = type(block)
    if not issubclass(cls, WithEpilogue):
        block.__class__ = _subclass(cls)


def without_epilogue(block: nn.Module) -> None:
    """Undo `with_epilogue`."""
    _found.pop(block, None)
    if _is_made(type(block)):
        block.__class__ = type(block).__bases__[1]


@cache
def _subclass(base: Any) -> type[nn.Module]:
    named = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (WithEpilogue, base), named)


def _is_made(cls: type) -> bool:
    return cls.__bases__[0] is WithEpilogue


def _new(base: Any, *args: Any) -> nn.Module:
    cls = _subclass(base)
    return cls.__new__(cls, *args)


def _takes_a_subclass(cls: type[nn.Module]) -> bool:
    """Return whether objects of a class can become objects of a subclass and still be copied."""
    if type(cls) is not type:
        return False
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return False
    if any("__slots__" in vars(base) for base in cls.__mro__):
        return False
    return "__init_subclass__" not in {name for base in cls.__mro__[:-1] for name in vars(base)}
