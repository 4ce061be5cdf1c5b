"""A detector in a folder: its weights, and what is needed to build it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from cbam.checkpoints import tensors_file
from cbam.checkpoints.switches import Switches, as_header
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.models.detection import build_detector
from cbam.models.matched_control import match_parameters
from cbam.version import __version__

FILE, WEIGHTS = "detector.json", "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class SavedDetector:
    """What a folder says of its detector.

    Attributes:
        arguments: Of `build_detector`, without weights.
        classes: Names of the classes; label 1 is the first.
        category_ids: The set's own number of each class.
        metric: By which it was judged.
        data: Name of the set that it was trained on.
        frozen_eps: Of the frozen norms; None where there are none.
        widened_to: Of a control the target of `match_parameters`; None for other detectors.
    """

    arguments: dict[str, Any]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    metric: str
    data: str
    frozen_eps: float | None = None
    widened_to: int | None = None

    def build(self) -> nn.Module:
        """Return the detector with new weights."""
        model = build_detector(**self.arguments)
        if self.widened_to is not None:
            match_parameters(model, self.widened_to)
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d) and self.frozen_eps is not None:
                module.eps = self.frozen_eps
        return model


def frozen_eps(model: nn.Module) -> float | None:
    """Return the eps of a detector's frozen norms, which no weight holds: it is 0 with torchvision's first weights."""
    return next((m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)), None)


def save_detector(folder: Path, weights: dict[str, Tensor], about: SavedDetector, switches: Switches) -> None:
    """Write a detector's folder; each file is replaced whole.

    Args:
        folder: Made if it is not there.
        weights: Whole tensors on the CPU.
        about: How to build it.
        switches: Of its attention.
    """
    header = {"detector": about.arguments["name"], **as_header(switches)}
    tensors_file.write(folder / WEIGHTS, weights, header)
    content = {"format": FORMAT, "torch_cbam": __version__, **asdict(about)}
    write_atomically(folder / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")


def find_detector(source: str | Path) -> Path:
    """Return the folder of a detector: the source, or of a run of `cbam detect train` its best weights.

    Raises:
        CBAMError: There is no detector.
    """
    source = Path(source)
    for folder in (source / "best", source):
        if (folder / FILE).is_file():
            return folder
    if (source / "cells").is_dir():
        cells = [cell.name for cell in sorted((source / "cells").iterdir()) if (cell / FILE).is_file()]
        raise CBAMError(
            f"{source} is a run of cbam detect compare with several detectors. Name one: "
            f"{source}/cells/{cells[0] if cells else '...'}"
        )
    what = "holds no detector" if source.is_dir() else "does not exist"
    raise CBAMError(
        f"{source} {what}. Expected a run of cbam detect train, or a folder with {FILE} and {WEIGHTS}"
    )


def open_detector(source: str | Path) -> tuple[nn.Module, SavedDetector]:
    """Return a saved detector in evaluation mode on the CPU, and what its folder says of it.

    Args:
        source: A run of `cbam detect train`, or a folder of `save_detector`.

    Raises:
        CBAMError: There is none, it is damaged, or its attention is not registered here.
    """
    folder = find_detector(source)
    about = _read(folder / FILE)
    model = about.build()
    weights = dict(tensors_file.read(folder / WEIGHTS))
    own = model.state_dict()
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in own.items()}:
        raise CBAMError(f"{folder / WEIGHTS} does not hold the detector that {FILE} beside it describes")
    model.load_state_dict(weights)
    return model.eval(), about


def _read(file: Path) -> SavedDetector:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        form = content.pop("format")
        content.pop("torch_cbam", None)
        if form != FORMAT:
            raise CBAMError(
                f"{file} has format {form}, expected {FORMAT}: it is of another version of torch-cbam"
            )
        about = SavedDetector(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CBAMError):
            raise
        raise CBAMError(f"{file} is damaged ({error})") from None
    arguments = {**about.arguments, "min_size": _tuple(about.arguments.get("min_size"))}
    if arguments["min_size"] is None:
        del arguments["min_size"]
    return SavedDetector(
        **{
            **asdict(about),
            "arguments": arguments,
            "classes": tuple(about.classes),
            "category_ids": tuple(about.category_ids),
        }
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
