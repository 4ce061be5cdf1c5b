"""Open any saved form of a network: a run, its checkpoints, a comparison's cell, a folder, a file, a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cbam.checkpoints import load_weights
from cbam.checkpoints.committing import unwrapped
from cbam.errors import CBAMError
from cbam.models import build_model, made_for
from cbam.models.files import first_convolution
from cbam.models.own import is_own
from cbam.pretrained.config import FILE, Config, read_config
from cbam.pretrained.folders import build, load_into
from cbam.pretrained.hub import fetch
from cbam.pretrained.places import FORMS, Place, find_network
from cbam.pretrained.published import is_published_name, open_published
from cbam.pretrained.saving import describe_network, sha256
from cbam.pretrained.widths import widths_in

if TYPE_CHECKING:
    from cbam.data.inputs import InputForm


@dataclass(frozen=True)
class OpenedNetwork:
    """A trained network, and all that is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU unless it was given elsewhere.
        config: as saved with it: attention, backbone, classes, images.
        title: a short name, such as that of the run.
        source: what was opened, in words.
        run: the folder of the run that it is of, where there is one.
    """

    model: nn.Module
    config: Config
    title: str
    source: str
    run: Path | None = None

    @property
    def task(self) -> str:
        """What the outputs are: "multiclass", one class of all, or "multilabel", each class for itself."""
        return self.config.task

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs: as saved, ImageNet's for 1,000 outputs, or numbers."""
        from cbam.data.inputs import class_names_of, outputs_of

        names = self.config.class_names
        return class_names_of(
            self.model, names, (outputs_of(self.model) or 0) if names is None else len(names)
        )

    @cached_property
    def preprocessing(self) -> InputForm:
        """How a picture becomes its input: channels, resize and crop, interpolation, mean, standard deviation.

        Raises:
            CBAMError: it takes no pictures.
        """
        from cbam.data.inputs import input_form

        return input_form(self.model)[0]

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return scores (N, K) as probabilities: softmax, or sigmoid where several classes may be true."""
        scores = scores.float()
        return scores.sigmoid() if self.task == "multilabel" else scores.softmax(-1)


def open_network(
    source: str | Path,
    model: nn.Module | str | None = None,
    *,
    variant: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    hub: Mapping[str, Any] | None = None,
) -> OpenedNetwork:
    """Open a trained network in any form in which it is saved.

    Args:
        source: a run of `cbam train` (its best weights), its `best/`, `final/` or `checkpoints/step-N/`; a run of
            `cbam compare` with `variant`, or one of its cells; a folder of `cbam.save_pretrained`; a file of weights in
            one of these, or anywhere with `model`; "user/name" on the Hugging Face hub; the name of a network of
            torchvision or timm with published weights.
        model: the network, or its name for `cbam.models.build_model`, where the source does not say it.
        variant: of a comparison, such as "cbam" (its first seed) or "cbam-seed2".
        num_classes: of a network given by name; None: as in the file.
        class_names, image_size, mean, std: instead of those saved with it.
        hub: options of huggingface_hub.

    Raises:
        CBAMError: there is no network, or it does not fit; the message names the neighbour that has one.
        MissingExtra: a name on the hub, and huggingface_hub is not installed.

    >>> import tempfile
    >>> from cbam import save_pretrained
    >>> with tempfile.TemporaryDirectory() as there:
    ...     folder = save_pretrained(build_model("resnet20", 2), there, "resnet20", class_names=["a", "b"])
    ...     opened = open_network(folder)
    >>> opened.class_names, opened.task, opened.preprocessing.size
    (('a', 'b'), 'multiclass', 32)
    """
    if not isinstance(source, (str, Path)):
        raise CBAMError(f"expected {FORMS}, or a name; got {source!r:.80}.")
    named = num_classes or (len(class_names) if class_names is not None else None)
    place = find_network(source, variant)
    if place is None and model is None and is_published_name(str(source)):
        network, config = open_published(str(source))
        place_title, said, run = str(source), f"published weights of {source}", None
    else:
        place = place or _from_hub(str(source), hub or {})
        network, config = _open(place, model, named)
        place_title, said, run = place.title, str(place.weights), place.run
    config = _with_given(config, network, class_names, image_size, mean, std)
    network.eval()
    network.cbam_config = config  # type: ignore[assignment]
    return OpenedNetwork(network, config, place_title, said, run)


def _open(place: Place, model: nn.Module | str | None, num_classes: int | None) -> tuple[nn.Module, Config]:
    if place.config is not None:
        config = read_config(place.config)
        _check_weights(place, config)
        if model is None:
            return build(config, place.weights), config
        if isinstance(model, str):
            said = config.backbone
            outputs = num_classes or (said.num_classes if said else len(config.class_names or ()))
            channels = said.in_channels if said else (config.input_size or (3,))[0]
            model = build_model(
                model, outputs or widths_in(place.weights, model)[0], in_channels=int(channels)
            )
        load_into(unwrapped(model), config, place.weights)
        return model, config
    if place.run is not None and not isinstance(model, nn.Module):
        from cbam.pretrained.older import rebuild

        given = None if model is None else _build_named(model, place.weights, num_classes)
        network, config = rebuild(place, given)
        load_into(network, config, place.weights)
        return network, config
    if model is None:
        raise CBAMError(
            f"{place.weights} is a file of weights, which does not say what network it is of. Name it: --model NAME"
            " (in Python model=...), such as resnet20_cbam, timm/resnet50 or my_package.my_net:build"
        )
    if isinstance(model, nn.Module):
        load_weights(model, place.weights)
        return model, Config("full", "", None, ())
    network = _build_named(model, place.weights, num_classes)
    load_weights(network, place.weights)
    return network, _describe_named(network, model)


def _build_named(name: str, weights: Path, num_classes: int | None) -> nn.Module:
    """Return the named network with as many classes and input channels as the weights are for."""
    outputs, channels = widths_in(weights, name)
    return build_model(name, num_classes or outputs, in_channels=channels)


def _describe_named(network: nn.Module, name: str) -> Config:
    """Return what a config would say of a network that was given by name: timm's know their images."""
    timm = bool((getattr(network, "pretrained_cfg", None) or {}).get("input_size"))
    first = first_convolution(network)
    known = not timm and not is_own(name) and first is not None
    size = (first[1].in_channels, *made_for(name)[1][1:]) if known and first is not None else None
    if size is None:
        return describe_network(network, name)
    from cbam.data.prepared import make_resize  # needs torchvision, which a network alone does not

    return describe_network(network, name, input_size=size, resize=make_resize(size[-1], None))


