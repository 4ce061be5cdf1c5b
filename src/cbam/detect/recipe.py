"""The recipe of a detector's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbam.errors import CBAMError, unknown_name
from cbam.runs.options import check_ranges
from cbam.train.recipe import SCHEDULES, Plan, Recipe

# torchvision's rates, each for the number of images that it was used with.
_PEAK_LR = {"ssd300": (0.002, 32), "stairnet300": (0.002, 32), "retinanet": (0.01, 16), "fcos": (0.01, 16)}
_PEAK_LR_OF_OTHERS = (0.02, 16)
_PEAK_LR_ADAMW = 1e-4
_WARMUP = 1000  # steps, as in torchvision's recipe
_DROPS = (16 / 26, 22 / 26)  # of the training, as in torchvision's recipe


@dataclass(frozen=True, kw_only=True)
class DetectTrainConfig(Recipe):
    """The recipe for detectors: torchvision's, SGD with momentum 0.9, a warm-up by steps, two drops.

    Each field is an option of `cbam detect train` and `cbam detect compare`; the text below it is the option's help.

    >>> DetectTrainConfig(epochs=26, batch_size=16).plan(steps=7330).drops
    (117280, 161260)
    """

    epochs: int = 26
    """Passes over the training images, for each detector."""
    batch_size: int = 16
    """Images per step, over all processes together."""
    optimizer: Literal["sgd", "momentum", "adamw"] = "momentum"
    """momentum is SGD with plain momentum 0.9; sgd has Nesterov momentum 0.9."""
    lr: float | None = None
    """Peak learning rate. None: torchvision's for the kind of detector, in proportion to --batch-size: 0.02 for 16
    images (RetinaNet and FCOS 0.01), 0.002 for 32 of SSD and StairNet; adamw 1e-4."""
    weight_decay: float = 1e-4
    """Weight decay."""
    decay_norms: bool = True
    """Weight decay on biases and norms too, as in torchvision's recipe."""
    schedule: Literal["cosine", "step"] = "step"
    """step divides the rate by 10 at each of --drops; cosine falls to zero."""
    drops: str | None = None
    """When the step schedule drops, with commas: epochs, or steps with --iterations. None: 16/26 and 22/26 of it."""
    iterations: int | None = None
    """Train for this many steps in place of --epochs, as papers count; the last epoch then ends early."""
    warmup_steps: int | None = None
    """Steps in which the rate rises. None: 1000, or one epoch or a tenth of the training if that is less."""
    clip_gradients: float = 0.0
    """Scale the gradient of all weights down to this norm; 0 is off."""
    evaluate_every: int = 1
    """Epochs between two evaluations; after the last one there always is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            ("iterations", self.iterations, self.iterations is None or self.iterations >= 1, "at least 1"),
            (
                "warmup-steps",
                self.warmup_steps,
                self.warmup_steps is None or self.warmup_steps >= 0,
                "at least 0",
            ),
            ("clip-gradients", self.clip_gradients, 0 <= self.clip_gradients < float("inf"), "at least 0"),
            ("evaluate-every", self.evaluate_every, self.evaluate_every >= 1, "at least 1"),
        )
        if self.schedule not in SCHEDULES:
            raise unknown_name("--schedule", self.schedule, SCHEDULES)
        if self.drops is not None and self.schedule == "cosine":
            raise CBAMError(f"--drops {self.drops} has no effect with --schedule cosine. Leave it out")
        self._given_drops()

    def peak_lr(self, model: str) -> float:
        """Return the learning rate at the end of the warm-up.

        Args:
            model: The detector's name.

        >>> DetectTrainConfig(batch_size=4).peak_lr("fasterrcnn_resnet50_fpn")
        0.005
        """
        if self.lr is not None:
            return self.lr
        if self.optimizer == "adamw":
            return _PEAK_LR_ADAMW
        rate, images = _PEAK_LR.get(model.partition("_")[0], _PEAK_LR_OF_OTHERS)
        return rate * self.batch_size / images

    def plan(self, steps: int) -> Plan:
        """Return the learning rate's plan; see `Recipe.plan`."""
        unit = steps if self.iterations is None else 1
        total = (self.epochs if self.iterations is None else self.iterations) * unit
        warmup = min(_WARMUP, steps, total // 10) if self.warmup_steps is None else self.warmup_steps
        if self.schedule == "cosine":
            return Plan(total, warmup, cosine=True)
        given = self._given_drops()
        drops = (
            tuple(round(share * total) for share in _DROPS)
            if given is None
            else tuple(d * unit for d in given)
        )
        return Plan(total, warmup, cosine=False, drops=drops)

    def _given_drops(self) -> tuple[int, ...] | None:
        if self.drops is None:
            return None
        words = [word.strip() for word in str(self.drops).split(",") if word.strip()]
        last = self.iterations or self.epochs
        if not all(word.isdecimal() and 0 < int(word) < last for word in words):
            raise CBAMError(
                f"--drops takes whole numbers between 0 and {last} with commas, e.g. {round(last * _DROPS[0])},"
                f"{round(last * _DROPS[1])}; given {self.drops!r}"
            )
        return tuple(sorted(map(int, words)))

    @property
    def largest_gradient(self) -> float:
        """Norm that the gradient of all weights is scaled down to; 0 for none."""
        return self.clip_gradients

    @property
    def epochs_between_evaluations(self) -> int:
        """After how many epochs the network is judged."""
        return self.evaluate_every
