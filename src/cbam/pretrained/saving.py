"""Save a network with its attention in a folder that records how to build it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cbam.attach.fusion.with_epilogue import WithEpilogue
from cbam.checkpoints import tensors_file
from cbam.checkpoints.committing import unwrapped
from cbam.checkpoints.switches import as_header, switches_of
from cbam.errors import CBAMError
from cbam.files import write_atomically
from cbam.pretrained.config import FILE, INTERPOLATIONS, Config
from cbam.pretrained.describe import attention_only as small_part
from cbam.pretrained.describe import describe_attention, describe_backbone
from cbam.version import __version__


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    backbone: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    input_size: tuple[int, ...] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: str = "multiclass",
    resize: int | None = None,
    interpolation: str | None = None,
    attention_only: bool = False,
) -> Path:
    """Save a network with its attached attention: weights as safetensors, their description as config.json.

    The files are those of the Hugging Face hub, so `hf upload USER/NAME FOLDER` publishes the folder as it is.

    Args:
        model: with or without attached attention.
        folder: made if it is not there; each file is replaced whole.
        backbone: name by which `cbam.models.build_model` builds the network, such as "torchvision/resnet50"; it is
            checked. timm's networks know their own. Without a name, `from_pretrained` takes the network as `model`.
        class_names: of the outputs, in order.
        input_size: (C, H, W) of the images, (C, L) of signals, (C, D, H, W) of volumes.
        mean, std: by which they are normalised. input_size, mean and std default to those of timm's networks.
        task: "multiclass": one class of all, or "multilabel": each class for itself.
        resize: to how many pixels the short side of a picture is resized before the centre crop to `input_size`; by
            default to 8/7 of it, of grey pictures to all of it.
        interpolation: "bilinear" (default), "bicubic", "nearest" or "lanczos".
        attention_only: save gates, head and batch norms only: a small file for the same base network.

    Returns:
        The folder.

    Raises:
        CBAMError: the backbone's name builds another network; class names of another number than outputs; an input
            size, a mean or a std that no image can have. The folder is then unchanged.

    >>> import tempfile
    >>> from cbam import attach
    >>> from cbam.models import build_model
    >>> model = build_model("resnet20", 10)
    >>> _ = attach(model, input_size=(3, 32, 32))
    >>> with tempfile.TemporaryDirectory() as there:
    ...     sorted(path.name for path in save_pretrained(model, there, "resnet20").iterdir())
    ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CBAMError(f"{str(folder)!r} is a file; save_pretrained writes a folder.")
    config = describe_network(
        model, backbone, class_names=class_names, input_size=input_size, mean=mean, std=std, task=task, resize=resize,
        interpolation=interpolation, attention_only=attention_only,
    )  # fmt: skip
    write_network(folder, model, config)
    return folder


def describe_network(
    model: nn.Module,
    backbone: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    input_size: tuple[int, ...] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: str = "multiclass",
    resize: int | None = None,
    interpolation: str | None = None,
    attention_only: bool = False,
    widened_to: int | None = None,
) -> Config:
    """Return the config.json of a network, without the digest of its weights.

    Args:
        model, backbone, class_names, input_size, mean, std, task, resize, interpolation: as for `save_pretrained`.
        attention_only: likewise.
        widened_to: of a control the target of `cbam.models.match_parameters`.

    Raises:
        CBAMError: as `save_pretrained`.
    """
    inner = unwrapped(model)
    groups, built_by = describe_attention(inner), describe_backbone(inner, backbone, widened_to)
    if class_names is not None and built_by is not None and len(class_names) != built_by.num_classes:
        raise CBAMError(f"{len(class_names)} class names for {built_by.num_classes} outputs.")
    said: Any = getattr(inner, "pretrained_cfg", None) or {}
    if built_by is not None and (said.get("input_size") or [built_by.in_channels])[0] != built_by.in_channels:
        said = {}  # of the weights that timm publishes; this network was made for other images
    if input_size is None and said.get("input_size") and said.get("crop_pct"):
        resize = resize or int(said["input_size"][-1] / said["crop_pct"])  # as timm evaluates
        interpolation = interpolation or _timm_interpolation(said)
    return Config(
        content="attention" if attention_only else "full",
        sha256="",
        backbone=built_by,
        attention=groups,
        fuse_epilogue=any(isinstance(module, WithEpilogue) for module in inner.modules()),
        base_sha256=small_part(inner)[1] if attention_only else None,
        class_names=_row("class_names", class_names),
        input_size=_row("input_size", input_size, said.get("input_size")),
        mean=_row("mean", mean, said.get("mean")),
        std=_row("std", std, said.get("std")),
        task=task,
        resize=resize,
        interpolation=interpolation,
        versions={"torch-cbam": __version__, "torch": str(torch.__version__)},
    )


def write_network(folder: Path, model: nn.Module, config: Config) -> None:
    """Write the two files of a network; each is replaced whole.

    Args:
        folder: made if it is not there.
        model: with the weights.
        config: of `describe_network`.
    """
    inner = unwrapped(model)
    state = inner.state_dict() if config.content == "full" else small_part(inner)[0]
    weights = folder / config.weights
    tensors_file.write(
        weights, state, as_header(switches_of(inner))
    )  # only now, when everything that can be refused has been
    write_atomically(folder / FILE, replace(config, sha256=sha256(weights)).to_json())


def _timm_interpolation(said: Mapping[str, Any]) -> str | None:
    how = said.get("interpolation")
    return how if how in INTERPOLATIONS else None


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            total.update(chunk)
    return total.hexdigest()


def _row(what: str, given: Sequence[Any] | None, default: Any = None) -> tuple[Any, ...] | None:
    chosen = default if given is None else given
    if chosen is None:
        return None
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        example = {"input_size": "(3, 224, 224)", "class_names": '["cat", "dog"]'}.get(
            what, "(0.5, 0.5, 0.5)"
        )
        raise CBAMError(f"{what} expects a sequence such as {example}, got {chosen!r}.")
    return tuple(chosen)
