"""What `attach` promises, checked on any model of a library: benchmarks/zoo.py runs it on all of them.

With random weights and a small image: sites are found; every output is the same bit for bit; one training step moves
the gates at every site; the old state dict loads; `detach` gives the model back.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import cbam
from cbam.attach import WithAttention
from cbam.attach.graph.probe import dims_of

LIBRARIES = ("torchvision", "timm", "smp", "transformers", "monai", "ultralytics")
# By the dimensions of a model's first convolution.
SIZES = {
    1: ((64,), (1024,)),
    2: ((64, 64), (128, 128), (224, 224), (299, 299)),
    3: ((32, 32, 32), (64, 64, 64), (16, 112, 112), (16, 224, 224)),
}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
STEPS = 6
LARGE, LARGE_WEIGHT = 150_000_000, 1_000_000  # parameters of a model, of one weight
# Name -> class and options of its configuration.
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-18": ("ResNet", BASIC),
    "resnet-50": ("ResNet", {}),
    "resnet-101": ("ResNet", {"depths": [3, 4, 23, 3]}),
    "regnet-x": ("RegNet", {"layer_type": "x"}),
    "regnet-y": ("RegNet", {"layer_type": "y"}),
    "convnext-tiny": ("ConvNext", {}),
    "convnextv2-tiny": ("ConvNextV2", {}),
}
# Decoders of smp, each with an encoder of residual blocks and one without.
DECODERS = (
    "DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "UnetPlusPlus"
)  # fmt: skip
ENCODERS = ("resnet18", "vgg11_bn")
WIDTHS = (8, 16, 32, 64)
_DYN = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3}
_UNET = {"channels": WIDTHS, "strides": (2, 2, 2)}
_SHORT = {"channels": WIDTHS[:3], "strides": (2, 2)}
_CLASSES = {"out_channels": None, "num_classes": 2}
# Name -> the dimensions that it is tried with, class, options for images, and other options for signals and volumes.
# All get `in_channels` and `out_channels`; None leaves an option out.
MONAI: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "unet": ("123", "UNet", _UNET, _SHORT),
    "unet-residual": ("123", "UNet", {**_UNET, "num_res_units": 2}, _SHORT),
    "basic-unet": ("123", "BasicUNet", {"features": (8, 8, 16, 32, 64, 8)}, {"features": (8, 8, 16, 16, 32, 8)}),
    "basic-unet-plus-plus": ("2", "BasicUNetPlusPlus", {"features": (8, 8, 16, 32, 64, 8)}, {}),
    "attention-unet": ("123", "AttentionUnet", _UNET, _SHORT),
    "segresnet": ("23", "SegResNet", {"init_filters": 8}, {}),
    "dynunet": ("23", "DynUNet", {**_DYN, "filters": WIDTHS}, {"filters": None}),
    "dynunet-residual": ("2", "DynUNet", {**_DYN, "filters": WIDTHS, "res_block": True}, {}),
    "dynunet-deep-supervision": (
        "2", "DynUNet", {**_DYN, "filters": WIDTHS, "deep_supervision": True, "deep_supr_num": 2}, {},
    ),
    "highresnet": ("2", "HighResNet", {}, {}),
    "resnet18": ("13", "resnet18", {"in_channels": None, "n_input_channels": 1, **_CLASSES}, {}),
    "seresnet50": ("13", "SEResNet50", _CLASSES, {}),
    "densenet121": ("13", "DenseNet121", {}, {}),
    "vnet": ("3", "VNet", {}, {}),
}  # fmt: skip
YOLO = ("yolov5n", "yolov8n", "yolo11n", "yolo11n-seg", "yolo11n-pose")


def models(library: str) -> Iterator[tuple[str, str]]:
    """Yield (library, name) of all models; whether they are convolutional is seen when they are built."""
    if library in ("torchvision", "all"):
        from torchvision.models import list_models

        yield from (("torchvision", name) for name in list_models() if not name.startswith("quantized"))
    if library in ("timm", "all"):
        import timm

        yield from (("timm", name) for name in timm.list_models())
    if library in ("smp", "all"):
        from segmentation_models_pytorch.encoders import get_encoder_names

        yield from (("smp", name) for name in get_encoder_names())
        # without strides these fit residual encoders only
        pairs = ((name, encoder) for name in DECODERS for encoder in ENCODERS)
        dilated = ("DeepLabV3", "DeepLabV3Plus", "PAN")
        yield from (("smp", f"{n} {e}") for n, e in pairs if not (e == "vgg11_bn" and n in dilated))
    if library in ("transformers", "all"):
        yield from (("transformers", name) for name in TRANSFORMERS)
    if library in ("monai", "all"):
        yield from (("monai", f"{name}-{n}d") for name, (dims, *_) in MONAI.items() for n in dims)
    if library in ("ultralytics", "all"):
        yield from (("ultralytics", name) for name in YOLO)


def check(library: str, name: str) -> dict[str, Any]:
    """Return what attaching to one model gives."""
    torch.set_num_threads(1)
    with suppress(Exception), torch.device("meta"):  # not every model can be built without memory
        shape_only = build(library, name)
        if not is_convolutional(shape_only):
            return {"family": type(shape_only).__name__, "convolutional": False, "reason": ""}
    torch.manual_seed(0)
    model = build(library, name).eval()
    row: dict[str, Any] = {"family": type(model).__name__, "convolutional": is_convolutional(model)}
    if not row["convolutional"]:
        return {**row, "reason": ""}
    inputs, before = first_that_runs(model)
    old = copied_state(model)
    try:
        attachment = cbam.attach(model, example_input=inputs)
    except cbam.CBAMError as error:
        if "embeds patches" not in str(error):
            raise
        return {**row, "convolutional": False, "reason": ""}  # a transformer, whatever convolves inside
    row.update(sites=len(attachment.sites), notes=list(attachment.notes), size=size_of(inputs))

    def failed(reason: str) -> dict[str, Any]:
        return {**row, "reason": reason}

    if not same(outputs(model, inputs), before):
        return failed("the output is not the same")
    still = unmoved(model, inputs)
    if still:
        count = f"{len(still)} of {row['sites']}"
        return failed(f"a training step leaves {count} gates as they were, such as {still[0]}")
    loaded = model.load_state_dict(old, strict=False)
    if loaded.unexpected_keys or any(".cbam." not in key for key in loaded.missing_keys):
        return failed("the old state dict does not fit")
    cbam.detach(model)
    if list(model.state_dict()) != list(old) or not same(outputs(model.eval(), inputs), before):
        return failed("detach does not give the model back")
    return {**row, "reason": ""}


def build(library: str, name: str) -> Any:
    """Return the model with random weights; detectors for small images."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    if library == "smp":
        import segmentation_models_pytorch

        *decoder, encoder = name.split(" ")
        kind = getattr(segmentation_models_pytorch, *decoder or ("Unet",))
        return kind(encoder, encoder_weights=None, classes=2)
    if library == "transformers":
        import transformers

        kind, given = TRANSFORMERS[name]
        config = getattr(transformers, f"{kind}Config")(**given)
        return getattr(transformers, f"{kind}ForImageClassification")(config)
    if library == "monai":
        import monai.networks.nets

        name, _, dims = name.rpartition("-")
        _, kind, given, other = MONAI[name]
        channels = {"in_channels": 3 if dims == "2d" else 1, "out_channels": 2}
        chosen = {**channels, **given, **({} if dims == "2d" else other)}
        chosen = {key: value for key, value in chosen.items() if value is not None}
        return getattr(monai.networks.nets, kind)(spatial_dims=int(dims[0]), **chosen)
    if library == "ultralytics":
        # Read when it is imported: no settings file in the home directory, no look at the network.
        os.environ |= {
            "YOLO_CONFIG_DIR": tempfile.gettempdir(),
            "YOLO_OFFLINE": "True",
            "YOLO_AUTOINSTALL": "False",
        }
        import ultralytics

        return ultralytics.YOLO(f"{name}.yaml").model
    from torchvision.models import get_model, get_model_builder

    options: dict[str, Any] = {"weights": None}
    builder = get_model_builder(name)
    if "detection" in builder.__module__ or "segmentation" in builder.__module__:
        options["weights_backbone"] = None
    if "rcnn" in name or "retinanet" in name or "fcos" in name:
        options.update(min_size=128, max_size=160)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return get_model(name, **options)


