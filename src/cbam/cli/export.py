"""`cbam export`: a trained network as ONNX, torch.export or AOTInductor file, checked against eager mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cbam.cli.parsing import read_options
from cbam.errors import CBAMError
from cbam.formatting import columns
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cbam.evaluate.latency import Latency
    from cbam.export import Exported

DESCRIPTION = """Write a trained network as a file for other runtimes: ONNX, torch.export or AOTInductor. The file is
compared with the network here, and it is not written if the two differ. Class names and preprocessing are in it.

Examples: cbam export runs/train-digits-resnet20-cbam --output digits.onnx --dynamic batch;
  cbam export RUN --output small.onnx --precision int8 --calibrate PICTURES"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and how."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FOLDER|MODEL")]
    """A run of `cbam train` or `cbam detect train` (its best weights), its best/, final/ or checkpoints/step-N/, a run
    of `cbam compare` with --variant, one of its cells, a folder of cbam.save_pretrained, a file of weights with
    --model, user/name on the hub, or a network of torchvision or timm with published weights."""
    output: Path
    """The file to write, .onnx or .pt2."""
    variant: str | None = None
    """Of a run of `cbam compare`: the network to use, such as cbam (its first seed) or cbam-seed2."""
    model: str | None = None
    """The network, where the source does not say it: resnet20_cbam, timm/resnet50, my_package.my_net:build, ..."""
    format: Literal["onnx", "pt2", "aoti"] | None = None
    """pt2: torch.export, which any torch loads; aoti: compiled for this kind of machine by AOTInductor. None: by the
    suffix of --output."""
    plain: bool = False
    """pt2 and aoti without our fused operator, in operations that every runtime of torch.export knows. Otherwise
    cbam.export.load has to load the file. ONNX is always plain."""
    image_size: str | None = None
    """Side of the images; for a detector also HxW such as 480x640. None: as saved with the network; for a detector a
    square of the shorter side that it resizes to."""
    dynamic: str = ""
    """Sizes that may differ, with commas: batch, height, width (length of signals, depth of volumes). All others are
    fixed."""
    batch_size: int = 1
    """Images at a time where the batch is not dynamic."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of ONNX: fp16 and int8 keep the attention in float32."""
    calibrate: str | None = None
    """For int8: a folder of pictures like those that it will see, or a set, whose training images count."""
    calibration_images: int = 256
    """Of --calibrate, at most so many."""
    gates: Literal["float", "int8"] = "float"
    """For int8: whether the attention is quantized too."""
    opset: int | None = None
    """Version of ONNX's operators, 18 or later. None: the exporter's own."""
    check: bool = True
    """Compare with eager mode and time both."""
    data: str | None = None
    """Images on whose validation part the accuracy is measured, before and after. None: the run's own, for fp16 and
    int8. For a detector a set such as coco:FOLDER, on four of whose images the detections are compared; None: the run's
    own where they are still there, otherwise noise."""
    limit_val: int | None = None
    """Use only this many of them, equally many of each class."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""

    def __post_init__(self) -> None:
        import_modules(self.imports)

    @property
    def dynamic_names(self) -> list[str]:
        """Names of the sizes that may differ."""
        return [name.strip() for name in self.dynamic.split(",") if name.strip()]

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the images: none, one, or height and width."""
        if self.image_size is None:
            return ()
        parts = self.image_size.split("x")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise CBAMError(
                f"--image-size is one side such as 224, of a detector also 480x640, got {self.image_size!r}."
            )
        return tuple(map(int, parts))


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    return run(read_options(ExportConfig, "cbam export", DESCRIPTION, arguments))


def run(config: ExportConfig) -> int:
    """Export, and print what was written, how it differs and how fast it is; return the exit code.

    Raises:
        CBAMError: see `cbam.export`.
    """
    _check(config)
    from cbam.export import export
    from cbam.pretrained import open_network

    if _holds_detector(Path(config.source)):
        return _run_detector(config)
    network = open_network(config.source, config.model, variant=config.variant)
    model = network.model
    example = _example(model, config)
    exported = export(
        model,
        config.output,
        example,
        format=config.format,
        plain=config.plain,
        dynamic=config.dynamic_names,
        precision=config.precision,
        calibration=_calibration(model, config, tuple(example.shape[1:])),
        gates=config.gates,
        opset=config.opset,
        check=config.check,
    )
    print(exported)
    print(_metadata_line(exported))
    if config.check:
        print("\n".join(latency_lines(exported.latency())))
    _print_accuracy(model, exported, config, network.run)
    return 0


