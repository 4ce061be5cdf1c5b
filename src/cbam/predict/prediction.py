"""What a classifier says of one picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cbam.evaluate.labels import TRUE_FROM


@dataclass(frozen=True)
class Prediction:
    """Classes and their probabilities; `print` it.

    Attributes:
        name: of the picture.
        class_names: of all classes.
        probabilities: (K,) float32 on the CPU, in the order of the names.
        task: "multiclass", one class of all, or "multilabel", each class for itself.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: Tensor
    task: str = "multiclass"

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes, best first.

        >>> import torch
        >>> [name for name, _ in Prediction("a.jpg", ("cat", "dog"), torch.tensor([0.25, 0.75])).top(2)]
        ['dog', 'cat']
        """
        best = self.probabilities.topk(min(count, len(self.class_names)))
        return [
            (self.class_names[index], value)
            for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """That of the most probable class."""
        return self.top(1)[0][1]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that are there: the most probable one, or where several may be true those from 0.5 on."""
        if self.task != "multilabel":
            return (self.label,)
        return tuple(name for name, value in self.top(len(self.class_names)) if value >= TRUE_FROM)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.1%}" for name, value in self.top(3))
