"""Put attention into a model in place, take it out again, switch it off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from cbam.attach.fusion.with_epilogue import WithEpilogue, without_epilogue
from cbam.attach.graph.probe import InputSize
from cbam.attach.insert import Insertion, exchange, insert
from cbam.attach.plan import Plan, Site, make_plan
from cbam.attach.settings import Setting, Settings
from cbam.attach.sites.select import Selectors, Sites
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule


@dataclass(frozen=True)
class Attachment(Plan):
    """What was attached; prints as the plan's table."""


def plan(
    model: nn.Module,
    attention: str = "cbam",
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
    settings = Settings(attention, init, options)
    return make_plan(model, settings, sites, exclude, input_size, example_input, fuse_epilogue).plan


def attach(
    model: nn.Module,
    attention: str = "cbam",
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

    Args:
        model: any CNN, trained or not.
        attention: "cbam", "se", "channel" (CBAM's channel gate alone) or "spatial".
        sites: found by tracing one forward: "residual": the end of every residual branch, before the addition, as in
            the paper; "block": behind every block; "stage": the last map at each resolution; "conv": behind every
            convolution with its norm and activation; "head": right before every classifier of a detector, or the last
            map before pooling; "auto": "residual", or "stage", or "conv", whichever has a place. Or a path, a glob,
            "re:...", a module type or module, a predicate (name, module) -> bool. Or a list of these. Or a dict
            {one of these: options}, such as {"layer3": {}, "layer4": {"reduction_ratio": 8, "attention": "se"}}:
            options of this call, changed at these sites; where two match, the last one holds.
        init: "identity": the output stays the same bit for bit until training moves it; "paper": fresh gates,
            for training from scratch (they scale a trained branch to about a quarter).
        exclude: sites to leave out, in the same language.
        input_size: (C, H, W) of the probe's image, or one side; default: the model's own, or 224 x 224.
        example_input: the arguments of the probe forward, for models that take more than one image.
        fuse_epilogue: where a block ends in relu(attention(...) + shortcut), let the operator compute all of that.
        **options: `reduction_ratio`, `kernel_size`, `preset` and the switches of `cbam.CBAM`.

    Returns:
        What was attached; `print` shows it as a table.

    Raises:
        CBAMError: an unknown name; a pattern that matches nothing; a model that carries attention already, in which
            no site is found, or whose probe forward fails.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> model, image = resnet18().eval(), torch.rand(1, 3, 64, 64)
    >>> before = model(image)
    >>> attachment = attach(model)
    >>> len(attachment.sites), torch.equal(model(image), before)
    (8, True)
    """
    settings = Settings(attention, init, options)
    made, at, blocks = make_plan(model, settings, sites, exclude, input_size, example_input, fuse_epilogue)
    insertions = {site.name: _insertion(site, at[site.name]) for site in made.sites}
    insert(model, insertions, blocks)
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
    for module in model.modules():
        if isinstance(module, WithEpilogue):
            without_epilogue(module)
    return len(attached)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Switch off every attention module in the model inside a `with` block: each hands its input on.

    Raises:
        CBAMError: the model has no attention module.

    >>> import torch
    >>> from cbam import CBAM
    >>> block, x = CBAM(8), torch.rand(1, 8, 5, 5)
    >>> with disabled(block):
    ...     torch.equal(block(x), x)
    True
    """
    blocks = [(module, module.enabled) for module in model.modules() if isinstance(module, AttentionModule)]
    if not blocks:
        raise CBAMError(f"{type(model).__name__} has no attention module to switch off.")
    try:
        for block, _ in blocks:
            block.enabled = False
        yield model
    finally:
        for block, enabled in blocks:
            block.enabled = enabled


def _insertion(site: Site, setting: Setting) -> Insertion:
    def build(**factory: Any) -> AttentionModule:
        block = setting.build(site.channels, **factory)
        if setting.init == "identity":
            block.set_identity()
        return block

    return Insertion(site.position, build)