def _holds_detector(source: Path) -> bool:
    from cbam.pretrained.places import DETECTOR

    folders = [source, source / "best", *source.glob("cells/*")]
    return any((folder / DETECTOR).is_file() for folder in folders)


def _run_detector(config: ExportConfig) -> int:
    if config.batch_size != 1:
        raise CBAMError(f"a detector's file takes one image, and --batch-size {config.batch_size} was given.")
    from cbam.detect.saved import find_detector, open_detector
    from cbam.export import export
    from cbam.export.detector import OneImage
    from cbam.export.images import detection_images

    folder = find_detector(config.source)
    detector, about = open_detector(folder)
    noise = OneImage(detector).example(config.sides[0] if len(config.sides) == 1 else config.sides or None)
    images = detection_images(folder.parent, config.data, tuple(noise.shape[2:])) if config.check else None
    exported = export(
        detector,
        config.output,
        noise if images is None else images,
        format=config.format,
        plain=config.plain,
        dynamic=config.dynamic_names,
        precision=config.precision,
        opset=config.opset,
        class_names=about.classes,
        check=config.check,
    )
    print(exported)
    print(_metadata_line(exported))
    if config.check:
        what = "noise, as the run's images are not here: name others, --data coco:FOLDER"
        print(f"compared on {'validation images' if images is not None else what}")
        print("\n".join(latency_lines(exported.latency())))
    return 0


def _check(config: ExportConfig) -> None:
    if config.batch_size < 1 or config.calibration_images < 1:
        raise CBAMError("--batch-size and --calibration-images must be at least 1.")
    if (config.precision == "int8") != (config.calibrate is not None):
        raise CBAMError(
            "--precision int8 needs --calibrate FOLDER: pictures like those that the network will see."
            if config.calibrate is None
            else f"--calibrate is for --precision int8, and --precision {config.precision} was given."
        )


def _example(model: nn.Module, config: ExportConfig) -> Tensor:
    from cbam.attach.graph.probe import default_inputs

    saved: Any = getattr(model, "cbam_config", None)
    if len(config.sides) > 1:
        raise CBAMError(
            f"--image-size {config.image_size} is for detectors; a classifier takes one side, such as 224."
        )
    size = config.sides[0] if config.sides else getattr(saved, "input_size", None)
    (image,) = default_inputs(model, size)
    return image.repeat(config.batch_size, *[1] * (image.dim() - 1))


def _calibration(model: nn.Module, config: ExportConfig, size: tuple[int, ...]) -> Tensor | None:
    if config.calibrate is None:
        return None
    from cbam.export.images import calibration_images

    return calibration_images(model, config.calibrate, size, config.calibration_images)


def _print_accuracy(model: nn.Module, exported: Exported, config: ExportConfig, run: Path | None) -> None:
    if config.data is None and config.precision == "fp32":
        return
    from cbam.export.images import accuracy, validation_data

    size = tuple(exported.example.shape[1:])
    data = validation_data(model, run, config.data, size, config.limit_val)
    if data is None:
        print("accuracy: not measured; name images with their classes: --data FOLDER")
    else:
        print(f"accuracy: {accuracy(model, exported.load(), data)}: {data.source}")


def _metadata_line(exported: Exported) -> str:
    names = ", ".join(exported.metadata)
    return f"metadata: {names}"


def latency_lines(times: dict[int, tuple[Latency, Latency]]) -> list[str]:
    """Return a table of the times of eager mode and of the exported network."""
    rows = [("images", "eager", "exported", "ratio")]
    for images, (eager, exported) in times.items():
        rows.append((str(images), str(eager), str(exported), f"{exported.median_ms / eager.median_ms:.2f}"))
    return columns(rows)