def _check_weights(place: Place, config: Config) -> None:
    if not place.weights.is_file():
        raise CBAMError(f"{str(place.config)!r} holds no {config.weights}.")
    if place.weights.name == config.weights and sha256(place.weights) != config.sha256:
        raise CBAMError(
            f"{str(place.weights)!r} is not the file that {FILE} was written for: damaged, or half copied."
        )


def _from_hub(name: str, options: Mapping[str, Any]) -> Place:
    folder = fetch(name, dict(options))
    config = read_config(folder)
    return Place(folder / config.weights, folder, None, name.rpartition("/")[2])


def _with_given(
    config: Config,
    model: nn.Module,
    class_names: Sequence[str] | None,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Config:
    """Return a config with what the caller says instead of what was saved."""
    if class_names is not None:
        config = replace(config, class_names=tuple(map(str, class_names)))
    if image_size is None and mean is None and std is None:
        return config
    from cbam.data.inputs import input_form

    model.cbam_config = config  # type: ignore[assignment]
    form, _ = input_form(model, image_size, mean, std)
    return replace(
        config,
        input_size=(form.channels, form.size, form.size),
        mean=form.mean,
        std=form.std,
        resize=form.resize,
    )


def from_pretrained(
    source: str | Path,
    model: nn.Module | str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Return a trained network with its attention, in eval mode.

    Its `cbam_config` holds class names, input size, mean and std. A folder needs no network and no hub library; nothing
    from the files is executed.

    Args:
        source: a folder of `cbam.save_pretrained`, a run of `cbam train` or one of its checkpoints, a run of
            `cbam compare` with `variant` or one of its cells, "user/name" on the Hugging Face hub, ...: whatever
            `cbam.load_run` opens.
        model: the network to load into, in place, or its name; needed where the folder does not name a backbone, and
            for attention-only files, which need the base network with the same other weights. Attention that it lacks
            is attached.
        variant: of a comparison, such as "cbam".
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
    options = {
        "revision": revision, "cache_dir": cache_dir, "token": token,
        "force_download": force_download, "local_files_only": local_files_only,
    }  # fmt: skip
    return open_network(source, model, variant=variant, hub=options).model
