"""One set of names: what a module inside a `WithAttention` holds is called as if it were not inside.

torch takes the names of parameters from those of modules, and finds a parameter by name in `_parameters` of the module
that the rest of the name leads to. A `WithAttention` therefore says in `named_modules` how its host's tensors are
called, and its `_parameters` and `_buffers` know the host's by name. They list none, since whatever goes through all
modules finds the tensors at the host, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbam.errors import CBAMError

HOST = "host."


class HostName(str):
    """The name of a host in `named_modules`: what is in it has names without "host".

    >>> name = HostName("layer1.0.bn2.host")
    >>> name + "." + "weight", f"{name}"
    ('layer1.0.bn2.weight', 'layer1.0.bn2.host')
    """

    __slots__ = ()

    def __add__(self, other: str) -> str:
        if other.startswith("."):
            return self.removesuffix("host") + other[1:]
        return super().__add__(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class Tensors(dict[str, Any]):
    """A wrapper's own tensors, of which it has none unless a tool adds some; by name also those of its host.

    Args:
        modules: `_modules` of the wrapper, so that a host that is exchanged is seen.
        kind: "_parameters" or "_buffers".
    """

    def __init__(self, modules: Mapping[str, Any], kind: str):
        super().__init__()
        self.modules = modules
        self.kind = kind

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._of_host()

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name) if super().__contains__(name) else self._of_host()[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the tensor of that name."""
        return self[name] if name in self else default  # noqa: SIM401 - that is this method

    def __setitem__(self, name: str, tensor: Any) -> None:
        of_host = self._of_host()
        if name in of_host:
            of_host[name] = tensor
        else:
            super().__setitem__(name, tensor)

    def __delitem__(self, name: str) -> None:
        if not super().__contains__(name) and name in self._of_host():
            self.pop(f"{name}_orig", None)  # torch's pruning begins with it
            raise CBAMError(
                f"{name!r} is a tensor of the module in front of the attention, which cannot do without it. To prune or"
                " parametrise it, pass m.host, where m is the module with its attention."
            )
        super().__delitem__(name)

    def _of_host(self) -> dict[str, Any]:
        return getattr(self.modules.get("host"), self.kind, {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.modules, self.kind), None, None, iter(self.items())
