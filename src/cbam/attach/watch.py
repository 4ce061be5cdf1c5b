"""Notice attention that is gone: some tool has rebuilt modules, and nothing else would say so."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from cbam.attach.wrapper import WithAttention
from cbam.formatting import counted
from cbam.nn.base import AttentionModule

# Put in the place of another module for a while, which they keep: pytorch-grad-cam's AblationCAM
_KEEPERS = "AblationLayer"


def attended(model: nn.Module) -> list[str]:
    """Return the names of all sites with attention, also in a graph of `torch.fx`, which has the gates alone.

    >>> attended(nn.Sequential(WithAttention(nn.Conv2d(3, 8, 3), AttentionModule())))
    ['0']
    """
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, WithAttention):
            found[name] = None
        elif isinstance(module, AttentionModule) and (name == "cbam" or name.endswith(".cbam")):
            found[name.removesuffix("cbam").removesuffix(".")] = None
    return list(found)


def what_is_lost(names: list[str], count: int) -> str:
    """Return in words which sites have no attention any more.

    >>> what_is_lost(["layer1.0.bn2"], 8)
    "1 of 8 sites has lost its attention: 'layer1.0.bn2'"
    """
    has = "has lost its" if len(names) == 1 else "have lost their"
    listed = ", ".join(map(repr, names))
    return f"{len(names)} of {counted(count, 'site')} {has} attention: {listed}"


class Watch:
    """A hook of the model that warns, once for each loss, at its next forward pass or `state_dict()`.

    Args:
        model: with its attention.
    """

    observes_only = True  # see `is_hooked`

    def __init__(self, model: nn.Module):
        self.sites = attended(model)

    def __call__(self, model: nn.Module, *unused: Any) -> None:
        """Compare the model with what it had; the arguments are those of a hook."""
        if torch.compiler.is_compiling() or all(_is_there(model, site) for site in self.sites):
            return
        before, self.sites = self.sites, attended(model)
        lost = [site for site in before if site not in self.sites]
        if len(self.sites) < len(before):  # otherwise attention has moved to other modules
            warnings.warn(
                f"{what_is_lost(lost, len(before))}. A tool has replaced or removed modules of the"
                f" {type(model).__name__}. Use it before cbam.attach, or attach again after it.",
                stacklevel=2,
            )


def _is_there(model: nn.Module, site: str) -> bool:
    module: Any = model
    for name in site.split("."):
        modules = module._modules
        module = modules.get(name)
        if module is None and "host" in modules:  # names do not say "host"
            module = modules["host"]._modules.get(name)
        if module is None:
            return False
        if type(module).__name__.startswith(_KEEPERS):
            return True
    return isinstance(module, WithAttention)


def watch(model: nn.Module) -> None:
    """Let the model notice when it loses attention."""
    hook = Watch(model)
    model.register_forward_pre_hook(hook)
    model.register_state_dict_post_hook(hook)


def unwatch(model: nn.Module) -> None:
    """Undo `watch`, in all modules."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._state_dict_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, Watch)]:
                del hooks[key]
