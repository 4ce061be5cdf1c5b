"""Load a network with its attention from a folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cbam.attach import detach
from cbam.attach.wrapper import WithAttention
from cbam.checkpoints import load_weights
from cbam.checkpoints.committing import unwrapped
from cbam.checkpoints.reading import look_at
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.pretrained.config import FILE, Config, read_config
from cbam.pretrained.describe import attention_only, build_on_meta
from cbam.pretrained.hub import fetch
from cbam.pretrained.restore import restore
from cbam.pretrained.saving import sha256


def from_pretrained(
    source: str | Path,
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Return the network that `save_pretrained` saved, with its attention, in eval mode.

    Its `cbam_config` holds class names, input size, mean and std. A folder needs no network and no hub library; nothing
    from the files is executed.

    Args:
        source: a folder, or "user/name" on the Hugging Face hub.
        model: the network to load into, in place; needed where the folder does not name a backbone, and for
            attention-only files, which need the base network with the same other weights. Attention that it lacks is
            attached.
        revision, cache_dir, token, force_download, local_files_only: as in huggingface_hub's `from_pretrained`.

    Raises:
        CBAMError: files that are missing, damaged or of another network; a model given in `model` is then unchanged.
        MissingExtra: a name on the hub, and huggingface_hub is not installed.

    >>> import tempfile
    >>> from cbam import attach, save_pretrained
    >>> net = build_model("resnet20", 10)
    >>> _ = attach(net, input_size=(3, 32, 32))
    >>> with tempfile.TemporaryDirectory() as there:
    ...     same = from_pretrained(save_pretrained(net, there, "resnet20", class_names=list("0123456789")))
    >>> same.cbam_config.class_names[3]
    '3'
    """
    if not isinstance(source, (str, Path)):
        raise CBAMError(f"from_pretrained expects a folder, or 'user/name' on the hub, got {source!r:.80}.")
    options = {
        "revision": revision, "cache_dir": cache_dir, "token": token,
        "force_download": force_download, "local_files_only": local_files_only,
    }  # fmt: skip
    folder = Path(source) if Path(source).is_dir() else fetch(str(source), options)
    config = read_config(folder)
    weights = folder / config.weights
    if not weights.is_file():
        raise CBAMError(f"{str(folder)!r} holds no {config.weights}.")
    if sha256(weights) != config.sha256:
        raise CBAMError(
            f"{str(weights)!r} is not the file that {FILE} was written for: damaged, or half copied."
        )
    if model is None:
        model = _build(config, weights)
    else:
        _load_into(unwrapped(model), config, weights)
    model.eval()
    model.cbam_config = config  # type: ignore[assignment]
    return model


def _build(config: Config, weights: Path) -> nn.Module:
    if config.backbone is None or config.content == "attention":
        what = "gates, head and batch norms only" if config.content == "attention" else "no backbone's name"
        raise CBAMError(
            f"{str(weights.parent)!r} holds {what}. Pass the network: from_pretrained(source, model)."
        )
    shape = build_on_meta(config.backbone)
    restore(shape, config.attention)
    _compare(shape.state_dict(), weights)  # before the real network takes memory
    backbone = config.backbone
    model = build_model(backbone.name, backbone.num_classes, in_channels=backbone.in_channels)
    _load_into(model, config, weights)
    return model


def _compare(state: Mapping[str, Tensor], weights: Path) -> None:
    """Refuse a file that lacks a tensor, has one too many, or one of another shape."""
    there = look_at(weights).tree
    optional = ("gate_scale", "fan_in", "num_batches_tracked")
    for key in [*state, *there]:
        if key in state and key in there and there[key].shape == state[key].shape:
            continue
        if key.endswith(optional) and not (key in state and key in there):
            continue
        given = f"is {tuple(there[key].shape)}" if key in there else "is missing"
        needed = f"needs {tuple(state[key].shape)}" if key in state else "is not part of the network"
        raise CBAMError(f"{str(weights)!r} does not fit its {FILE}: {key} {given}, {needed}.")


def _load_into(model: nn.Module, config: Config, weights: Path) -> None:
    bare = not any(isinstance(module, WithAttention) for module in model.modules())
    if bare:
        restore(model, config.attention, config.fuse_epilogue)
    try:
        state = model.state_dict()
        if config.content == "attention":
            state, rest = attention_only(model)
            if rest != config.base_sha256:
                raise CBAMError(
                    "the network's other weights are not those of the base that this attention was trained on. Load"
                    " the same pretrained weights first; if they were trained too, save the whole network instead."
                )
        _compare(state, weights)
        load_weights(model, weights, partial=config.content == "attention")
    except BaseException:
        if bare and config.attention:
            detach(model)
        raise
