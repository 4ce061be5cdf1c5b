"""What networks for several labels an image get wrong: the section of a report, from the results of the runs."""

from __future__ import annotations

from typing import Any

from cbam.compare.reading import Run
from cbam.compare.tables import by_variant, mean_and_sd

_COLUMNS = {
    "average_precision": "per_class_ap",
    "precision": "per_class_precision",
    "recall": "per_class_recall",
    "f1": "per_class_f1",
}


def labels_section(run: Run) -> dict[str, Any]:
    """Return what the template shows of a run on images with several labels.

    Args:
        run: What the folder holds. Runs of earlier versions do not say everything; what is missing is None.
    """
    labels = run.data.get("classes") or []
    variants = by_variant(run, lambda result: result)
    rows = [
        {
            "variant": variant,
            "scores": [_score(of, name) for name in ("val_f1", "val_micro_f1", "val_exact")],
            "labels": [_label(of, place, name) for place, name in enumerate(labels)],
        }
        for variant, of in variants.items()
    ]
    return {"rows": [], "of_labels": rows, "note": "" if rows else "No network is trained yet."}


def _score(of: list[dict[str, Any]], name: str) -> tuple[float | None, float | None]:
    return mean_and_sd([result[name] for result in of if result.get(name) is not None])


def _label(of: list[dict[str, Any]], place: int, name: str) -> dict[str, Any]:
    """Return the mean scores of one label over the seeds in which it has one."""
    listed = {column: [result.get(key) or [] for result in of] for column, key in _COLUMNS.items()}
    means = {
        column: mean_and_sd([values[place] for values in found if values and values[place] is not None])[0]
        for column, found in listed.items()
    }
    counts = of[0].get("label_images")
    return {"label": name, "images": counts[place] if counts else None, **means}
