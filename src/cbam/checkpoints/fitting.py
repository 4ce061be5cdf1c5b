"""Convert a block's gates to the form of the module that takes them, or report which form would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from cbam.checkpoints.formats import FORMATS, Format
from cbam.checkpoints.gates import Gates
from cbam.checkpoints.switches import OURS, of_module, unusual
from cbam.errors import CBAMError
from cbam.nn import CBAM
from cbam.ops.dims import batched

# Numbers of a gate that only the files of those gates have that are not in the paper's form; "fan_in" is what
# development versions of 0.1 called the variance.
NUMBERS = ("gate_scale", "variance", "fan_in")
DESCRIPTOR = "spatial_attention.descriptor.weight"  # of a learned descriptor, which no format has
SCALES = ("channel_attention.gate_scale", *(f"spatial_attention.{name}" for name in NUMBERS))


def reads_maximum_first(block: Any) -> bool | None:
    """Return whether the first plane of a spatial kernel reads the maximum; None if there are not two planes."""
    order = of_module(block).get("descriptor_order") if isinstance(block, CBAM) else None
    return None if order is None else order == "max-avg"


def form_of(block: CBAM) -> Format:
    """Return the format of a module's own weights.

    >>> form_of(CBAM(16, preset="official")).max_first
    True
    """
    channel, spatial = block.channel_attention, block.spatial_attention
    return replace(
        FORMATS["cbam"],
        mlp_bias=channel is not None and channel.layers[0].bias is not None,
        max_first=bool(reads_maximum_first(block)),
        norm="spatial_attention.norm" if spatial is not None and spatial.norm is not None else None,
        norm_optional=False,
        channel_only=spatial is None,
        dims=block.dims,
    )


def attach_options(
    gates: Gates, max_first: bool | None, switches: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the options of `cbam.attach` with which attention takes these gates unchanged.

    Args:
        gates: of the block.
        max_first: the kernel's first plane reads the maximum.
        switches: what the file says beside them.

    >>> import torch
    >>> block = Gates(torch.zeros(2, 16), torch.zeros(16, 2), kernel=torch.zeros(1, 2, 7, 7))
    >>> attach_options(block, max_first=False)
    {'preset': 'paper', 'reduction_ratio': 8}
    """
    norm = gates.norm is not None or gates.kernel_bias is not None
    options: dict[str, Any] = {"preset": "timm" if norm else "paper"}
    if norm and gates.has_mlp_bias and max_first:
        options["preset"] = "official"
    elif gates.has_mlp_bias:
        options["mlp_bias"] = True
    if gates.kernel is None:
        options["arrangement"] = "channel"
    elif gates.kernel_size != 7:
        options["kernel_size"] = gates.kernel_size
    if gates.hidden != max(1, gates.channels // 16):
        options["reduction_ratio"] = gates.channels // gates.hidden
    return options | unusual(switches or {})


def attach_call(gates: Gates, max_first: bool | None, switches: Mapping[str, str] | None = None) -> str:
    """Return the call that attaches attention which takes these gates unchanged; arguments as `attach_options`.

    >>> import torch
    >>> block = Gates(torch.zeros(1, 16), torch.zeros(16, 1), kernel=torch.zeros(1, 2, 7, 7))
    >>> attach_call(block, max_first=False)
    "cbam.attach(model, preset='paper')"
    """
    options = attach_options(gates, max_first, switches)
    return f"cbam.attach(model, {', '.join(f'{key}={value!r}' for key, value in options.items())})"


def fit(
    gates: Gates, block: Any, source: Format, where: str, adapt: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the block's state dict for `gates`, and a list of what was converted.

    Args:
        gates: from the file.
        block: the module of the site.
        source: format of the file.
        where: block and site, for messages.
        adapt: allow a form that equals the file's in eval mode only, or that has more biases or norms.

    Raises:
        CBAMError: another number of channels or another form; the error names the call that attaches one that fits.
    """
    problems = _differences(gates, block)
    if problems and not (adapt and all(soft for _, soft in problems)):
        fits = f"Attach with {attach_call(gates, source.max_first)}"
        if gates.dims not in (None, getattr(block, "dims", 2)):
            raise CBAMError(f"{where}: {problems[0][0]}. Load the weights of a network of these dimensions.")
        soft = ", or pass adapt=True (--adapt) to convert what can be converted" if problems[0][1] else ""
        raise CBAMError(f"{where}: {'; '.join(text for text, _ in problems)}. {fits}{soft}.")
    form, changes = form_of(block), list[str]()
    written = form.write(gates, where, changes)
    if gates.kernel is not None and form.max_first != source.max_first:
        changes.append("kernel planes swapped")
    if source.linear:
        changes.append("linear layers to 1x1 convolutions")
    if gates.has_mlp_bias != form.mlp_bias:
        changes.append("zero biases " + ("added" if form.mlp_bias else "dropped"))
    if gates.kernel_bias is not None:
        changes.append("spatial bias into the norm" if form.norm else "zero spatial bias dropped")
    momentum = getattr(getattr(block.spatial_attention, "norm", None), "momentum", None)
    if source.name in ("official", "pytorchcv") and momentum not in (None, 0.01):
        changes.append(f"norm momentum stays {momentum:g} (theirs: 0.01)")
    return written, changes


def _differences(gates: Gates, block: Any) -> list[tuple[str, bool]]:
    """Return the differences in form, each with whether it can be converted."""
    if not isinstance(block, CBAM):
        return [(f"a CBAM block does not fit {type(block).__name__}", False)]
    odd = ", ".join(f"{name}={value!r}" for name, value in unusual(of_module(block)).items())
    if odd:
        return [(f"the module has {odd}, which no format in files has", False)]
    if gates.dims not in (None, block.dims):
        said = f"the file's block is for maps {batched(gates.dims)}, the site for {batched(block.dims)}"
        return [(said, False)]
    channel, spatial = block.channel_attention, block.spatial_attention
    assert channel is not None
    hidden = channel.layers[0].out_channels
    if block.in_channels != gates.channels:
        return [(f"the file's block has {gates.channels} channels, the site {block.in_channels}", False)]
    found = []
    if hidden != gates.hidden:
        found.append((f"hidden width {gates.hidden} in the file, {hidden} in the model", False))
    if (spatial is None) != (gates.kernel is None):
        found.append((f"{'the file' if spatial else 'the model'} has no spatial gate", False))
    if gates.has_mlp_bias != (channel.layers[0].bias is not None):
        found.append(
            (f"biases in the channel gate only in the {'file' if gates.has_mlp_bias else 'model'}", True)
        )
    if spatial is not None and gates.kernel is not None:
        size = spatial.conv.kernel_size[0]
        if size != gates.kernel_size:
            found.append((f"kernel {gates.kernel_size} in the file, {size} in the model", False))
        theirs = gates.norm is not None or gates.kernel_bias is not None
        if theirs != (spatial.norm is not None):
            what = "spatial norm" if gates.norm is not None or spatial.norm is not None else "spatial bias"
            found.append((f"a {what} only in the {'file' if theirs else 'model'}", True))
    return sorted(found, key=lambda difference: difference[1])


def refuse_another_function(
    said: Mapping[str, str], gates: Mapping[str, Tensor], format: Format, block: Any, where: str
) -> None:
    """Refuse weights of our own of a block that computes something else from the same shapes.

    Args:
        said: switches of the file's block.
        gates: names inside it to tensors.
        format: of the file.
        block: the module of the site.
        where: block and site, for messages.

    Raises:
        CBAMError: names the call that attaches one that fits.
    """
    own = of_module(block) if isinstance(block, CBAM) else {}
    other = [name for name in OURS if name in said and name in own and said[name] != own[name]]
    if not other:
        return
    names = "; ".join(f"{name}={said[name]!r} in the file, {own[name]!r} in the model" for name in other)
    first = said.get("descriptor_order") == "max-avg"
    raise CBAMError(
        f"{where}: {names}. Attach with {attach_call(format.parse(gates, where), first, said)}. To go on from these"
        " weights with other gates: model.load_state_dict."
    )


def carries_over(raw: Mapping[str, Tensor], block: Any) -> bool:
    """Return whether weights with this library's names fit a module unchanged."""
    own = {name: value.shape for name, value in block.state_dict().items() if name not in SCALES}
    given = {name: value.shape for name, value in raw.items() if name not in SCALES}
    counter = "spatial_attention.norm.num_batches_tracked"
    own.pop(counter, None)
    given.pop(counter, None)
    return own == given and all(raw[name].is_floating_point() for name in given)
