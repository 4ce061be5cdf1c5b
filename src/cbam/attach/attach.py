"""Put attention into a model in place, take it out again, switch it off for a while."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from cbam.attach.config import Attention, AttentionConfig
from cbam.attach.fusion.with_epilogue import WithEpilogue, without_epilogue
from cbam.attach.graph.probe import InputSize
from cbam.attach.insert import Insertion, exchange, insert
from cbam.attach.plan import Plan, make_plan
from cbam.attach.sites.select import Selectors, Sites
from cbam.attach.watch import attended, unwatch, what_is_lost
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule

logger = logging.getLogger(__name__)

_lock = threading.Lock()
# By module: how many blocks of `disabled` are open, and whether it was enabled before the first of them.
_disabled: WeakKeyDictionary[AttentionModule, tuple[int, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Attachment(Plan):
    """What was attached; prints as the plan's table."""

    def check(self, model: nn.Module) -> None:
        """Raise if attention that was attached is gone, after some tool has rebuilt parts of the model.

        The model warns by itself at the next forward pass or `state_dict()`, unless the tool has built another one
        around its parts.

        Args:
            model: the one that attention was attached to, or what a tool made of it.

        Raises:
            CBAMError: fewer sites have attention; the message names those that have lost it.

        >>> from torchvision.models import resnet18
        >>> model = resnet18()
        >>> attachment = attach(model)
        >>> attachment.check(model)
        >>> model.layer1[0].bn2 = nn.Identity()
        >>> attachment.check(model)
        Traceback (most recent call last):
        cbam.errors.CBAMError: 1 of 8 sites has lost its attention: 'layer1.0.bn2'. ...
        """
        here = attended(model)
        if len(here) < len(self.sites):
            lost = what_is_lost([s.name for s in self.sites if s.name not in here], len(self.sites))
            raise CBAMError(f"{lost}. What rebuilds modules comes before cbam.attach.")


def plan(
    model: nn.Module,
    attention: Attention = "cbam",
    sites: Sites = "auto",
    *,
    init: str = "identity",
    exclude: Selectors = (),
    input_size: InputSize = None,
    example_input: Any = None,
    fuse_epilogue: bool = True,
    **options: Any,
) -> Plan:
    """Return the table of what `attach` with the same arguments would do; the model is not changed.

    Raises:
        CBAMError: everything that `attach` raises.

    >>> from torchvision.models import resnet18
    >>> print(str(plan(resnet18())).splitlines()[0])
    cbam (preset paper, r=16, k=7) in ResNet: 8 sites, init identity
    """
    config = AttentionConfig(attention, init, options)
    return make_plan(model, config, sites, exclude, input_size, example_input, fuse_epilogue).plan


