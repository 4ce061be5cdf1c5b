"""The module that puts attention behind (or in front of) another module and keeps that module's state-dict keys.

After `attach`, `layer1.0.bn2` is a `WithAttention` whose `host` is the batch norm. State dicts, `named_parameters` and
`named_buffers` say `layer1.0.bn2.weight` as before, and `layer1.0.bn2.cbam.*` for the new weights. Among modules the
norm itself is `layer1.0.bn2.host`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from cbam.attach import folding
from cbam.attach.names import HOST, HostName, Tensors
from cbam.errors import CBAMError
from cbam.nn import after_norm
from cbam.nn.base import AttentionModule, is_like, is_plain

_ATTENTION = "cbam."


class BlockEnd(NamedTuple):
    """What follows a site in its block.

    Args:
        shortcut: the map that is added.
        relu: whether a ReLU follows.
        apart: the same steps as the block's own code does them, a function of the site's output.
    """

    shortcut: Tensor
    relu: bool
    apart: Callable[[Tensor], Tensor]


class WithAttention(nn.Module):
    """A host module with attention on its output, or on its input if the host only returns that.

    Args:
        host: the module at the site.
        attention: the gate.
        position: "output" or "input".
    """

    def __init__(self, host: nn.Module, attention: AttentionModule, position: str = "output"):
        super().__init__()
        self.position = position
        self.host = host
        self.cbam = attention
        self.training = host.training
        self._name_as_host()
        self.register_state_dict_post_hook(_hide_host)
        self.register_load_state_dict_pre_hook(_find_host)
        self.register_load_state_dict_post_hook(_hide_host_in_report)

    def _name_as_host(self) -> None:
        for kind in ("_parameters", "_buffers"):
            own = self.__dict__.get(kind, {})
            self.__dict__[kind] = Tensors(self._modules, kind)
            self.__dict__[kind].update(own)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._name_as_host()
        if (
            _hide_host_in_report not in self._load_state_dict_post_hooks.values()
        ):  # pickled before there was one
            self.register_load_state_dict_post_hook(_hide_host_in_report)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield all modules in here; the names of what the host holds do not say "host"."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            inside = f"{prefix}.{name}" if prefix else name
            if child is not None:
                inside = HostName(inside) if name == "host" else inside
                yield from child.named_modules(memo, inside, remove_duplicate)

    def forward(self, *args: Any, block_end: BlockEnd | None = None, **kwargs: Any) -> Any:
        """Return attention(host(x)), or host(attention(x)); a batch norm and its attention run together.

        With `block_end`, return what the block returns.
        """
        if block_end is not None:
            return self._to_the_end(args[0], block_end)
        if self.position == "input":
            return self.host(self.cbam(args[0]), *args[1:], **kwargs)
        parts: Any = self._modules
        if len(args) == 1 and not kwargs:
            together = after_norm.attend(parts["host"], parts["cbam"], args[0])
            if together is not None:
                return together
        return self.cbam(self.host(*args, **kwargs))

    def _to_the_end(self, u: Any, end: BlockEnd) -> Any:
        parts: Any = self._modules
        host, attention = parts["host"], parts["cbam"]
        y = after_norm.attend(host, attention, u, end.shortcut, end.relu)
        if y is not None:
            return y
        if is_plain(host, nn.BatchNorm2d) and not is_like(end.shortcut, u):
            return end.apart(self.forward(u))  # norm and attention may still run together
        if not isinstance(attention, AttentionModule):
            return end.apart(self.forward(u))
        x = host(u)
        y = attention.attend_epilogue(x, end.shortcut, end.relu)
        return end.apart(attention(x)) if y is None else y

    def __getattr__(self, name: str) -> Any:
        # Model code that reads the host's attributes (`bn.weight`, `conv.out_channels`) goes on working.
        try:
            return super().__getattr__(name)
        except AttributeError:
            host = self.__dict__.get("_modules", {}).get("host")
            if host is None:
                raise
        if name in folding.METHODS:
            raise AttributeError(
                f"{type(host).__name__}.{name} would replace a module without the attention behind it."
                f" {folding.WITHOUT_LOSS}"
            )
        if name == "eps" and "running_var" in host._buffers:  # nobody else reads it of another module
            raise CBAMError(
                f"folding a {type(host).__name__} into its convolution would lose the attention behind it."
                f" {folding.WITHOUT_LOSS}"
            )
        return getattr(host, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # What is read from the host is written to the host: `bn.weight = ...`, `bn.momentum = 0.1`.
        host = self.__dict__.get("_modules", {}).get("host")
        ours = host is None or name in self.__dict__ or name in self._modules or hasattr(type(self), name)
        if ours or not hasattr(host, name):
            super().__setattr__(name, value)
        elif name == "bias" and isinstance(host, nn.Conv2d) and host.bias is None and value is not None:
            raise CBAMError(
                "a batch norm cannot be folded into the convolution in front of it where attention is between the two:"
                " the gates would see another map. Take the attention out first, cbam.detach(model), or attach it"
                " behind the norm. A bias of the convolution itself goes into m.host.bias."
            )
        elif name in host._parameters and isinstance(value, Tensor):
            # torch.func.functional_call puts plain tensors here.
            host._parameters[name] = cast("nn.Parameter", value)
        else:
            setattr(host, name, value)

    def __getitem__(self, index: Any) -> Any:
        """Return the host's part at `index`, for hosts that are containers."""
        return cast("nn.Sequential", self.host)[index]

    def _fqn_modifiers(self) -> dict[str, str]:
        """Tell torch.distributed.checkpoint that the state dict's names do not say "host"."""
        return {"": "host"}

    def extra_repr(self) -> str:
        """Name the position if it is not the output."""
        return "" if self.position == "output" else f"position={self.position!r}"


def _hide_host(module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
    for key in list(state_dict):
        if key.startswith(prefix):  # all of them again, to keep their order
            state_dict[prefix + key.removeprefix(prefix).removeprefix(HOST)] = state_dict.pop(key)


def _find_host(
    module: nn.Module, state_dict: Any, prefix: str, metadata: Any, strict: bool, *reported: list[str]
) -> None:
    for key in list(state_dict):
        rest = key[len(prefix) :]
        if key.startswith(prefix) and not rest.startswith((HOST, _ATTENTION)):
            state_dict[prefix + HOST + rest] = state_dict.pop(key)
    module.__dict__["_loading"] = prefix, reported


def _hide_host_in_report(module: nn.Module, incompatible_keys: Any) -> None:
    """Let the missing and unexpected keys and the messages of a load say the state dict's names."""
    prefix, reported = module.__dict__.pop("_loading", ("", ()))
    for said in reported:
        said[:] = [key.replace(prefix + HOST, prefix, 1) for key in said]
