"""Our backbones in timm's factory: import this module, then `timm.create_model("paper_resnet50_cbam")`.

Each is registered plain, with `_se` and with `_cbam`; torchvision's ResNets and VGG-16 only with the suffixes, as timm
has its own networks of these names. timm reads a dot as the start of a weights tag, so widths are written without one:
`wrn18_150`, `wrn18_200`, `mobilenet_v1_070`. `build_model` builds the same networks without timm.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cbam.errors import CBAMError
from cbam.models.build import build_model
from cbam.models.classifier import MapClassifier
from cbam.models.registry import OWN, Own, split_attention, timm_names

try:
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import (
        generate_default_cfgs,
        is_model,
        model_entrypoint,
        register_model,
        resolve_pretrained_cfg,
    )
except ImportError:
    from cbam.errors import MissingExtra

    raise MissingExtra("registering the backbones with timm", "train", "timm") from None

# What timm's scripts pass to every network; ours have none of the other options.
_IGNORED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit")


def _settings(name: str) -> dict[str, Any]:
    """Return timm's config of a network: images, normalisation, first and last layer."""
    backbone, _ = split_attention(name)
    own = OWN.get(backbone, Own(build_model))  # type: ignore[arg-type]
    vgg = backbone == "vgg16"
    map_size = 7 if vgg else own.image // own.stride
    return {
        "url": "",
        "num_classes": own.classes,
        "input_size": (3, own.image, own.image),
        "pool_size": (map_size, map_size),
        "crop_pct": 0.875 if own.image == 224 else 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "features.0" if vgg else own.stem,
        "classifier": "classifier.6" if vgg else "fc",
    }


def _entrypoint(timm_name: str, name: str) -> Any:
    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        num_classes = options.pop("num_classes", _settings(name)["num_classes"])
        in_channels = options.pop("in_chans", 3)
        # timm's training script passes options that are off or at their defaults, too; these request nothing.
        asked = [
            k for k, v in options.items() if k not in _IGNORED and v and (k, v) != ("global_pool", "avg")
        ]
        if asked:
            raise CBAMError(
                f"{timm_name} takes num_classes and in_chans, given also {', '.join(map(repr, asked))}."
            )
        if pretrained:
            raise CBAMError(
                f"{timm_name} comes without pretrained weights. Give a file: checkpoint_path=FILE."
            )
        model: Any = build_model(name, num_classes or 1, in_channels=in_channels)
        config = resolve_pretrained_cfg(timm_name, *(options.get(key) for key in _IGNORED[:2]))
        model.pretrained_cfg = model.default_cfg = config.to_dict()
        if num_classes == 0:
            _without_classifier(model, timm_name)
        model.num_classes = num_classes
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = timm_name
    entrypoint.__doc__ = f"`cbam.models.build_model({name!r}, num_classes, in_channels=in_chans)`."
    return entrypoint


def _without_classifier(model: nn.Module, name: str) -> None:
    if not isinstance(model, MapClassifier):
        raise CBAMError(
            f"{name} is torchvision's network, which needs a classifier: num_classes is at least 1."
        )
    model.reset_classifier(0)


def _register() -> None:
    for timm_name, name in timm_names().items():
        if is_model(timm_name):
            if model_entrypoint(timm_name).__module__ == __name__:  # this module was loaded before
                continue
            raise CBAMError(f"timm has a network {timm_name!r} already: rename ours, {name!r}.")
        globals()[timm_name] = register_model(_entrypoint(timm_name, name))


default_cfgs = generate_default_cfgs({name: _settings(known) for name, known in timm_names().items()})
_register()