def is_convolutional(model: Any) -> bool:
    """Return whether the network convolves beyond a stem of patches: three kernels or more that overlap."""
    kernels = [m for m in model.modules() if isinstance(m, CONVOLUTIONS) and max(m.kernel_size) > 1]
    return sum(m.kernel_size != m.stride for m in kernels) >= 3


def first_that_runs(model: Any) -> tuple[tuple[Any, ...], Any]:
    """Return inputs of the smallest size that the model takes, and its outputs."""
    config = getattr(model, "default_cfg", None) or {}
    # The second classifier of the Inceptions, used in training, needs the whole map.
    fixed = config.get("fixed_input_size") or type(model).__name__ in ("Inception3", "InceptionV3")
    dims, first = dims_of(model)
    sizes = [] if fixed else list(SIZES[dims])
    if dims == 2:
        sizes.append((config.get("input_size", (3, 299, 299))[-1],) * 2)
    problem: Exception | None = None
    for size in sizes:
        channels = config.get("input_size", (3,))[0] if dims == 2 else first.in_channels
        images = torch.rand(2, channels, *size)
        inputs = (list(images),) if is_detector(model) else (images,)
        if "optical_flow" in type(model).__module__:
            inputs = (images, images.flip(-1))
        try:
            return inputs, outputs(model, inputs)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            problem = error
    raise RuntimeError(f"runs at no size: {problem}")