def attach(
    model: nn.Module,
    attention: Attention = "cbam",
    sites: Sites = "auto",
    *,
    init: str = "identity",
    exclude: Selectors = (),
    input_size: InputSize = None,
    example_input: Any = None,
    fuse_epilogue: bool = True,
    **options: Any,
) -> Attachment:
    """Put attention into a CNN in place, at the end of every residual branch unless told otherwise.

    All checks come before the first change, so a call that raises leaves the model as it was. Every state-dict key
    stays valid; the new ones say `.cbam.`. The new weights take device, dtype and training mode of their host.
    Do it before building the optimizer, and before DistributedDataParallel or torch.compile.

    The attention has the dimensions of its map, whose channels the operations that made it tell.

    Args:
        model: any CNN, trained or not, of one, two or three dimensions.
        attention: "cbam", "se", "channel" (CBAM's channel gate alone), "spatial", "eca", a name of
            `cbam.register_attention`, or "timm:NAME" for what timm's factory builds. Or a class or a function
            channels -> module, for any module that keeps the shape of a map.
        sites: found by tracing one forward: "residual": the end of every residual branch, before the addition, as in
            the paper; "block": behind every block; "stage": the last map at each resolution; "conv": behind every
            convolution with its norm and activation; "head": right before every classifier of a detector, or the last
            map before pooling; "auto": "residual", or "stage", or "conv", the first that has sites. Or a path, a glob,
            "re:...", a module type or module, a predicate (name, module) -> bool. Or a list of these. Or a dict
            {one of these: options}, such as {"layer3": {}, "layer4": {"reduction_ratio": 8, "attention": "se"}}:
            options of this call, changed at these sites; where two match, the last one holds.
        init: "identity": the output stays the same bit for bit until training moves it (where the attention cannot
            do that, a note of the plan says so); "paper": fresh gates, for training from scratch (they scale a trained
            branch to about a quarter).
        exclude: sites to leave out, in the same language.
        input_size: (C, H, W) of the probe's image, (C, L) of a signal, (C, D, H, W) of a volume, or one side; default:
            the model's own, or 224 x 224, 1024 or 64 x 64 x 64, by the first convolution.
        example_input: the arguments of the probe forward, for models that take more than one image.
        fuse_epilogue: where a block ends in relu(attention(...) + shortcut), let the operator compute all of that.
        **options: of the attention: for CBAM `reduction_ratio`, `kernel_size`, `preset` and the switches of
            `cbam.CBAM`; otherwise the parameters of the class or function.

    Returns:
        What was attached; `print` shows it as a table.

    Raises:
        CBAMError: an unknown name; a pattern that matches nothing; a model that carries attention already, in which
            no site is found, or whose probe forward fails; a site whose map is not (N, C, ...) or not known to be;
            attention that does not keep the shape of a map.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> model, image = resnet18().eval(), torch.rand(1, 3, 64, 64)
    >>> before = model(image)
    >>> attachment = attach(model)
    >>> len(attachment.sites), torch.equal(model(image), before)
    (8, True)
    """
    config = AttentionConfig(attention, init, options)
    made, at, blocks, changes = make_plan(
        model, config, sites, exclude, input_size, example_input, fuse_epilogue
    )
    insertions = {
        s.name: Insertion(s.position, partial(at[s.name].build, s.channels, s.dims)) for s in made.sites
    }
    insert(model, insertions, blocks)
    for note in changes:
        logger.warning(note)
    return Attachment(**{name: getattr(made, name) for name in made.__dataclass_fields__})


def detach(model: nn.Module) -> int:
    """Take all attached attention out of the model in place and return how many sites it had.

    The model then is what it was before `attach`, except for what training, or `fold_gate_scale`, has changed in its
    own weights.

    Raises:
        CBAMError: the model carries no attached attention.

    >>> from torchvision.models import resnet18
    >>> model = resnet18()
    >>> _ = attach(model)
    >>> detach(model)
    8
    """
    attached: dict[nn.Module, nn.Module] = {
        m: m.host for m in model.modules() if isinstance(m, WithAttention)
    }
    if not attached:
        raise CBAMError(
            f"{type(model).__name__} carries no attached attention. Attach it first: cbam.attach(model)."
        )
    exchange(model, attached)
    unwatch(model)
    for module in model.modules():
        if isinstance(module, WithEpilogue):
            without_epilogue(module)
    return len(attached)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Switch off every attention module in the model inside a `with` block: each hands its input on.

    It holds for all threads; blocks of several threads may overlap, and attention is on again after the last one.

    Raises:
        CBAMError: the model has no attention module.

    >>> import torch
    >>> from cbam import CBAM
    >>> block, x = CBAM(8), torch.rand(1, 8, 5, 5)
    >>> with disabled(block):
    ...     torch.equal(block(x), x)
    True
    """
    blocks = [module for module in model.modules() if isinstance(module, AttentionModule)]
    if not blocks:
        raise CBAMError(f"{type(model).__name__} has no attention module to switch off.")
    with _lock:
        for block in blocks:
            count, enabled = _disabled.get(block, (0, block.enabled))
            _disabled[block] = count + 1, enabled
            block.enabled = False
    try:
        yield model
    finally:
        with _lock:
            for block in blocks:
                count, enabled = _disabled.pop(block)
                if count > 1:
                    _disabled[block] = count - 1, enabled
                else:
                    block.enabled = enabled
