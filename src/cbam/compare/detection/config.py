"""The options of `cbam detect compare`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbam.compare.config import GridConfig
from cbam.detect.config import DetectorConfig, absolute_set
from cbam.detect.recipe import DetectTrainConfig
from cbam.runs.config import option
from cbam.runs.options import folder_name


@dataclass(frozen=True, kw_only=True)
class DetectCompareConfig(GridConfig, DetectorConfig):
    """Everything that a comparison of detectors depends on.

    Each field is an option of `cbam detect compare`; the text below it is the option's help.

    >>> config = DetectCompareConfig(data="voc:VOCdevkit", model="ssd300_vgg16", sites="head")
    >>> config.variants, str(config.folder)
    (('none', 'se', 'cbam'), 'runs/VOCdevkit-ssd300_vgg16')
    """

    attention: str = option("none,se,cbam", affects_result=False)
    """Variants, separated by commas: none; kinds of attention, e.g. se, eca, timm:gc, cbam; and control: plain, but
    widened until it has as many parameters as cbam, for ResNets whose norms are trained. Words after a colon modify a
    kind: cbam:official, cbam:fresh, cbam:k3, cbam:r8, ..., as in `cbam compare`."""
    train: DetectTrainConfig = field(default_factory=DetectTrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_grid()

    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.train.peak_lr(self.model)

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / folder_name(self.data.partition(":")[2], self.model)

    def resolved(self) -> dict[str, Any]:
        """Return every option's value, with defaults filled in and paths made absolute."""
        return super().resolved() | {**self.grid_settings(), "lr": self.peak_lr()}

    def anywhere(self) -> DetectCompareConfig:
        """Return the options with absolute paths, for processes that start in another folder."""
        return replace(
            self,
            output=self.folder.resolve(),
            data=absolute_set(self.data),
            weights=self.weights.resolve() if self.weights else None,
        )