def is_detector(model: Any) -> bool:
    """Return whether the model takes a list of images and targets."""
    return ".detection." in type(model).__module__


def size_of(inputs: tuple[Any, ...]) -> int:
    """Return the images' height."""
    return int(inputs[0][0].shape[-1])


def outputs(model: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Return all tensors that the model returns."""
    with torch.no_grad():
        return [t for t in tree_leaves(model(*inputs)) if isinstance(t, torch.Tensor)]


def same(got: list[Any], expected: list[Any]) -> bool:
    """Return whether the tensors are equal bit for bit, NaN being NaN."""
    return len(got) == len(expected) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(7.0, 8.0, 9.0), b.nan_to_num(7.0, 8.0, 9.0))
        for a, b in zip(got, expected, strict=True)
    )


def large_weights(model: Any) -> list[Any]:
    """Return the weights that are neither trained nor copied: none, but in models of very many parameters."""
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return []
    return [p for p in model.parameters() if p.numel() > LARGE_WEIGHT]


def copied_state(model: Any) -> Any:
    """Return the state dict with its metadata, since some models look for their version, as a copy."""
    state = model.state_dict()
    shared = {p.data_ptr() for p in large_weights(model)}
    for key, value in state.items():
        if getattr(value, "data_ptr", None) and value.data_ptr() not in shared:
            state[key] = value.clone()
    return state


def unmoved(model: Any, inputs: tuple[Any, ...]) -> list[str]:
    """Train one step, or more where stochastic depth passed sites over; return the sites that have not moved."""
    model.train()
    sites = {name: module.cbam for name, module in model.named_modules() if isinstance(module, WithAttention)}
    start = {name: [p.detach().clone() for p in gate.parameters()] for name, gate in sites.items()}
    # Adam moves what has a gradient, however small that is behind random weights. Gradients and moments of a billion
    # parameters do not fit into a laptop: in a large model the large weights are frozen.
    for parameter in large_weights(model):
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    arguments = inputs
    if is_detector(model):
        side = size_of(inputs)
        target = {"boxes": torch.tensor([[4.0, 4.0, side / 2, side / 2]]), "labels": torch.tensor([1])}
        if "Mask" in type(model).__name__:
            target["masks"] = torch.ones(1, side, side, dtype=torch.uint8)
        if "Keypoint" in type(model).__name__:
            target["keypoints"] = torch.ones(1, 17, 3) * side / 4
        arguments = (*inputs, [target, target])
    still = list(sites)
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = [t for t in tree_leaves(model(*arguments)) if isinstance(t, torch.Tensor) and t.requires_grad]
        sum((t.float() * torch.rand(t.shape)).sum() for t in found).backward()
        optimizer.step()
        still = [
            name
            for name in still
            if all(torch.equal(p, old) for p, old in zip(sites[name].parameters(), start[name], strict=True))
        ]
        if not still:
            break
    return still
