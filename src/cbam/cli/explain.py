"""`cbam explain`: where a network looks in images, as an offline page, pictures and numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cbam.checkpoints import load_weights
from cbam.cli.parsing import read_options
from cbam.errors import CBAMError
from cbam.formatting import columns
from cbam.models import build_model, made_for
from cbam.nn import AttentionModule
from cbam.pretrained import from_pretrained
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from torch import nn

    from cbam.explain import Explanation

DESCRIPTION = """Show where a network looks: class activation maps, the gates of its attention, and what it says, for
one network or several side by side, as a page that needs no network, PNG pictures and .npz files.

Examples: cbam explain cat.png --run runs/train-digits-resnet20-cbam --compare off;
  cbam explain cat.png dog.png --model timm/tf_efficientnet_lite0 --weights lite0.safetensors"""
OFF = "off"


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which images, which networks, and what to draw."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Pictures: JPEG, PNG, WebP, TIFF, GIF, BMP or PPM."""
    run: str | None = None
    """A run of `cbam train` (its best weights), a folder of cbam.save_pretrained, or user/name on the hub."""
    model: str | None = None
    """Instead of --run, a backbone: paper_resnet50_cbam, timm/tf_efficientnet_lite0, ...; needs --weights."""
    weights: Path | None = None
    """Its weights: a .safetensors, .pth, .pt or .bin file."""
    num_classes: int | None = None
    """Width of the classifier of --model. None: as many as there are --class-names, else what the model is made for."""
    compare: tuple[str, ...] = ()
    """Further networks, side by side with the first one: a folder as for --run, a file with other weights for
    --model, or off: the first network with its attention switched off."""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class to explain, by name or number. None: what the first network predicts for each image."""
    class_names: Path | None = None
    """A text file with a class name in each line, or JSON. None: those saved with the network, ImageNet's for 1000."""
    method: str = "gradcam"
    """gradcam, gradcam++, smoothgradcam++, xgradcam, layercam, finercam, scorecam, sscam, iscam or cam."""
    layer: str | None = None
    """The module whose output the map reads, such as layer4. None: the last feature map."""
    cmap: str = "inferno"
    """Colours, by matplotlib's name; jet looks like the paper's figures."""
    image_size: int | None = None
    """Height and width of the input. None: that of the network, else 224."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel on the 0..1 scale. None: that of the network, else ImageNet's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    output: Path = Path("explained")
    """Folder for the page, the pictures and the numbers."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""

    def __post_init__(self) -> None:
        import_modules(self.imports)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(ExplainConfig, "cbam explain", DESCRIPTION, arguments)
    explanation = run(config)
    page = explanation.save(config.output, cmap=config.cmap, command=["cbam", "explain", *arguments])
    print("\n".join(_lines(explanation)))
    print(f"\n{page}")
    return 0


def run(config: ExplainConfig) -> Explanation:
    """Return what the networks see.

    Raises:
        CBAMError: an image, a network or an option that cannot be used.
    """
    from cbam.explain.explaining import explain
    from cbam.explain.inputs import open_picture, read_class_names
    from cbam.explain.overlay import check_colour_map

    check_colour_map(config.cmap)
    if not config.images:
        raise CBAMError("explain needs images, such as cbam explain cat.png --run RUN")
    pictures = [open_picture(path, str(path)) for path in config.images]
    names = None if config.class_names is None else read_class_names(config.class_names)
    models = load_networks(config, names)
    for model in models.values():
        model.to(config.device)
    label: Any = int(config.label) if config.label is not None and config.label.isdecimal() else config.label
    return explain(
        models, pictures, names=[path.name for path in config.images], label=label, layer=config.layer,
        method=config.method, class_names=names, image_size=config.image_size, mean=config.mean, std=config.std,
    )  # fmt: skip


def load_networks(config: Any, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the networks by title, the first one first.

    Raises:
        CBAMError: none was named, or one cannot be loaded.
    """
    if (config.run is None) == (config.model is None):
        raise CBAMError(
            "name one network: --run FOLDER (of cbam train or cbam.save_pretrained), or --model NAME --weights FILE."
        )
    if config.run is not None:
        title, first = _title(config.run), _from_folder(config.run)
    else:
        title, first = config.model, _from_weights(config, names, config.weights)
    networks = {title: first}
    for other in config.compare:
        if other == OFF:
            networks[_unused(f"{title}, attention off", networks)] = _switched_off(first, title)
        elif Path(other).is_file():
            networks[_unused(Path(other).stem, networks)] = _from_weights(config, names, Path(other))
        else:
            networks[_unused(_title(other), networks)] = _from_folder(other)
    return networks


def _from_folder(source: str) -> nn.Module:
    folder = Path(source)
    if folder.is_file():
        raise CBAMError(f"{source} is a file. Its weights need a network: --model NAME --weights {source}")
    if (folder / "cells").is_dir():
        raise CBAMError(
            f"{source} is a run of cbam compare, which keeps bare weights. Name one of its cells with its network:"
            f" --model NAME --weights {source}/cells/CELL/model.safetensors"
        )
    best = folder / "best"
    return from_pretrained(best if best.is_dir() else source)


def _from_weights(config: Any, names: Sequence[str] | None, weights: Path | None) -> nn.Module:
    if config.model is None:
        raise CBAMError(f"the weights {weights} need a network: --model NAME")
    if weights is None:
        raise CBAMError(
            f"--model {config.model} needs --weights FILE: an untrained network looks nowhere. A trained one of"
            " yours is --run FOLDER"
        )
    classes = config.num_classes or (len(names) if names is not None else made_for(config.model)[0])
    model = build_model(config.model, classes)
    load_weights(model, weights)
    return model.eval()


def _switched_off(model: nn.Module, title: str) -> nn.Module:
    if not any(isinstance(module, AttentionModule) for module in model.modules()):
        raise CBAMError(f"--compare off: {title} has no attention to switch off.")
    other = copy.deepcopy(model)
    if hasattr(model, "cbam_config"):
        other.cbam_config = model.cbam_config
    for module in other.modules():
        if isinstance(module, AttentionModule):
            module.enabled = False
    return other


def _title(source: str) -> str:
    """Return a folder's name; of a run's best/ and final/ that of the run.

    >>> _title("runs/digits/best"), _title("user/network")
    ('digits', 'network')
    """
    path = Path(source)
    return path.parent.name if path.name in ("best", "final") and path.parent.name else path.name or source


def _unused(title: str, networks: dict[str, nn.Module]) -> str:
    found, number = title, 2
    while found in networks:
        found, number = f"{title} ({number})", number + 1
    return found


def _lines(explanation: Explanation) -> list[str]:
    rows = [("image", "network", "says", "%", "map at")]
    for index, name in enumerate(explanation.names):
        for title, views in explanation.views.items():
            best = int(views[index].probabilities.argmax())
            share = f"{100 * float(views[index].probabilities[best]):.1f}"
            rows.append((name, title, explanation.class_names[best], share, views[index].layer))
    return columns(rows, left=(0, 1, 2, 4))
