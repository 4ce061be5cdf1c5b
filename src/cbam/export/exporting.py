"""`cbam.export`: a network as a file for another runtime, written only when it computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cbam.attach.graph.probe import default_inputs
from cbam.errors import CBAMError, unknown_name
from cbam.evaluate.latency import Latency
from cbam.export import onnx_file
from cbam.export.agreement import Agreement, compare_detections, refuse_detections
from cbam.export.check import Difference, compare, latencies, refuse, shapes_to_check
from cbam.export.detector import BACKGROUND, OneImage, is_detector
from cbam.export.loading import EXTRA, Loaded, load
from cbam.export.metadata import describe
from cbam.export.program import axes_of, capture, enlarged, has_operator
from cbam.export.quantize import quantize
from cbam.formatting import columns
from cbam.preserve_state import preserve_state

FORMATS = ("onnx", "pt2", "aoti")
PRECISIONS = ("fp32", "fp16", "int8")
_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
_CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class Exported:
    """An exported file and what is known of it; prints as a table.

    Attributes:
        path: the file.
        format, precision: as asked for.
        opset: of ONNX's operators; None for other formats.
        operator: whether it calls our operator, so that `cbam.export.load` has to load it.
        dynamic: names of the sizes that may differ.
        bytes: of the file.
        differences: from eager mode, by shape of the input, of a detector by image; empty if they were not wanted.
        metadata: class names, preprocessing and task, as they are in the file.
        model, example: what was exported.
    """

    path: Path
    format: str
    precision: str
    opset: int | None
    operator: bool
    dynamic: tuple[str, ...]
    bytes: int
    differences: tuple[Difference, ...] | tuple[Agreement, ...]
    metadata: dict[str, str]
    model: nn.Module = field(repr=False)
    example: Tensor = field(repr=False)

    def load(self) -> Loaded:
        """Return the exported network, ready to run."""
        return load(self.path)

    def latency(
        self, batches: Sequence[int] | None = None, rounds: int = 15
    ) -> dict[int, tuple[Latency, Latency]]:
        """Return {images: (eager, exported)}, timed in turns in this process; by default for 1 and 8 images.

        Args:
            batches: images at a time; a file with a fixed batch takes only that.
            rounds: how often each of the two is timed.
        """
        fixed = len(self.example)
        chosen = batches or ((1, 8) if "batch" in self.dynamic else (fixed,))
        with preserve_state(self.model):
            return latencies(self.model, self.load(), self.example, chosen, rounds)

    def __str__(self) -> str:
        kind = {"onnx": f"ONNX, opset {self.opset}", "pt2": "torch.export", "aoti": "AOTInductor package"}[
            self.format
        ]
        inside = "with the operator cbam::forward" if self.operator else "plain operations"
        dynamic = ", ".join(self.dynamic) or "nothing"
        lines = [
            f"{self.path}: {kind}, {self.precision}, {inside}, {self.bytes / 1e6:.2f} MB; dynamic: {dynamic}",
        ]
        if self.differences:
            lines += columns([self.differences[0].HEADINGS, *(each.cells() for each in self.differences)])
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    *,
    image_size: int | tuple[int, ...] | None = None,
    format: str | None = None,
    plain: bool = False,
    dynamic: Sequence[str] = (),
    precision: str = "fp32",
    calibration: Tensor | None = None,
    gates: str = "float",
    opset: int | None = None,
    class_names: Sequence[str] | None = None,
    check: bool = True,
) -> Exported:
    """Write a network for another runtime and compare it with eager mode.

    Args:
        model: with or without attention; it is exported in evaluation mode and stays as it is. A detector of
            torchvision is exported for one image: boxes, labels and scores, of Mask R-CNN also 28 x 28 masks.
        path: the file to write; its folder is made. An older file is replaced only by a checked one.
        example: a batch (N, C, H, W), or of signals or volumes; by default one random image.
            Of a detector: images (N, C, H, W), values 0..1, on which the detections are compared.
        image_size: instead: one side, or (C, H, W). None: as saved with the network, or what it is made for.
        format: "onnx"; "pt2", of torch.export; or "aoti", a library compiled by AOTInductor for this kind of machine.
            By default by the suffix, and "pt2" for .pt2.
        plain: .pt2 without our operator: in ATen's operations only. ONNX never has it.
        dynamic: sizes that may differ from the example's: "batch", "height", "width"; "length" of signals, "depth" of
            volumes. All others are fixed, which runtimes make use of.
        precision: "fp32"; of ONNX also "fp16" and "int8", with the attention in float32.
        calibration: for int8: some hundred images (N, C, H, W) as the network sees them.
        gates: for int8: "float", or "int8" to quantize the attention too, for runtimes that need that.
        opset: of ONNX's operators; None: the exporter's own.
        class_names: for the file's metadata; None: those saved with the network. Of a detector those of labels 1, 2,
            ...; in the file label 0 is "__background__".
        check: compare with eager mode, on several shapes where sizes are dynamic.

    Raises:
        CBAMError: options that do not go together; torch cannot export the network; or the file computes something
            else. No file is written then.
        MissingExtra: ONNX, and onnx, onnxscript or onnxruntime is not installed.

    >>> import tempfile
    >>> from cbam.nn import CBAM
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), CBAM(8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = export(net, Path(folder) / "net.pt2", torch.rand(2, 3, 8, 8), dynamic=["batch"])
    ...     exported.load()(torch.rand(5, 3, 8, 8))[0].shape
    torch.Size([5, 8, 6, 6])
    """
    path = Path(path)
    chosen = _format_of(path, format)
    if is_detector(model):
        _check_detector(chosen, dynamic, precision)
    _check_options(chosen, plain, precision, calibration, gates, opset)
    if is_detector(model):
        model = OneImage(model)
        class_names = class_names and [BACKGROUND, *class_names]
    images = _images(model, example, image_size)
    if precision == "int8" and example is None:
        images = images.expand(_CALIBRATION_BATCH if "batch" in dynamic else 1, *images.shape[1:])
    batch = images[:1] if isinstance(model, OneImage) else images
    axes = axes_of(batch, dynamic)
    metadata = describe(model, batch, class_names)
    onnx = chosen == "onnx"
    program = capture(model, enlarged(batch, axes) if onnx else batch, dynamic, plain or onnx)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / f"draft{path.suffix}"
        written = None
        if onnx:
            written = _write_onnx(
                program, draft, model, axes, metadata, precision, calibration, gates, opset, batch
            )
        elif chosen == "pt2":
            torch.export.save(program, draft, extra_files={EXTRA: json.dumps(metadata)})
        else:
            _compile(program, draft, {**metadata, "batch": "" if 0 in axes else str(len(batch))})
        differences = _checked(model, draft, images, axes, precision, calibration) if check else ()
        shutil.move(draft, path)
    return Exported(
        path, chosen, precision, written, has_operator(program), tuple(axes.values()), path.stat().st_size,
        differences, metadata, model, batch,
    )  # fmt: skip


def _checked(
    model: nn.Module,
    file: Path,
    images: Tensor,
    axes: dict[int, str],
    precision: str,
    calibration: Tensor | None,
) -> tuple[Difference, ...] | tuple[Agreement, ...]:
    """Return how far a file is from eager mode; raise if that is too far."""
    with preserve_state(model):
        if isinstance(model, OneImage):
            found = compare_detections(model, load(file), images)
            refuse_detections(found)
            return tuple(found)
        shapes = shapes_to_check(images, axes, len(images))
        differences = compare(model, load(file), shapes, calibration)
    refuse(differences, precision)
    return tuple(differences)


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    network: nn.Module,
    axes: dict[int, str],
    metadata: dict[str, str],
    precision: str,
    calibration: Tensor | None,
    gates: str,
    opset: int | None,
    example: Tensor,
) -> int:
    """Write the file; return its opset."""
    names = network.outputs if isinstance(network, OneImage) else ()
    model = onnx_file.to_onnx(program, axes, opset, names)
    keep = onnx_file.gate_nodes(model, network)
    onnx_file.strip(model)
    onnx_file.add_metadata(model, metadata)
    if precision == "fp16":
        model = onnx_file.to_float16(model, keep)
    if precision != "int8":
        onnx_file.write(model, path)
        return onnx_file.opset_of(model)
    assert calibration is not None
    source = path.with_name("float32.onnx")
    onnx_file.write(model, source)
    batch = _CALIBRATION_BATCH if 0 in axes else len(example)
    quantize(source, path, calibration.detach().cpu().float(), batch, keep if gates == "float" else ())
    return onnx_file.opset_of(model)


def _compile(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
        )
    except Exception as error:
        raise CBAMError(
            f"AOTInductor cannot compile this network here: {type(error).__name__}: {error}. It needs a C++ compiler."
        ) from error


def _format_of(path: Path, given: str | None) -> str:
    if given is not None and given not in FORMATS:
        raise unknown_name("format", given, FORMATS)
    chosen = given or next((name for name, suffix in _SUFFIXES.items() if suffix == path.suffix), None)
    if chosen is None or path.suffix != _SUFFIXES[chosen]:
        wanted = _SUFFIXES[chosen] if chosen else ".onnx or .pt2"
        raise CBAMError(f"the file's name ends in {wanted}, given {str(path)!r}.")
    if path.is_dir():
        raise CBAMError(f"{str(path)!r} is a folder; export writes a file.")
    return chosen


def _check_options(
    format: str, plain: bool, precision: str, calibration: Tensor | None, gates: str, opset: int | None
) -> None:
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if gates not in ("float", "int8"):
        raise unknown_name("gates", gates, ("float", "int8"))
    if format != "onnx" and (precision != "fp32" or opset is not None):
        what = f"precision {precision!r}" if precision != "fp32" else "an opset"
        raise CBAMError(
            f"{what} is of ONNX, and format {format!r} was asked for. Leave it out, or write a .onnx file."
        )
    if format == "onnx":
        onnx_file.require("onnx", "onnxscript")
    if (precision == "int8") != (calibration is not None):
        raise CBAMError(
            "precision 'int8' needs calibration images, calibration=images (N, C, H, W); on the command line"
            " --calibrate FOLDER."
            if calibration is None
            else f"calibration images are for precision 'int8', and {precision!r} was asked for."
        )


def _check_detector(format: str, dynamic: Sequence[str], precision: str) -> None:
    """Refuse what a detector cannot be exported as."""
    if dynamic:
        raise CBAMError(
            f"a detector's file takes one image of one size, and dynamic {', '.join(dynamic)} was asked for. Leave it"
            " out, choose the size (--image-size HxW, in Python image_size=(H, W)), and resize pictures to it."
        )
    if format == "aoti" or precision != "fp32":
        asked = f"format {format!r}" if format == "aoti" else f"precision {precision!r}"
        raise CBAMError(f"a detector is exported as .onnx or .pt2 in fp32, and {asked} was asked for.")


def _images(model: nn.Module, example: Tensor | None, given: int | tuple[int, ...] | None) -> Tensor:
    """Return the example; of a detector all images that it is to be compared on."""
    if example is not None:
        return example
    if isinstance(model, OneImage):
        return model.example(given)
    saved = getattr(getattr(model, "cbam_config", None), "input_size", None)
    size: Any = given if given is not None or saved is None else tuple(saved)
    return default_inputs(model, size)[0]
