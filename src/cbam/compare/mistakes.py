"""What networks confuse: the section of a report, from confusion matrices and what was said of each image."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbam.compare.folder import CompareFolder
from cbam.compare.grid import Cell
from cbam.compare.label_mistakes import labels_section
from cbam.compare.reading import Run, read_object
from cbam.compare.tables import by_variant, mean_and_sd
from cbam.data.image_data import ImageData
from cbam.errors import CBAMError
from cbam.evaluate.class_figures import calibration_figure, confusion_figure
from cbam.evaluate.metrics import BINS, Calibration, calibration, class_scores, confused_pairs
from cbam.evaluate.predictions import FILE, Predictions
from cbam.explain.overlay import enlarged
from cbam.explain.pictures import replacing
from cbam.page import embedded

_FOLDER = "mistakes"
_PAIRS, _IMAGES = 12, 8
_NO_MATRIX = "Unknown: the results of this run do not say what was predicted as what."
_UNTRAINED = "No network is trained yet."
_NO_PREDICTIONS = (
    "Calibration and the most confused images are left out: what the networks said of each image was not kept, as by "
    "earlier versions. Trained again, the run has them."
)


def mistakes_section(run: Run) -> dict[str, Any]:
    """Return what the template shows of a run of classifiers; `rows` is empty where nothing is known.

    Args:
        run: What the folder holds.
    """
    classes = run.data.get("classes") or []
    if run.data.get("task") == "multilabel":
        return labels_section(run)
    matrices = by_variant(run, lambda result: _matrix(result, len(classes)))
    said = by_variant(
        run,
        lambda result: Predictions.read(
            run.folder / "cells" / Cell(result["variant"], result["seed"]).name / FILE
        ),
    )
    if not matrices:
        return {"rows": [], "note": _NO_MATRIX if run.results else _UNTRAINED}
    each = {variant: [calibration(one.confidence, one.correct) for one in of] for variant, of in said.items()}
    errors = {variant: [one.ece for one in of if one] for variant, of in each.items()}
    curves = {
        variant: _pooled(of, errors[variant]) for variant, of in said.items() if None not in each[variant]
    }
    return {
        "bins": BINS,
        "rows": [_row(variant, of, errors.get(variant, ()), classes) for variant, of in matrices.items()],
        "pairs": _pairs(matrices, classes),
        "curve": calibration_figure(curves, "calibration"),
        "images": _images(run),
        "note": "" if said else _NO_PREDICTIONS,
    }


def _matrix(result: Mapping[str, Any], classes: int) -> Tensor | None:
    rows = result.get("confusion")
    if not rows:
        return None
    matrix = torch.tensor(rows, dtype=torch.int64)
    if matrix.shape != (classes, classes) or not int(matrix.sum()):
        raise ValueError(
            f"the confusion of {result['variant']}, seed {result['seed']}, is not one of {classes} classes"
        )
    return matrix


def _pooled(of: Sequence[Predictions], errors: Sequence[float]) -> Calibration:
    """Return the bins of all seeds together, with the mean of each network's own error."""
    together = calibration(torch.cat([one.confidence for one in of]), torch.cat([one.correct for one in of]))
    assert together is not None
    return dataclasses.replace(together, ece=statistics.fmean(errors))


def _row(
    variant: str, matrices: Sequence[Tensor], errors: Sequence[float], classes: Sequence[str]
) -> dict[str, Any]:
    together = torch.stack(list(matrices)).sum(0)
    each = [class_scores(matrix) for matrix in matrices]
    scores = class_scores(together)
    columns = (classes, scores.images, scores.predicted, scores.precision, scores.recall, scores.f1)
    names = ("class", "images", "predicted", "precision", "recall", "f1")
    return {
        "variant": variant,
        "balanced": mean_and_sd([one.balanced_accuracy for one in each]),
        "f1": mean_and_sd([one.macro_f1 for one in each]),
        "ece": mean_and_sd(errors),
        "matrix": confusion_figure(together, classes, f"confusion-{variant.replace(':', '-')}", variant),
        "classes": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _pairs(matrices: Mapping[str, Sequence[Tensor]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs that all networks together confuse most often, with each variant's share of the class."""
    by_variant = [torch.stack(list(of)).sum(0) for of in matrices.values()]
    found = confused_pairs(torch.stack(by_variant).sum(0), _PAIRS)
    return [
        {
            "true": classes[pair.true],
            "predicted": classes[pair.predicted],
            "shares": [
                int(matrix[pair.true, pair.predicted]) / images
                if (images := int(matrix[pair.true].sum()))
                else None
                for matrix in by_variant
            ],
        }
        for pair in found
    ]


def _images(run: Run) -> list[dict[str, Any]]:
    folder = run.folder / _FOLDER
    images: list[dict[str, Any]] = read_object(folder / "mistakes.json").get("images", [])
    return [{**image, "picture": embedded(folder / Path(image["picture"]).name)} for image in images]


def draw_mistakes(folder: CompareFolder, cells: Sequence[Cell], data: ImageData) -> None:
    """Draw the images that all networks together find hardest into the run's folder, with what each says of them.

    Args:
        folder: The run's.
        cells: Those whose predictions count, as far as they are there.
        data: The images.
    """
    said: dict[str, list[Predictions]] = {}
    for cell in cells:
        found = Predictions.read(folder.cell(cell) / FILE)
        if found is not None and found.labels.tolist() == list(data.val.labels):
            said.setdefault(cell.variant, []).append(found)
    if not said:
        return
    images = []
    with replacing(folder.path / _FOLDER) as fresh:
        for place, index in enumerate(hardest(said, _IMAGES)):
            try:
                picture = data.val.picture(index)
            except CBAMError:  # the file may have gone since
                continue
            name = f"image-{place}.png"
            enlarged(picture).save(fresh / name)
            about = {"index": index, "name": data.val.identifier(index), "picture": name}
            variants = {variant: _answer(of, index, data.classes) for variant, of in said.items()}
            images.append({**about, "class": data.classes[int(data.val.labels[index])], "variants": variants})
        (fresh / "mistakes.json").write_text(json.dumps({"images": images}, indent=1), encoding="utf-8")


def hardest(said: Mapping[str, Sequence[Predictions]], count: int) -> list[int]:
    """Return the images that most networks get wrong, the least probability of the true class first.

    Args:
        said: By variant, for each seed; every variant weighs the same.
        count: At most so many.
    """
    probability = torch.stack([torch.stack([one.of_label for one in of]).mean(0) for of in said.values()])
    wrong = torch.stack([~one.correct for of in said.values() for one in of]).float().mean(0) > 0.5
    chosen = wrong.nonzero()[:, 0]
    order = probability.mean(0)[chosen].argsort(stable=True)
    return chosen[order][:count].tolist()


def _answer(of: Sequence[Predictions], index: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return the class that most seeds predict, how many of how many, and the mean probability of the true one."""
    ((predicted, times),) = Counter(int(one.predicted[index]) for one in of).most_common(1)
    return {
        "predicted": classes[predicted],
        "times": times,
        "seeds": len(of),
        "probability": statistics.fmean(float(one.of_label[index]) for one in of),
    }
