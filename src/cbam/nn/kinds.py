"""The kinds of attention of the paper's tables: CBAM, each of its gates alone, and squeeze-and-excitation."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from cbam.nn.cbam import CBAM
from cbam.nn.channel import SqueezeExcitation
from cbam.nn.kind import AttentionKind
from cbam.nn.presets import DEFAULT_PRESET, Preset, resolve_preset
from cbam.nn.registry import add_kind

_CBAM_CITATION = """@inproceedings{woo2018cbam,
  title = {CBAM: Convolutional Block Attention Module},
  author = {Woo, Sanghyun and Park, Jongchan and Lee, Joon-Young and Kweon, In So},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2018}
}"""
_SE_CITATION = """@inproceedings{hu2018senet,
  title = {Squeeze-and-Excitation Networks},
  author = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2018}
}"""

_OF_CHANNEL_GATE = ("reduction_ratio", "channel_pooling", "mlp_bias")
_OF_SPATIAL_GATE = (
    "kernel_size", "spatial_descriptor", "descriptor_order", "spatial_norm", "norm_momentum", "norm_weight",
)  # fmt: skip
_OPTIONS: dict[str, Any] = {
    "preset": DEFAULT_PRESET,
    "reduction_ratio": 16,
    "kernel_size": 7,
    **{switch.name: switch.default for switch in fields(Preset)},
}


def _describe_cbam(block: CBAM) -> dict[str, Any]:
    """Return preset, reduction ratio and every switch as the module has it."""
    channel, spatial = block.channel_attention, block.spatial_attention
    options: dict[str, Any] = {"arrangement": block.arrangement, "gate": block.gates[0].activation}
    hidden = block.in_channels
    if channel is not None:
        first = channel.layers[0]
        hidden = first.out_channels
        options |= {"channel_pooling": channel.channel_pooling, "mlp_bias": first.bias is not None}
    if spatial is not None:
        options |= {
            "spatial_descriptor": spatial.spatial_descriptor,
            "descriptor_order": spatial.descriptor_order,
            "kernel_size": spatial.conv.kernel_size[0],
            "spatial_norm": spatial.norm is not None,
            "norm_weight": float(spatial.norm_weight),
        }
        momentum = getattr(spatial.norm, "momentum", None)
        options |= {} if momentum is None else {"norm_momentum": float(momentum)}
    return {"preset": block.preset, "reduction_ratio": block.in_channels // hidden, **options}


def _rebuild_cbam(
    channels: int, *, preset: str, dims: int = 2, device: Any = None, dtype: Any = None, **options: Any
) -> CBAM:
    """Return a block from all of its switches; the preset's name only says where they came from."""
    block = CBAM(channels, dims=dims, device=device, dtype=dtype, **options)
    block.preset = preset
    return block


def _build_se(
    channels: int, *, preset: str | Preset = DEFAULT_PRESET, dims: int = 2, device: Any = None, dtype: Any = None,
    **options: Any,
) -> SqueezeExcitation:  # fmt: skip
    resolve_preset(preset, {})  # it changes nothing, but a misspelt name is an error
    return SqueezeExcitation(channels, dims=dims, device=device, dtype=dtype, **options)


def _describe_se(block: SqueezeExcitation) -> dict[str, Any]:
    first = block.layers[0]
    ratio = block.in_channels // first.out_channels
    return {"reduction_ratio": ratio, "mlp_bias": first.bias is not None, "gate": block.activation}


def _one_gate(name: str, other: tuple[str, ...], shown: tuple[str, ...]) -> AttentionKind:
    """Return the kind that is one gate of CBAM; the options of the other gate change nothing."""

    def build(channels: int, *, dims: int = 2, device: Any = None, dtype: Any = None, **options: Any) -> CBAM:
        return CBAM(channels, arrangement=name, dims=dims, device=device, dtype=dtype, **options)

    own = {key: value for key, value in _OPTIONS.items() if key not in (*other, "arrangement")}
    return AttentionKind(
        name,
        build,
        own,
        other,
        shown,
        f"{name} only",
        title="CBAM",
        citation=_CBAM_CITATION,
        has_operator=True,
    )


add_kind(
    AttentionKind(
        "cbam", CBAM, _OPTIONS, shown=("preset", "reduction_ratio", "kernel_size"), label="CBAM", title="CBAM",
        headline="preset", citation=_CBAM_CITATION, module_type=CBAM, describe=_describe_cbam, rebuild=_rebuild_cbam,
        has_operator=True,
    )
)  # fmt: skip
add_kind(
    AttentionKind(
        "se", _build_se, {"reduction_ratio": 16, "mlp_bias": True, "gate": "sigmoid"}, ("preset",),
        ("reduction_ratio",), "SE", "Squeeze-and-excitation", "gate", _SE_CITATION, module_type=SqueezeExcitation,
        describe=_describe_se, has_operator=True,
    )
)  # fmt: skip
add_kind(_one_gate("channel", _OF_SPATIAL_GATE, ("preset", "reduction_ratio")))
add_kind(_one_gate("spatial", _OF_CHANNEL_GATE, ("preset", "kernel_size")))
