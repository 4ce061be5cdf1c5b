"""The grid of a comparison: its cells, their order, and the model that each one starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from cbam.attach.variants import CONTROL, matched_by_control, parse_variant
from cbam.nn.registry import attention_kind

if TYPE_CHECKING:
    from cbam.compare.config import CompareConfig
    from cbam.data.image_data import ImageData


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


def cells(variants: tuple[str, ...], seeds: int) -> list[Cell]:
    """Return all cells, all variants of seed 0 first, so that a part of the run is already a paired comparison.

    >>> [cell.name for cell in cells(("none", "cbam"), 2)]
    ['none-seed0', 'cbam-seed0', 'none-seed1', 'cbam-seed1']
    """
    return [Cell(variant, seed) for seed in range(seeds) for variant in variants]


def build_cell(
    cell: Cell, config: CompareConfig, data: ImageData, parameters: dict[str, int] | None = None
) -> nn.Module:
    """Build the model of a cell as it is before training.

    The backbone's first weights depend on the seed alone: all variants of a seed start from the same ones.

    Args:
        cell: Variant and seed.
        config: The model's name, its weights and the reduction ratio.
        data: Gives the number of classes and the image size.
        parameters: Parameter counts by variant that are known so far; this model's is added. The size of a control
            is taken from here; if it is missing, the network that the control matches is built and counted.

    Raises:
        CBAMError: The model, its weights, the sites for the attention or a control of that size do not exist.
    """
    # Lazily: timm and torchvision take seconds to import, and an error in the options should be reported at once.
    from cbam.train.build import build_network, count_parameters

    parameters = {} if parameters is None else parameters
    if cell.variant == CONTROL:
        matched = matched_by_control(config.variants)
        if matched not in parameters:
            build_cell(Cell(matched, cell.seed), config, data, parameters)
        model = build_network(config, data, cell.seed, widened_to=parameters[matched])
    else:
        model = build_network(config, data, cell.seed, attach_arguments(cell.variant, config))
    parameters[cell.variant] = count_parameters(model)
    return model


def attach_arguments(name: str, config: CompareConfig) -> dict[str, Any] | None:
    """Return the keywords of `cbam.attach` for a variant, whose options win over the run's; None: no attention."""
    variant = parse_variant(name)
    if variant.attention is None:
        return None
    options: dict[str, Any] = {}
    if config.reduction_ratio is not None and attention_kind(variant.attention).takes("reduction_ratio"):
        options["reduction_ratio"] = config.reduction_ratio
    return options | variant.attach_arguments(fine_tuning=config.fine_tuning)
