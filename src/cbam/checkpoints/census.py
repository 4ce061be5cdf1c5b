"""Follow a pickle without building what it describes: how much work and memory it asks for.

torch's `weights_only` reader runs no code, but a few hundred bytes can still keep it busy for years: a dictionary's key
that is a tuple of two times the same tuple, forty levels deep, has 2^40 parts to hash.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import IO, Any, ClassVar

from cbam.errors import CBAMError

MOST_WORK = 10_000_000
"""Parts that are hashed, copied or compared, all together; a tensor takes about ten."""
DEEPEST_KEY = 100  # a tuple in a tuple ...; hashing it recurses
# What torch's reader knows, too. The others could hash or copy where this census does not look.
_OPCODES = [
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT",
    "EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT", "LONG1",
]  # fmt: skip
_BASE: dict[int, Any] = dict(pickle._Unpickler.dispatch)


class _Inert:
    """Replaces every class and function in a pickle, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how many parts it has, those of its parts included, and how deep it is."""

    parts: int
    depth: int


class Census(pickle._Unpickler):  # in Python: the unpickler in C allocates as much as a memo index claims
    """Reads a pickle, and records the storages of its tensors without allocating them.

    Args:
        stream: stands at the pickle's first byte.
        name: of the file, for messages.
        size: of the file, in bytes.

    Attributes:
        storages: the elements of each storage.

    Raises:
        CBAMError: by `load`: the pickle asks for more work or memory than its size explains.
        Exception: by `load`, of many types: it is damaged.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: _BASE[getattr(pickle, name)[0]] for name in _OPCODES
    }
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: IO[bytes], name: str, size: int):
        super().__init__(stream)
        self.storages: dict[Any, int] = {}
        self._name = name
        self._size = size
        self._work = 0

    def load(self) -> Any:
        """Follow the pickle to its end."""
        try:
            return super().load()
        except KeyError as error:
            if isinstance(error.args[0], int) and error.args[0] not in self.dispatch:
                raise pickle.UnpicklingError(f"torch.save does not write opcode {error.args[0]}") from None
            raise

    def find_class(self, module: str, name: str) -> Any:
        """Return something inert for every name."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        """Record a storage: ("storage", type, key, location, elements, ...)."""
        self._count(pid)
        if isinstance(pid, tuple) and len(pid) > 4:
            # An element has at least one byte; tensors that share a storage name it again.
            self.storages[pid[2]] = max(0, int(pid[4]), self.storages.get(pid[2], 0))
        return _Inert()

    def _count(self, value: Any, levels: int = 3) -> None:
        """Count a value that is going to be hashed, copied or printed."""
        if getattr(value, "depth", 0) > DEEPEST_KEY:
            raise CBAMError(f"{self._name!r} holds a tuple in a tuple, more than {DEEPEST_KEY} deep.")
        self._work += len(value) if isinstance(value, dict) else getattr(value, "parts", 1)
        if self._work > MOST_WORK:
            raise CBAMError(
                f"{self._name!r} would take more than {MOST_WORK:,} steps to read, too many for its"
                f" {self._size:,} bytes: it names the same things again and again. Weights alone do not."
            )
        if isinstance(value, list) and levels:  # OrderedDict([[key, value], ...])
            for item in value:
                self._count(item, levels - 1)

    def _as_tuple(self, items: Iterable[Any]) -> None:
        found = _Tuple(items)
        found.parts = min(1 + sum(getattr(item, "parts", 1) for item in found), MOST_WORK + 1)
        found.depth = 1 + max((getattr(item, "depth", 0) for item in found), default=0)
        self.append(found)

    def _load_tuple(self) -> None:
        self._as_tuple(self.pop_mark())

    def _load_last(self, count: int) -> None:
        items = self.stack[-count:]
        del self.stack[-count:]
        self._as_tuple(items)

    def _load_call(self, opcode: int) -> None:
        args, function = self.stack[-1], self.stack[-2]
        if not isinstance(function, type) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        for value in (args, *args):
            self._count(value)
        # bytearray(n) allocates n bytes.
        if any(isinstance(value, int) and value > self._size for value in args) and len(args) == 1:
            raise CBAMError(f"{self._name!r} asks for {max(args):,} bytes and has {self._size:,}.")
        _BASE[opcode](self)

    def _load_build(self) -> None:
        state = self.stack[-1]
        for value in state if isinstance(state, tuple) else (state,):
            self._count(value)
        _BASE[pickle.BUILD[0]](self)

    def _load_setitem(self) -> None:
        self._count(self.stack[-2])
        _BASE[pickle.SETITEM[0]](self)

    def _load_setitems(self) -> None:
        for key in self.stack[::2]:
            self._count(key)
        _BASE[pickle.SETITEMS[0]](self)

    dispatch |= {
        pickle.TUPLE[0]: _load_tuple,
        pickle.TUPLE1[0]: lambda self: self._load_last(1),
        pickle.TUPLE2[0]: lambda self: self._load_last(2),
        pickle.TUPLE3[0]: lambda self: self._load_last(3),
        pickle.REDUCE[0]: lambda self: self._load_call(pickle.REDUCE[0]),
        pickle.NEWOBJ[0]: lambda self: self._load_call(pickle.NEWOBJ[0]),
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
    }
