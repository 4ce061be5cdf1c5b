"""ONNX: from a program to a file with names, metadata, and in float16 with the gates in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import ExportedProgram

from cbam.errors import CBAMError, MissingExtra
from cbam.nn.base import AttentionModule

if TYPE_CHECKING:
    from onnx import ModelProto

OLDEST_OPSET = 18  # of torch's exporter
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the paths of the modules around it


def to_onnx(
    program: ExportedProgram, axes: Mapping[int, str], opset: int | None = None, outputs: Sequence[str] = ()
) -> ModelProto:
    """Return a program in plain operations as an ONNX model with one input, `input`.

    Args:
        program: see `cbam.export.program.capture`.
        axes: names of its dynamic sizes by axis.
        opset: version of ONNX's operators; None: the exporter's own.
        outputs: their names; by default "output" of a single one, and those of the exporter.

    Raises:
        CBAMError: an operation that ONNX does not have, or an opset that the exporter does not write.
        MissingExtra: onnx or onnxscript is not installed.
    """
    require("onnx", "onnxscript")
    if opset is not None and opset < OLDEST_OPSET:
        raise CBAMError(f"torch's exporter writes opset {OLDEST_OPSET} and later, given {opset}.")
    if not outputs and len(program.graph_signature.user_outputs) == 1:
        outputs = ("output",)
    options: dict[str, Any] = {"output_names": list(outputs)} if outputs else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        try:
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, input_names=["input"], **options
            )
        except Exception as error:
            raise CBAMError(
                f"torch.onnx cannot export this network: {type(error).__name__}: {error}"
            ) from error
    assert made is not None
    model: ModelProto = made.model_proto
    _name_axes(model, axes)
    written = opset_of(model)
    if opset is not None and written != opset:
        raise CBAMError(f"torch's exporter cannot write opset {opset} for this network; it wrote {written}.")
    return model


def require(*packages: str) -> None:
    """Raise unless packages are installed.

    Raises:
        MissingExtra: the first one that is not.
    """
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra("ONNX", "export", package)


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    return max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def add_metadata(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Write strings into a model, where `session.get_modelmeta().custom_metadata_map` finds them."""
    import onnx

    onnx.helper.set_model_props(model, dict(metadata))


def gate_nodes(model: ModelProto, network: nn.Module) -> list[str]:
    """Return the names of the nodes that compute attention: pooling, MLP, convolution, sigmoid and the products.

    Args:
        model: of `to_onnx`, whose nodes still say which modules they are of.
        network: from which it was made.
    """
    gates = {name for name, module in network.named_modules() if isinstance(module, AttentionModule)}
    return [node.name for node in model.graph.node if gates & _scopes(node.metadata_props)]


def _scopes(properties: Iterable[Any]) -> set[str]:
    import ast

    text = next((entry.value for entry in properties if entry.key == _SCOPES), "[]")
    return set(ast.literal_eval(text))


def strip(model: ModelProto) -> None:
    """Remove what the exporter notes about each node: a third of a small file, with paths of this machine.

    Args:
        model: whose gates have been found.
    """
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def to_float16(model: ModelProto, keep: Iterable[str]) -> ModelProto:
    """Return a model with weights and maps in float16 and inputs and outputs in float32.

    Args:
        model: in float32; it is changed.
        keep: names of nodes that stay in float32, as the attention does on every backend.

    Raises:
        MissingExtra: onnxruntime, which has the conversion, is not installed.
    """
    require("onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(keep))
    return converted


def write(model: ModelProto, path: Path) -> None:
    """Write a model as one file.

    Raises:
        CBAMError: it is too large for one.
    """
    import onnx

    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise CBAMError("an ONNX file holds at most 2 GiB. Export this network as .pt2.")
    onnx.save(model, path)


def _name_axes(model: ModelProto, axes: Mapping[int, str]) -> None:
    """Call the dynamic sizes of the input what the user calls them, everywhere in the graph."""
    (entry, *_) = model.graph.input
    sizes = entry.type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in axes.items() if sizes[axis].dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
