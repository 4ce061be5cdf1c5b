"""Networks with the weights that torchvision and timm publish, and what their publishers say of their images."""

from __future__ import annotations

from typing import Any

from torch import nn

from cbam.errors import CBAMError
from cbam.models import build_model, model_names
from cbam.models.own import is_own
from cbam.models.registry import OWN, split_attention
from cbam.pretrained.config import Config
from cbam.pretrained.saving import describe_network


def is_published_name(name: str) -> bool:
    """Return whether a name is that of a network rather than of a folder, a file or a repository on the hub.

    >>> is_published_name("torchvision/resnet18"), is_published_name("somebody/network")
    (True, False)
    """
    library = name.partition("/")[0]
    if "/" in name:
        return library in ("torchvision", "timm")
    return True


def open_published(name: str) -> tuple[nn.Module, Config]:
    """Return a network with its library's weights, and what a config.json of it would say.

    Args:
        name: as for `cbam.models.build_model`.

    Raises:
        CBAMError: no such network, one without published weights, or they cannot be fetched.
    """
    bare, attention = split_attention(name)
    if is_own(name) or bare in OWN or attention is not None:
        raise CBAMError(
            f"{name} is a network without published weights. Give a file of them: FILE --model {name}"
            f" (in Python model={name!r}), or a run of cbam train."
        )
    said = _torchvision(name)
    if said is None:
        model = build_model(name, _timm_classes(name), pretrained=True)
        return model, describe_network(model)
    model = build_model(name, len(said["class_names"]), pretrained=True)
    return model, describe_network(model, name, **said)


def _torchvision(name: str) -> dict[str, Any] | None:
    """Return classes and images of torchvision's default weights; None for a network of timm's."""
    from torchvision import models

    library, slash, bare = name.rpartition("/")
    if (slash and library != "torchvision") or bare not in models.list_models(module=models):
        if not slash and name not in {other.rpartition("/")[2] for other in model_names()}:
            build_model(name, 1)  # raises: it knows the nearest names
        return None
    weights: Any = models.get_model_weights(bare).DEFAULT
    images = weights.transforms()
    return {
        "class_names": tuple(weights.meta["categories"]),
        "input_size": (3, images.crop_size[0], images.crop_size[0]),
        "mean": tuple(images.mean),
        "std": tuple(images.std),
        "resize": images.resize_size[0],
        "interpolation": images.interpolation.value,
    }


def _timm_classes(name: str) -> int:
    import timm

    said = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    return int(said.num_classes) if said is not None and said.num_classes else 1000
