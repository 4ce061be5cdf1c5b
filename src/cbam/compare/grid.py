"""The grid of a comparison: its cells, their order, and the model that each one starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from cbam.errors import CBAMError, unknown_name
from cbam.train.seeding import derive_seed, forked_rng

if TYPE_CHECKING:
    from cbam.compare.config import CompareConfig
    from cbam.data.image_data import ImageData

# Name of a variant -> attention and preset for `attach`.
ATTENTIONS = {
    "se": ("se", "paper"),
    "cbam": ("cbam", "paper"),
    "cbam:official": ("cbam", "official"),
    "cbam:timm": ("cbam", "timm"),
    "channel": ("channel", "paper"),
    "spatial": ("spatial", "paper"),
}
VARIANTS = ("none", *ATTENTIONS, "control")


@dataclass(frozen=True)
class Cell:
    """One model to train.

    >>> Cell("cbam:official", 2).name
    'cbam-official-seed2'
    """

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return f"{self.variant.replace(':', '-')}-seed{self.seed}"


def parse_variants(text: str) -> tuple[str, ...]:
    """Split the value of `--attention`.

    Raises:
        CBAMError: A name that does not exist, a name twice, or a control without anything to match.

    >>> parse_variants("none, cbam")
    ('none', 'cbam')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise CBAMError("--attention names no variant. Type for example: --attention none,se,cbam,control")
    for name in names:
        if name not in VARIANTS:
            raise unknown_name("attention", name, VARIANTS)
        if names.count(name) > 1:
            raise CBAMError(f"--attention names {name!r} twice")
    if len(names) == 1 and names[0] in ATTENTIONS:
        raise CBAMError(
            f"--attention {names[0]} alone has nothing to be compared with. Type: --attention none,{names[0]}"
        )
    if "control" in names and not set(names) & set(ATTENTIONS):
        raise CBAMError(
            "the control has as many parameters as the model with attention: name that too, "
            "for example --attention none,cbam,control"
        )
    return names


def cells(variants: tuple[str, ...], seeds: int) -> list[Cell]:
    """Return all cells, all variants of seed 0 first, so that a part of the run is already a paired comparison.

    >>> [cell.name for cell in cells(("none", "cbam"), 2)]
    ['none-seed0', 'cbam-seed0', 'none-seed1', 'cbam-seed1']
    """
    return [Cell(variant, seed) for seed in range(seeds) for variant in variants]


def matched_by_control(variants: tuple[str, ...]) -> str:
    """Return the variant whose parameter count the control has: cbam, or the first with attention.

    >>> matched_by_control(("none", "se", "cbam", "control")), matched_by_control(("none", "se", "channel"))
    ('cbam', 'se')
    """
    return "cbam" if "cbam" in variants else next(name for name in variants if name in ATTENTIONS)


def build_cell(cell: Cell, config: CompareConfig, data: ImageData) -> nn.Module:
    """Build the model of a cell as it is before training.

    The backbone's first weights depend on the seed alone: all variants of a seed start from the same ones.

    Args:
        cell: Variant and seed.
        config: The model's name, its weights and the reduction ratio.
        data: Gives the number of classes and the image size.

    Raises:
        CBAMError: The model, its weights, the place for the attention or a control of that size do not exist.
    """
    # Lazily: timm and torchvision take seconds to import, and a typing error should not.
    from cbam.attach import attach
    from cbam.models import build_model, widen

    channels = data.input_size[0]
    with forked_rng(derive_seed(cell.seed, "backbone")):
        model = build_model(
            config.model,
            len(data.classes),
            in_channels=channels,
            pretrained=config.pretrained,
            weights=config.weights,
        )
    if cell.variant == "control":
        matched = Cell(matched_by_control(config.variants), cell.seed)
        target = count_parameters(build_cell(matched, config, data))
        with forked_rng(derive_seed(cell.seed, "control")):
            widen(model, target)
    elif cell.variant in ATTENTIONS:
        attention, preset = ATTENTIONS[cell.variant]
        with forked_rng(derive_seed(cell.seed, "attention")):
            attach(
                model,
                attention,
                [site.strip() for site in config.sites.split(",")],
                init="identity" if config.fine_tuning else "paper",
                preset=preset,
                reduction_ratio=config.reduction_ratio,
                input_size=data.input_size,
            )
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of scalars in the parameters.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
