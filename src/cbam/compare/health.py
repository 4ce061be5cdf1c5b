"""Which trainings failed: at chance, with a loss that exploded, or without learning anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cbam.formatting import counted

_EXPLODED = 10  # times the loss of a network that finds all classes equally likely
_FALLS = 0.98  # of the first epoch's training loss; above it nothing was learned
_FINDS_NOTHING = 0.01  # average precision
_FEWEST_STEPS = 200
_ABOVE_SHARE = 1.1  # times the average precision of a guess


@dataclass(frozen=True)
class Problem:
    """One training that failed: whose, and in which way."""

    variant: str
    seed: int
    text: str


def problems(
    results: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]] = (), score: str = "val_accuracy"
) -> tuple[Problem, ...]:
    """Return the trainings from which nothing can be said about attention, the worst that is wrong with each.

    Args:
        results: the contents of the `result.json` files.
        rows: of `metrics.jsonl`.
        score: by which networks are compared, its name in a result.

    >>> confusion = [[0, 0, 15], [0, 0, 15], [0, 0, 15]]
    >>> result = {"variant": "none", "seed": 0, "val_accuracy": 1 / 3, "val_loss": 15_489.0, "confusion": confusion}
    >>> problems([result])[0].text
    'validation loss 15,489; a guess has 1.10'
    """
    losses: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        losses.setdefault((row["variant"], row["seed"]), {})[row["epoch"]] = row.get("train_loss", math.nan)
    found = []
    for result in results:
        cell = (result["variant"], int(result["seed"]))
        text = (
            _exploded(result)
            or _without_skill(result, score)
            or _learned_nothing([loss for _, loss in sorted(losses.get(cell, {}).items())], _guess(result))
        )
        if text:
            found.append(Problem(*cell, text))
    return tuple(found)


def levels(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the accuracies that need no network, by name: chance, and the largest class's share if that is more.

    >>> levels([{"confusion": [[6, 0], [2, 0]]}])
    {'chance': 0.5, 'largest class': 0.75}
    """
    for result in results:
        if share := _label_share(result):
            return {"chance": share}
        counts = class_counts(result)
        if len(counts) > 1:
            chance, largest = 1 / len(counts), max(counts) / sum(counts)
            more = {"largest class": largest} if largest > chance + 0.005 else {}
            return {"chance": chance, **more}
    return {}


def class_counts(result: Mapping[str, Any]) -> list[int]:
    """Return the number of validation images of each class or label; empty where the result does not say."""
    counts = [sum(row) for row in result.get("confusion") or ()] or list(result.get("label_images") or ())
    return counts if sum(counts) else []


def too_few_steps(images: int, batch_size: int, epochs: int) -> str:
    """Return a remark if a network can hardly be trained from scratch in so many steps, else nothing.

    >>> too_few_steps(300, 128, 2)
    'Only 6 steps of 128 images: too few to train a network from scratch. More epochs (--epochs) or images'
    """
    steps = math.ceil(images / batch_size) * epochs
    if steps >= _FEWEST_STEPS:
        return ""
    return (
        f"Only {counted(steps, 'step')} of {batch_size} images: too few to train a network from scratch."
        " More epochs (--epochs) or images"
    )


def _exploded(result: Mapping[str, Any]) -> str:
    loss, guess = result.get("val_loss"), _guess(result)
    if not isinstance(loss, int | float):
        return ""
    if not math.isfinite(loss):
        return "validation loss not finite"
    return f"validation loss {loss:,.0f}; a guess has {guess:.2f}" if 0 < guess < loss / _EXPLODED else ""


def _guess(result: Mapping[str, Any]) -> float:
    """Return the cross-entropy of a network that finds all classes equally likely; 0 where that is unknown."""
    if _label_share(result):
        return math.log(2)
    return math.log(max(1, len(result.get("per_class_accuracy") or class_counts(result))))


def _without_skill(result: Mapping[str, Any], score: str) -> str:
    if score == "val_accuracy":
        return _at_chance(result)
    if not (share := _label_share(result)):
        return _finds_nothing(result[score])
    if result[score] > _ABOVE_SHARE * share:
        return ""
    return (
        f"mean average precision {100 * result[score]:.2f} %, hardly more than guessing: labels have "
        f"{100 * share:.2f} % of the images on average"
    )


def _label_share(result: Mapping[str, Any]) -> float:
    """Return the mean share of the images that have a label, the average precision of a guess; 0 for other tasks."""
    counts = [count for count in result.get("label_images") or () if count]
    return sum(counts) / (len(counts) * result["images"]) if counts else 0.0


def _at_chance(result: Mapping[str, Any]) -> str:
    accuracy, counts = result["val_accuracy"], class_counts(result)
    if not counts or not math.isfinite(accuracy):
        return ""
    reached = f"{100 * accuracy:.2f} % accuracy"
    predicted = [sum(column) for column in zip(*result["confusion"], strict=True)]
    if max(predicted) == sum(predicted) and len(counts) > 1:
        return f"{reached}, the same class for every image"
    without = levels([result])
    name = list(without)[-1] if without else ""
    if not name:
        return ""
    images, level = sum(counts), without[name]
    if accuracy > level + 1.96 * math.sqrt(level * (1 - level) / images):
        return ""
    what = "chance" if name == "chance" else "the share of the largest class"
    return f"{reached}, which on {images:,} images cannot be told from {what}, {100 * level:.2f} %"


def _finds_nothing(precision: float) -> str:
    return (
        f"average precision {100 * precision:.2f} %, it finds nothing" if precision < _FINDS_NOTHING else ""
    )


def _learned_nothing(losses: Sequence[float], guess: float) -> str:
    if losses and not math.isfinite(losses[-1]):
        return "training loss not finite"
    if not guess or len(losses) < 2 or losses[-1] < guess / 2:
        return ""  # what starts from trained weights need not fall far
    if losses[-1] >= max(_FALLS * losses[0], 0.8 * guess):
        return f"training loss {losses[0]:.3g} in the first epoch and {losses[-1]:.3g} in the last: it did not learn"
    lowest = losses.index(min(losses)) + 1
    if len(losses) >= 4 and lowest <= len(losses) / 2:
        return f"training loss lowest in epoch {lowest} of {len(losses)}: it learned nothing more"
    return ""
