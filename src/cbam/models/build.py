"""One function from a name to a classifier."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from cbam.errors import CBAMError, MissingExtra, nearest
from cbam.models.cifar import CifarResNet
from cbam.models.files import load_file, widen_input

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
PAPER = {f"paper_resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101)}


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

    - `resnet20`, `resnet32`, `resnet44`, `resnet56`, `resnet110`: for small images, see `CifarResNet`.
    - `paper_resnet18`, `paper_resnet34`, `paper_resnet50`, `paper_resnet101`: torchvision's ResNet with the
      stride of a bottleneck on its first 1x1 convolution instead of the 3x3 one, as in He et al. (2015) and
      in the CBAM paper's cost tables. Same parameters and keys as torchvision's.
    - torchvision's classifiers, then timm's (with timm's tags: `resnet50.a1_in1k`).

    Args:
        name: see above.
        num_classes: width of the classifier.
        in_channels: channels of the images. Other than 3: the first convolution of pretrained weights is summed
            over RGB (1 channel; repeated and scaled for more), that of a fresh model is drawn anew.
        pretrained: fetch the library's weights; a classifier of another width starts anew.
        weights: a state dict on disk instead (.safetensors, .pth), see `load_file`.

    Raises:
        CBAMError: for an unknown name, impossible counts, weights that do not fit or cannot be fetched.
        MissingExtra: if the library that knows the name is not installed.

    >>> import torch
    >>> build_model("resnet20", 10, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if num_classes < 1 or in_channels < 1:
        raise CBAMError(
            "num_classes and in_channels must be at least 1, given "
            f"num_classes={num_classes}, in_channels={in_channels}."
        )
    if pretrained and weights is not None:
        raise CBAMError(
            f"give either pretrained or weights, not both; given pretrained and {str(weights)!r}."
        )
    library, bare = _resolve(name)
    if library in ("own", "paper") and pretrained:
        raise CBAMError(f"{name!r} comes without pretrained weights. Give a file: --weights FILE.")
    if library == "own":
        model: nn.Module = CifarResNet(CIFAR_DEPTHS[bare], num_classes, in_channels)
    elif library == "paper":
        model = _stride_first(_torchvision(PAPER[bare], num_classes, in_channels, pretrained=False))
    elif library == "torchvision":
        model = _torchvision(bare, num_classes, in_channels, pretrained=pretrained)
    else:
        model = _timm(bare, num_classes, in_channels, pretrained=pretrained)
    if weights is not None:
        load_file(model, weights)
    return model


def model_names() -> list[str]:
    """Return all names that `build_model` knows here, our own first.

    >>> model_names()[0]
    'resnet20'
    """
    own = [*CIFAR_DEPTHS, *PAPER]
    vision = [f"torchvision/{name}" for name in _torchvision_names()]
    return own + vision + [f"timm/{name}" for name in _timm_names()]


def _resolve(name: str) -> tuple[str, str]:
    prefix, slash, bare = name.partition("/")
    if slash and prefix not in ("torchvision", "timm"):
        raise CBAMError(f"unknown library {prefix!r} in model {name!r}. Valid: torchvision/NAME, timm/NAME.")
    if slash:
        known = _torchvision_names() if prefix == "torchvision" else _timm_names()
        if (bare.split(".")[0] if prefix == "timm" else bare) not in known:
            raise _unknown(name, [f"{prefix}/{other}" for other in known])
        return prefix, bare
    if name in CIFAR_DEPTHS:
        return "own", name
    if name in PAPER:
        return "paper", name
    if name in _torchvision_names():
        return "torchvision", name
    if name.split(".")[0] in _timm_names():
        return "timm", name
    raise _unknown(name, [*CIFAR_DEPTHS, *PAPER, *_torchvision_names(), *_timm_names()])


def _unknown(name: str, known: list[str]) -> CBAMError:
    close = nearest(name, dict.fromkeys(known))
    hint = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
    return CBAMError(
        f"unknown model {name!r}.{hint} Valid: {', '.join(CIFAR_DEPTHS)}, {', '.join(PAPER)}, and the classifiers "
        "of torchvision and timm; all of them: python -c 'import cbam.models; print(cbam.models.model_names())'"
    )


def _torchvision_names() -> list[str]:
    try:
        from torchvision import models
    except ImportError:
        raise MissingExtra("building a backbone", "compare", "torchvision") from None
    return models.list_models(module=models)


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        raise MissingExtra("building a backbone", "compare", "timm") from None
    return timm.list_models()


def _torchvision(name: str, num_classes: int, in_channels: int, *, pretrained: bool) -> nn.Module:
    from torchvision import models

    # Their extra classifiers would make the training output a tuple.
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
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
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


def _stride_first(model: nn.Module) -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model
