"""Load an exported file and run it, whatever its format: what the check and the tests do, and a user may."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from cbam.errors import CBAMError, MissingExtra
from cbam.export.metadata import DETECTION, TASK, read
from cbam.files import checked_path
from cbam.ops import library

EXTRA = "cbam.json"  # the file of torch.export's archive that holds the metadata
_AOTI = "aotinductor"


@dataclass(frozen=True)
class Loaded:
    """An exported network.

    Attributes:
        format: "onnx", "pt2" or "aoti".
        run: a batch in, its outputs out.
        metadata: class names, preprocessing and task, as far as the file has them.
        batch: how many images it takes at a time; None: any number.
    """

    format: str
    run: Callable[[Tensor], tuple[Tensor, ...]]
    metadata: dict[str, Any]
    batch: int | None = None

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of any number of images; with a fixed batch in parts, the last one filled up.

        Raises:
            CBAMError: several images for a detector, which finds another number of objects in each.
        """
        if self.batch is None or len(images) == self.batch:
            return self.run(images)
        if self.metadata.get(TASK) == DETECTION:
            raise CBAMError(
                f"an exported detector takes one image (1, C, H, W), given {tuple(images.shape)}."
            )
        parts = []
        for part in images.split(self.batch):
            short = self.batch - len(part)
            whole = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            parts.append([output[: len(part)] for output in self.run(whole)])
        return tuple(map(torch.cat, zip(*parts, strict=True)))


def load(path: str | Path) -> Loaded:
    """Load a file of `cbam.export`.

    Args:
        path: a .onnx or .pt2 file. A .pt2 file holds code: load only what you trust.

    Raises:
        CBAMError: there is no such file, or it is none of ours.
        MissingExtra: an ONNX file, and onnxruntime is not installed.
    """
    path = checked_path(path)
    if not path.is_file():
        raise CBAMError(f"there is no file {str(path)!r}.")
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if not zipfile.is_zipfile(path):
        raise CBAMError(f"{str(path)!r} is neither .onnx nor an archive of torch.export.")
    library.load()  # the operator, which a file may call and `import cbam` alone does not define
    with zipfile.ZipFile(path) as archive:
        compiled = any(_AOTI in name for name in archive.namelist())
    return _load_compiled(path) if compiled else _load_program(path)


def _load_onnx(path: Path) -> Loaded:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("an ONNX file", "export", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (first, *_) = session.get_inputs()
    batch = first.shape[0] if isinstance(first.shape[0], int) else None

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {first.name: images.detach().cpu().numpy()})))

    return Loaded("onnx", run, read(session.get_modelmeta().custom_metadata_map), batch)


def _load_program(path: Path) -> Loaded:
    if _is_detector(path):
        import torchvision  # noqa: F401  registers nms and roi_align

    extra = {EXTRA: ""}
    program = torch.export.load(path, extra_files=extra)
    module = program.module()
    (node, *_) = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    return Loaded("pt2", _tensors_of(module), _parsed(extra[EXTRA]), _fixed(node.meta["val"].shape))


def _is_detector(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(EXTRA)]
        return any(json.loads(archive.read(name)).get(TASK) == DETECTION for name in names)


def _load_compiled(path: Path) -> Loaded:
    package = torch._inductor.aoti_load_package(str(path))
    found = dict(package.get_metadata())
    batch = found.get("batch", "")
    return Loaded("aoti", _tensors_of(package), read(found), int(batch) if batch.isdecimal() else None)


def _tensors_of(call: Callable[..., Any]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tensors_in(call(images))

    return run


def tensors_in(outputs: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a network's outputs, in order: of tuples, lists and mappings."""
    return tuple(leaf for leaf in trees.tree_leaves(outputs) if isinstance(leaf, Tensor))


def _fixed(shape: Sequence[Any]) -> int | None:
    return shape[0] if isinstance(shape[0], int) else None


def _parsed(text: str | bytes) -> dict[str, Any]:
    return read(json.loads(text)) if text else {}
