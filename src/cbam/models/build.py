"""Build a classifier by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from cbam.attach import attach
from cbam.errors import CBAMError, MissingExtra, nearest
from cbam.models.classifier import check_counts, last_layer
from cbam.models.files import first_convolution, load_backbone, widen_input
from cbam.models.own import build_own, is_own
from cbam.models.registry import OWN, split_attention, timm_names
from cbam.nn.registry import attention_kind, kind_names


def build_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: str | Path | None = None,
) -> nn.Module:
    """Build a classifier by name.

    A name is looked up in this order; `torchvision/NAME` and `timm/NAME` choose the library.

    - `resnet20`, `resnet32`, `resnet44`, `resnet56`, `resnet110`, and `resnet164`, `resnet1001` with the norms in
      front: for small images, see `CifarResNet` and `PreActivationResNet`.
    - `paper_resnet18`, `34`, `50`, `101`, `152`, `200`, `paper_resnext50_32x4d`, `paper_resnext101_32x4d`,
      `wrn18_1.5`, `wrn18_2.0`: the CBAM paper's ResNets, see `PaperResNet`. The stride of a bottleneck is on its
      first 1x1 convolution; parameters and keys are those of torchvision's.
    - `mobilenet_v1`, `mobilenet_v1_0.7`: see `MobileNetV1`.
    - torchvision's classifiers, then timm's (with timm's tags: `resnet50.a1_in1k`).
    - `my_package.my_net:build`, a callable of your own, see `cbam.models.own`.

    The suffix `_se`, `_cbam` or another registered kind of attention adds that attention as in the paper's networks:
    the preset of the authors' code with fresh gates, at the end of every residual branch, in MobileNet after every
    convolution.

    Args:
        name: see above.
        num_classes: width of the classifier.
        in_channels: channels of the images. If not 3, the first convolution of pretrained weights is summed over RGB
            (1 channel) or repeated and scaled (more), that of a new model is initialised.
        pretrained: download the library's weights; a classifier of another width is newly initialised.
        weights: a state dict on disk instead (.safetensors, .pth), loaded as by `cbam.load_weights`; a classifier of
            another width is left out, and the first convolution adapted to other input channels.

    Raises:
        CBAMError: for an unknown name, impossible counts, weights that do not fit or cannot be fetched.
        MissingExtra: if the library that knows the name is not installed.

    >>> import torch
    >>> build_model("resnet20", 10, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    check_counts(num_classes, in_channels)
    if pretrained and weights is not None:
        raise CBAMError(
            f"give either pretrained or weights, not both; given pretrained and {str(weights)!r}."
        )
    library, bare, attention = ("yours", name, None) if is_own(name) else _resolve(name)
    if pretrained and attention is not None:
        raise CBAMError(
            f"{name!r} has fresh gates, which would spoil pretrained weights. Build {bare!r} with pretrained weights "
            f"and type cbam.attach(model, {attention!r}): that leaves its output unchanged."
        )
    if library == "yours" and pretrained:
        raise CBAMError(f"{name!r} is your own: let it load its weights, or give a file: --weights FILE.")
    if library == "own" and pretrained:
        raise CBAMError(f"{name!r} comes without pretrained weights. Give a file: --weights FILE.")
    if library == "yours":
        model = build_own(bare, num_classes, in_channels)
    elif library == "own":
        model = OWN[bare].build(num_classes, in_channels)
    elif library == "torchvision":
        model = _torchvision(bare, num_classes, in_channels, pretrained=pretrained)
    else:
        model = _timm(bare, num_classes, in_channels, pretrained=pretrained)
    if attention is not None:
        _attach(model, bare, attention)
    if weights is not None and load_backbone(model, weights).kept:
        raise CBAMError(
            f"the file {str(weights)!r} has no attention, and the fresh gates of {name!r} would spoil its weights. "
            f"Build {bare!r} with it and type cbam.attach(model, {attention!r}): that leaves its output unchanged."
        )
    return model


def model_names() -> list[str]:
    """Return all names that `build_model` knows here, our own first.

    >>> model_names()[0]
    'resnet20'
    """
    vision = [f"torchvision/{name}" for name in _torchvision_names()]
    return _own_names() + vision + [f"timm/{name}" for name in _timm_names()]


def _resolve(name: str) -> tuple[str, str, str | None]:
    """Return library ("own", "torchvision", "timm"), the backbone's name there, and the attention in it."""
    prefix, slash, bare = name.partition("/")
    if slash and prefix not in ("torchvision", "timm"):
        raise CBAMError(f"unknown library {prefix!r} in model {name!r}. Valid: torchvision/NAME, timm/NAME.")
    for plain, attention in ((bare if slash else name, None), split_attention(bare if slash else name)):
        library = _library_of(plain, prefix if slash else None)
        if library is not None:
            return library, plain, attention
    if prefix == "timm" and slash:
        ours = timm_names().get(bare)
        if ours is not None:
            return _resolve(ours)
    if slash:
        known = _torchvision_names() if prefix == "torchvision" else _timm_names()
        raise _unknown(name, [f"{prefix}/{other}" for other in known])
    raise _unknown(name, [*_own_names(), *_torchvision_names(), *_timm_names()])


def _library_of(name: str, library: str | None) -> str | None:
    """Return which library knows the name, of all or of the given one."""
    if library is None and name in OWN:
        return "own"
    if library != "timm" and name in _torchvision_names():
        return "torchvision"
    return "timm" if library != "torchvision" and name.split(".")[0] in _timm_names() else None


def _attach(model: nn.Module, name: str, attention: str) -> None:
    own = OWN.get(name)
    preset: dict[str, Any] = {"preset": "official"} if attention_kind(attention).takes("preset") else {}
    if own is None:
        attach(model, attention, init="paper", **preset)
        return
    found = first_convolution(model)
    assert found is not None
    # A quarter of ImageNet's area is enough to find the sites.
    size = (found[1].in_channels, min(own.image, 64), min(own.image, 64))
    attach(model, attention, own.sites, input_size=size, init="paper", **preset)


def _unknown(name: str, known: list[str]) -> CBAMError:
    backbone, attention = split_attention(name)
    if name.rpartition("_")[0] in OWN:
        backbone, attention = name, None  # it is the suffix that is misspelt
    close = nearest(backbone, dict.fromkeys(known))
    if attention is not None:
        close = [other if other.endswith(f"_{attention}") else f"{other}_{attention}" for other in close]
    hint = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
    return CBAMError(
        f"unknown model {name!r}.{hint} Valid: {', '.join(OWN)}, and the classifiers of torchvision and timm, each "
        f"also with the suffix {' or '.join(f'_{kind}' for kind in kind_names())}, or your own as my_net:build; to "
        "list them: "
        "python -c 'import cbam.models; print(cbam.models.model_names())'"
    )


def _own_names() -> list[str]:
    return [*OWN, *(f"{name}_{suffix}" for name in OWN for suffix in kind_names())]


def _torchvision_names() -> list[str]:
    try:
        from torchvision import models
    except ImportError:
        raise MissingExtra("building a backbone", "train", "torchvision") from None
    return models.list_models(module=models)


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        raise MissingExtra("building a backbone", "train", "timm") from None
    ours = set(timm.list_models(module="timm_registry"))
    return [name for name in timm.list_models() if name not in ours]


def _torchvision(name: str, num_classes: int, in_channels: int, *, pretrained: bool) -> nn.Module:
    from torchvision import models

    # With their auxiliary classifiers the output in training mode would be a tuple.
    options: dict[str, Any] = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    if not pretrained:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The default weight initialization of", FutureWarning)
            model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    else:
        try:
            model = models.get_model(name, weights="DEFAULT", **options)
        except Exception as error:
            raise _cannot_fetch(f"torchvision/{name}", error) from error
        _renew_classifier(model, num_classes)
    if in_channels != 3:
        widen_input(model, in_channels, keep=pretrained)
    return model


def _timm(name: str, num_classes: int, in_channels: int, *, pretrained: bool) -> nn.Module:
    import timm

    architecture, dot, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*")
    if dot and name not in tags:
        raise CBAMError(f"timm's {architecture} has no weights {tag!r}. Valid: {', '.join(tags) or 'none'}.")
    if not pretrained:
        return timm.create_model(architecture, num_classes=num_classes, in_chans=in_channels)
    if not tags:
        raise CBAMError(f"timm has no pretrained weights for {architecture!r}. Give a file: --weights FILE.")
    try:
        return timm.create_model(name, pretrained=True, num_classes=num_classes, in_chans=in_channels)
    except Exception as error:
        raise _cannot_fetch(f"timm/{name}", error) from error


def _cannot_fetch(name: str, error: Exception) -> CBAMError:
    reason = str(error).strip().splitlines()
    return CBAMError(
        f"could not fetch the pretrained weights of {name} ({type(error).__name__}: "
        f"{reason[0] if reason else 'no reason given'}). Without a network, give them as a file: --weights FILE."
    )


def _renew_classifier(model: nn.Module, num_classes: int) -> None:
    found = last_layer(model)
    assert found is not None
    name, last = found
    new: nn.Module
    if isinstance(last, nn.Linear):
        if last.out_features == num_classes:
            return
        new = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    else:
        if last.out_channels == num_classes:
            return
        new = nn.Conv2d(last.in_channels, num_classes, 1)
    model.set_submodule(name, new)
