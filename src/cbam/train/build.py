"""The classifier that a training starts from; `cbam train` and `cbam compare` build the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cbam.attach import attach
from cbam.attach.sites.select import split_sites
from cbam.attach.variants import CONTROL
from cbam.data import ImageData
from cbam.models import build_model, match_parameters
from cbam.models.own import check_classifier, is_own
from cbam.train.config import NetworkConfig
from cbam.train.seeding import derive_seed, forked_rng


def build_network(
    config: NetworkConfig,
    data: ImageData,
    seed: int,
    attention: Mapping[str, Any] | None = None,
    *,
    widened_to: int | None = None,
) -> nn.Module:
    """Return a network as it is before training; the backbone's first weights depend on the seed alone.

    Args:
        config: Model, weights, sites and what attention replaces.
        data: Gives the number of classes and the image size.
        seed: Decides the initial weights.
        attention: Keywords of `cbam.attach` beside sites and input size; None: no attention.
        widened_to: Number of parameters to which the network is widened, as the control of a comparison.

    Raises:
        CBAMError: The model, its weights, the sites for the attention or a control of that size do not exist.
    """
    with forked_rng(derive_seed(seed, "backbone")):
        model = build_model(
            config.model,
            len(data.classes),
            in_channels=data.input_size[0],
            pretrained=config.pretrained,
            weights=config.weights,
        )
    if is_own(config.model):
        check_classifier(model, config.model, len(data.classes), data.input_size)
    if widened_to is not None:
        with forked_rng(derive_seed(seed, "control")):
            match_parameters(model, widened_to)
    if attention is not None:
        with forked_rng(derive_seed(seed, "attention")):
            attach(
                model,
                sites=split_sites(config.sites),
                input_size=data.input_size,
                replace=config.replace,
                **attention,
            )
    return model


def widening(given: int | None, attention: str, with_cbam: Callable[[], nn.Module]) -> int | None:
    """Return the number of parameters to which a control is widened; None for other networks.

    Args:
        given: The option.
        attention: Of the run.
        with_cbam: Returns the network that a control matches where no number is given.
    """
    if attention != CONTROL:
        return None
    return count_parameters(with_cbam()) if given is None else given


def count_parameters(model: nn.Module) -> int:
    """Return the number of scalars in the parameters.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())
