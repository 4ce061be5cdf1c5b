"""The checkpoint formats of public CBAM code: how each names, shapes and orders the weights of a block.

Read from these repositories: Jongchan/attention-module (MODELS/cbam.py), osmr/imgclsmob (pytorchcv, cbamresnet.py),
huggingface/pytorch-image-models (timm/layers/cbam.py), luuuyi/CBAM.PyTorch, changzy00/pytorch-attention,
open-mmlab/mmyolo (models/plugins/cbam.py), xmu-xiaoma666/External-Attention-pytorch (CBAM.py), ultralytics
(nn/modules/conv.py). docs/checkpoints.md has the same as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from cbam.checkpoints.gates import NORM, Gates, is_zero, with_norm, without_norm
from cbam.errors import CBAMError

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Format:
    """How one code base names and shapes the weights of a block.

    Args:
        name: for `format=` and `--to`.
        attribute: of the network that holds the block, "" where its parts belong to the network's own block.
        first, last, kernel, norm: names of the layers inside the block; no norm: None.
        linear: the MLP's weights are (out, in), not (out, in, 1, 1) or with the ones of other dimensions.
        max_first: the kernel's first plane reads the maximum; None: as in the site that takes it.
        mlp_bias: True or False; None if both exist.
        kernel_bias: the spatial convolution has a bias.
        kernel_sizes: allowed, None for any.
        channel_only: blocks without the spatial gate exist.
        adds_input: the block returns its gated input plus its input.
        norm_optional: blocks without the norm exist.
        dims: of the maps that a block is written for, where its weights fit any.
    """

    name: str
    attribute: str
    first: str
    last: str
    kernel: str
    norm: str | None = None
    linear: bool = False
    max_first: bool | None = False
    mlp_bias: bool | None = False
    kernel_bias: bool = False
    kernel_sizes: tuple[int, ...] | None = None
    channel_only: bool = False
    adds_input: bool = False
    norm_optional: bool = False
    dims: int = 2

    def names(self) -> list[str]:
        """Return all names that a block of this format may have.

        >>> FORMATS["luuuyi"].names()
        ['ca.fc.0.weight', 'ca.fc.0.bias', 'ca.fc.2.weight', 'ca.fc.2.bias', 'sa.conv1.weight', 'sa.conv1.bias']
        """
        layers = [
            f"{layer}.{part}" for layer in (self.first, self.last, self.kernel) for part in ("weight", "bias")
        ]
        return layers + ([f"{self.norm}.{part}" for part in (*NORM, COUNTER)] if self.norm else [])

    def has_block(self, keys: Mapping[str, Tensor], prefix: str) -> bool:
        """Return whether the block at a prefix is of this format."""
        spatial = f"{prefix}{self.kernel}.weight" in keys
        return f"{prefix}{self.first}.weight" in keys and (spatial or self.channel_only)

    def has_norm(self, block: Mapping[str, Tensor]) -> bool:
        """Return whether a block has, or should have, the norm of this format."""
        named = any(f"{self.norm}.{part}" in block for part in NORM)
        return self.norm is not None and (named or not self.norm_optional)

    def parse(self, block: Mapping[str, Tensor], where: str) -> Gates:
        """Return the gates in a block.

        Args:
            block: names inside the block to tensors.
            where: for messages.

        Raises:
            CBAMError: a tensor that is missing, or whose shape is not this format's.
        """
        check_shapes(self, block, where)
        first, last = (block[f"{layer}.weight"].flatten(1) for layer in (self.first, self.last))
        kernel = block.get(f"{self.kernel}.weight")
        norm = None
        if self.norm and kernel is not None and self.has_norm(block):
            norm = {part: block[f"{self.norm}.{part}"] for part in NORM}
            if f"{self.norm}.{COUNTER}" in block:
                norm[COUNTER] = block[f"{self.norm}.{COUNTER}"]
        return Gates(
            first,
            last,
            block.get(f"{self.first}.bias"),
            block.get(f"{self.last}.bias"),
            kernel.flip(1) if kernel is not None and self.max_first else kernel,
            block.get(f"{self.kernel}.bias"),
            norm,
            self.adds_input,
            _dims(self, block),
        )

    def write(self, gates: Gates, where: str, eval_only: list[str]) -> dict[str, Tensor]:
        """Return the names inside the block and their tensors.

        Args:
            gates: of the block.
            where: for messages.
            eval_only: gets a note for every change that keeps the outputs in eval mode only.

        Raises:
            CBAMError: this format cannot express it.
        """
        gates = self._in_this_form(gates, where, eval_only)
        ones = (None,) * (0 if self.linear else gates.dims or self.dims)
        layers, shaped = (
            ((self.first, gates.first), (self.last, gates.last)),
            (slice(None), slice(None), *ones),
        )
        block = {f"{layer}.weight": weight[shaped].clone() for layer, weight in layers}
        if gates.first_bias is not None and gates.last_bias is not None:
            block |= {f"{self.first}.bias": gates.first_bias, f"{self.last}.bias": gates.last_bias}
        if gates.kernel is not None:
            block[f"{self.kernel}.weight"] = gates.kernel.flip(1) if self.max_first else gates.kernel
        if gates.kernel_bias is not None:
            block[f"{self.kernel}.bias"] = gates.kernel_bias
        for part, tensor in (gates.norm or {}).items():
            block[f"{self.norm}.{part}"] = tensor
        return block

    def _in_this_form(self, gates: Gates, where: str, eval_only: list[str]) -> Gates:
        if gates.adds_input != self.adds_input:
            ours, theirs = ("adds", "does not add") if self.adds_input else ("does not add", "adds")
            raise CBAMError(
                f"{where}: a {self.name} block {ours} its input to what the gates give, this one {theirs} it."
                " If your network makes up for that itself, pass outer_residual=True (--outer-residual)."
            )
        if gates.kernel is None and not self.channel_only:
            raise CBAMError(f"{where} has no spatial gate, and every {self.name} block has one.")
        if self.kernel_sizes and gates.kernel_size not in (None, *self.kernel_sizes):
            raise CBAMError(
                f"{where}: kernel {gates.kernel_size}; {self.name} has {self.kernel_sizes[0]} only."
            )
        needs_norm = not self.norm_optional or not is_zero(gates.kernel_bias)
        if gates.kernel is not None and self.norm and gates.norm is None and needs_norm:
            gates = with_norm(gates)
            eval_only.append("a batch norm was added that does nothing in eval mode")
        elif gates.norm is not None and not self.norm:
            gates = without_norm(gates)
            eval_only.append("the batch norm was folded into the spatial convolution")
        return self._with_biases(gates, where)

    def _with_biases(self, gates: Gates, where: str) -> Gates:
        if self.kernel_bias and gates.kernel is not None and gates.kernel_bias is None:
            gates = replace(gates, kernel_bias=gates.kernel.new_zeros(1))
        elif not self.kernel_bias and gates.kernel_bias is not None:
            if not is_zero(gates.kernel_bias):
                raise CBAMError(
                    f"{where}: the spatial convolution would need a bias of {gates.kernel_bias.item():.4g}, and"
                    f" {self.name}'s has none. mmyolo has one; official, pytorchcv, timm and cbam express it by a norm."
                )
            gates = replace(gates, kernel_bias=None)
        if self.mlp_bias is False and gates.has_mlp_bias:
            if not (is_zero(gates.first_bias) and is_zero(gates.last_bias)):
                raise CBAMError(f"{where}: the channel gate has biases, and {self.name}'s has none.")
            gates = replace(gates, first_bias=None, last_bias=None)
        elif self.mlp_bias and not gates.has_mlp_bias:
            zeros = gates.first.new_zeros
            gates = replace(gates, first_bias=zeros(gates.hidden), last_bias=zeros(gates.channels))
        return gates


def is_textbook(names: Iterable[str]) -> bool:
    """Return whether names inside a block with this library's names could be the textbook module's.

    >>> is_textbook(["channel_attention.mlp.0.weight", "channel_attention.mlp.0.bias"])
    False
    """
    return not any(".norm." in name or name.endswith(".bias") for name in names)


def check_shapes(format: Format, block: Mapping[str, Tensor], where: str) -> None:
    """Refuse a block whose tensors are missing or misshapen; also for tensors without data.

    Raises:
        CBAMError: names what is missing, or the expected shape.
    """
    first = block.get(f"{format.first}.weight")
    if first is None or first.ndim not in (2, 3, 4, 5):
        raise _misfit(format, where, f"{format.first}.weight", first, "(h, C), perhaps with 1x1")
    hidden, channels = first.shape[:2]
    dims = _dims(format, block) or 2
    tail = () if format.linear else (1,) * dims
    kernel = block.get(f"{format.kernel}.weight")
    size = kernel.shape[-1] if kernel is not None and kernel.ndim == dims + 2 else 0
    expected: dict[str, tuple[int, ...]] = {
        f"{format.first}.weight": (hidden, channels, *tail),
        f"{format.last}.weight": (channels, hidden, *tail),
    }
    if format.mlp_bias or f"{format.first}.bias" in block or f"{format.last}.bias" in block:
        expected |= {f"{format.first}.bias": (hidden,), f"{format.last}.bias": (channels,)}
    if kernel is not None or not format.channel_only:
        expected[f"{format.kernel}.weight"] = (1, 2, *[size] * dims)
        if format.kernel_bias or f"{format.kernel}.bias" in block:
            expected[f"{format.kernel}.bias"] = (1,)
        if format.has_norm(block):
            expected |= {f"{format.norm}.{part}": (1,) for part in NORM}
    for name, shape in expected.items():
        tensor = block.get(name)
        if tensor is None or tuple(tensor.shape) != shape or not tensor.is_floating_point() or 0 in shape:
            raise _misfit(format, where, name, tensor, str(shape))
    if size % 2 == 0 and kernel is not None:
        raise CBAMError(f"{where}: an even spatial kernel ({size}) does not keep the map's size.")


def _dims(format: Format, block: Mapping[str, Tensor]) -> int | None:
    """Return the dimensions of the maps that a block is for; None where its shapes do not say."""
    kernel, first = block.get(f"{format.kernel}.weight"), block[f"{format.first}.weight"]
    said = first if kernel is None and not format.linear else kernel
    if said is None:
        return None
    return said.ndim - 2 if said.ndim in (3, 5) else 2


def _misfit(format: Format, where: str, name: str, tensor: Tensor | None, expected: str) -> CBAMError:
    given = (
        "is missing"
        if tensor is None
        else f"is {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    )
    return CBAMError(f"{where} ({format.name}): {name} {given}; expected floating point, {expected}.")


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("cbam", "cbam", "channel_attention.mlp.0", "channel_attention.mlp.2", "spatial_attention.conv",
                "spatial_attention.norm", mlp_bias=None, norm_optional=True, channel_only=True),
        Format("official", "cbam", "ChannelGate.mlp.1", "ChannelGate.mlp.3", "SpatialGate.spatial.conv",
                "SpatialGate.spatial.bn", linear=True, max_first=True, mlp_bias=True, kernel_sizes=(7,),
                channel_only=True),
        Format("pytorchcv", "cbam", "ch_gate.mlp.fc1", "ch_gate.mlp.fc2", "sp_gate.conv.conv", "sp_gate.conv.bn",
                linear=True, max_first=True, mlp_bias=True, kernel_sizes=(7,)),
        Format("timm", "se", "channel.fc1", "channel.fc2", "spatial.conv.conv", "spatial.conv.bn", mlp_bias=None),
        Format("textbook", "cbam", "channel_attention.mlp.0", "channel_attention.mlp.2", "spatial_attention.conv"),
        Format("luuuyi", "", "ca.fc.0", "ca.fc.2", "sa.conv1"),
        Format("changzy00", "", "ca.fc.0", "ca.fc.2", "sa.conv"),
        Format("mmyolo", "cbam", "channel_attention.fc.0.conv", "channel_attention.fc.1.conv",
                "spatial_attention.conv.conv", mlp_bias=True, kernel_bias=True),
        Format("xmu", "", "ca.se.0", "ca.se.2", "sa.conv", max_first=True, kernel_bias=True, adds_input=True),
    )
}  # fmt: skip
