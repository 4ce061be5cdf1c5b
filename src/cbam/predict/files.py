"""Predictions for files and folders, and the table, CSV and JSON of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from cbam.data.picture_files import find_pictures
from cbam.data.pictures import BadImage
from cbam.data.scan import some
from cbam.errors import CBAMError, unknown_name
from cbam.files import write_atomically
from cbam.formatting import columns
from cbam.predict.prediction import Prediction
from cbam.predict.predictor import Predictor

FORMATS = (".csv", ".json")
_MOST_LINES = 50


@dataclass(frozen=True)
class Predicted:
    """What a network says of files.

    Attributes:
        files: each with its prediction, or with why it cannot be read.
        names: a name of its own for the drawing of each file.
    """

    files: Mapping[Path, Prediction | BadImage]
    names: Mapping[Path, str]

    @property
    def bad(self) -> list[BadImage]:
        """Why files cannot be read."""
        return [found for found in self.files.values() if isinstance(found, BadImage)]


def predict_files(
    predictor: Predictor,
    sources: Sequence[str | Path],
    on_image: Callable[[int, int], object] = lambda done, of: None,
) -> Predicted:
    """Return what a network says of pictures; files that cannot be read do not stop it.

    Args:
        predictor: the network.
        sources: image files, and folders, which stand for the images in them at any depth.
        on_image: called with (pictures done, pictures) after each.

    Raises:
        CBAMError: a source that is no picture and no folder, or there is no picture at all.
    """
    names = find_pictures(sources)
    if not names:
        raise CBAMError(f"there is no image in {some(map(str, sources))}.")
    found: dict[Path, Prediction | BadImage] = {}
    for batch in _batches(list(names), predictor.batch_size):
        prepared: dict[Path, Tensor] = {}
        for path in batch:
            try:
                prepared[path] = predictor.prepare(path)
            except BadImage as error:
                found[path] = error
        told = predictor.of_batch([str(path) for path in prepared], list(prepared.values()))
        found.update(zip(prepared, told, strict=True))
        for _ in batch:
            on_image(len(found), len(names))
    return Predicted({path: found[path] for path in names}, names)


def table(predicted: Predicted, top: int, *, written: bool = False) -> list[str]:
    """Return the lines for the terminal: each picture with its most probable classes, or with its labels.

    Args:
        predicted: What was found.
        top: Classes of each picture.
        written: Whether all of it goes to a file anyway.
    """
    shown = [(path, one) for path, one in predicted.files.items() if isinstance(one, Prediction)]
    several = any(one.task == "multilabel" for _, one in shown)
    rows = [("image", "labels (%)", "less likely") if several else ("image", "says", "%", "then")]
    for path, one in shown[:_MOST_LINES]:
        if several:
            said = len(one.labels)
            rows.append(
                (str(path), _shares(one.top(max(said, 1))[:said]) or "none", _shares(one.top(top)[said:]))
            )
            continue
        (name, value), *others = one.top(top)
        rows.append((str(path), name, f"{100 * value:.1f}", _shares(others)))
    lines = columns(rows, left=(0, 1, 2) if several else (0, 1, 3)) if shown else []
    if len(shown) > _MOST_LINES:
        how = "" if written else ": --output predictions.csv has all"
        lines.append(f"... and {len(shown) - _MOST_LINES:,} more{how}")
    return lines


def _shares(of: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}" for name, share in of)


def check_output(output: Path) -> None:
    """Refuse a file of another kind than CSV and JSON.

    Raises:
        CBAMError: it is.
    """
    if output.suffix.lower() not in FORMATS:
        raise unknown_name("kind of file for --output:", output.suffix or output.name, FORMATS)


def write_predictions(output: Path, predictor: Predictor, predicted: Predicted, top: int) -> None:
    """Write all predictions, those of every class, as CSV or JSON by the file's suffix; files with errors too."""
    as_text = _as_csv if output.suffix.lower() == ".csv" else _as_json
    write_atomically(output, as_text(predictor, predicted, top))


def _as_csv(predictor: Predictor, predicted: Predicted, top: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["file", "class", "probability", "error", *(f"p({name})" for name in predictor.class_names)]
    )
    for path, one in predicted.files.items():
        if isinstance(one, BadImage):
            writer.writerow([path, "", "", f"{one.kind} ({one.detail})"])
            continue
        shares = [f"{value:.6f}" for value in one.probabilities.tolist()]
        # Of several labels one probability each; of none none, as that of a label that is not there would mislead.
        sure = ";".join(f"{value:.6f}" for _, value in one.top(max(1, len(one.labels)))[: len(one.labels)])
        writer.writerow([path, ";".join(one.labels), sure, "", *shares])
    return text.getvalue()


def _as_json(predictor: Predictor, predicted: Predicted, top: int) -> str:
    network = predictor.network
    content = {
        "network": network.source,
        "task": network.task,
        "classes": list(network.class_names),
        "preprocessing": str(network.preprocessing),
        "images": [_row(path, one, top) for path, one in predicted.files.items()],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _row(path: Path, one: Prediction | BadImage, top: int) -> dict[str, Any]:
    if isinstance(one, BadImage):
        return {"file": str(path), "error": f"{one.kind} ({one.detail})"}
    return {
        "file": str(path),
        "classes": list(one.labels),
        "top": [{"class": name, "probability": round(value, 6)} for name, value in one.top(top)],
        "probabilities": [round(value, 6) for value in one.probabilities.tolist()],
    }


def _batches(files: Sequence[Path], size: int) -> Iterator[list[Path]]:
    remaining = iter(files)
    while batch := list(islice(remaining, size)):
        yield batch
