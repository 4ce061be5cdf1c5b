"""`cbam explain`: where a network looks in images, as an offline page, pictures and numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cbam.cli.parsing import read_options
from cbam.errors import CBAMError
from cbam.formatting import columns
from cbam.nn import AttentionModule
from cbam.pretrained import open_network
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from torch import nn

    from cbam.explain import Explanation
    from cbam.explain.localised import Localised
    from cbam.explain.scores import MapScores

DESCRIPTION = """Show where a network looks: class activation maps, the gates of its attention, and what it says, for
one network or several side by side, as a page that needs no network, PNG pictures and .npz files.

Examples: cbam explain cat.png --run runs/train-digits-resnet20-cbam --compare off;
  cbam explain cat.png dog.png --model timm/tf_efficientnet_lite0 --weights lite0.safetensors"""
OFF = "off"
_FROM_SET = 4


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which images, which networks, and what to draw."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")] = ()
    """Pictures: JPEG, PNG, WebP, TIFF, GIF, BMP or PPM. With --boxes by default the first ones of the set."""
    run: str | None = None
    """A run of `cbam train` (its best weights) or one of its checkpoints, a run of `cbam compare` with --variant, a
    folder of cbam.save_pretrained, or user/name on the hub."""
    variant: str | None = None
    """Of a run of `cbam compare`: the network to explain, such as cbam (its first seed) or cbam-seed2."""
    model: str | None = None
    """Instead of --run, a network: torchvision/resnet50 with its published weights, or paper_resnet50_cbam, ... with
    --weights."""
    weights: Path | None = None
    """Its weights: a .safetensors, .pth, .pt or .bin file."""
    num_classes: int | None = None
    """Width of the classifier of --model. None: as many as there are --class-names, else as in the file."""
    compare: tuple[str, ...] = ()
    """Further networks, side by side with the first one: a folder as for --run, a file with other weights for
    --model, or off: the first network with its attention switched off."""
    boxes: str | None = None
    """Score the maps on images in which it is known where the objects are: the validation images of coco:FOLDER,
    voc:FOLDER or yolo:FOLDER, each for the class of its largest object."""
    limit: int = 200
    """Of --boxes, at most so many images."""
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
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the network."""

    def __post_init__(self) -> None:
        import_modules(self.imports)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(ExplainConfig, "cbam explain", DESCRIPTION, arguments)
    explanation, scores = run(config)
    made_by = ["cbam", "explain", *arguments]
    page = explanation.save(config.output, cmap=config.cmap, command=made_by, scores=scores)
    print("\n".join(_lines(explanation)))
    if scores is not None:
        print("\n" + "\n".join(_score_lines(scores)))
    print(f"\n{page}")
    return 0


def run(config: ExplainConfig) -> tuple[Explanation, MapScores | None]:
    """Return what the networks see, and the scores of the maps if they are wanted.

    Raises:
        CBAMError: an image, a network or an option that cannot be used.
    """
    from cbam.data.inputs import class_names_of, open_picture, outputs_of, read_class_names
    from cbam.explain.explaining import explain
    from cbam.explain.overlay import check_colour_map
    from cbam.explain.scores import score_maps

    check_colour_map(config.cmap)
    if not config.images and config.boxes is None:
        raise CBAMError("explain needs images, such as: cbam explain cat.png --run RUN")
    pictures = [open_picture(path, str(path)) for path in config.images]
    titles = [path.name for path in config.images]
    names = None if config.class_names is None else read_class_names(config.class_names)
    models = load_networks(config, names)
    first = next(iter(models.values()))
    for model in models.values():
        model.to(config.device)
    form: Any = {"image_size": config.image_size, "mean": config.mean, "std": config.std}
    maps: Any = {"layer": config.layer, "method": config.method, **form}
    scores = None
    if config.boxes is not None:
        located = _located(config, class_names_of(first, names, outputs_of(first) or 0))
        scores = score_maps(models, located, **maps)
        pictures = pictures or [image.picture for image in located[:_FROM_SET]]
        titles = titles or [image.name for image in located[:_FROM_SET]]
    label: Any = int(config.label) if config.label is not None and config.label.isdecimal() else config.label
    return explain(models, pictures, names=titles, label=label, class_names=names, **maps), scores


def _located(config: ExplainConfig, names: Sequence[str]) -> list[Localised]:
    from cbam.data.detection import load_detection
    from cbam.explain.localised import localised_images

    data = load_detection(config.boxes or "", limit_val=config.limit, check_images=False)
    return localised_images(data.validation, data.classes, names, config.limit)


def load_networks(config: ExplainConfig, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the networks by title, the first one first.

    Raises:
        CBAMError: none was named, or one cannot be loaded.
    """
    source = config.weights or config.run or config.model
    if source is None or (config.run is not None and config.weights is not None):
        raise CBAMError(
            "name one network: --run RUN (of cbam train, or any saved network), or --model NAME --weights FILE."
        )
    classes = config.num_classes or (None if names is None else len(names))
    model = None if source == config.model else config.model
    first = open_network(source, model, variant=config.variant, num_classes=classes)
    title = config.model if config.weights is not None and config.model is not None else first.title
    networks = {title: first.model}
    for other in config.compare:
        if other == OFF:
            networks[unused(f"{title}, attention off", networks)] = _switched_off(first.model, title)
            continue
        bare = Path(other).is_file()
        opened = open_network(other, config.model if bare else None, num_classes=classes if bare else None)
        networks[unused(opened.title, networks)] = opened.model
    return networks


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


def unused(title: str, networks: dict[str, nn.Module]) -> str:
    """Return a title that no other network has."""
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


def _score_lines(scores: MapScores) -> list[str]:
    titles = list(scores.values)
    rows = [(f"{len(scores.images)} images", "better", *titles)]
    for _, name, more, cells in scores.rows():
        shown = []
        for title in titles:
            mean, gap = cells[title]
            text = f"{mean.estimate:.3f}"
            shown.append(
                text if gap is None else f"{text} ({gap.estimate:+.3f}: {gap.low:+.3f} to {gap.high:+.3f})"
            )
        rows.append((name, "more" if more else "less", *shown))
    return columns(rows, left=(0, 1))
