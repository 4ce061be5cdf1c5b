"""What `cbam compare` is asked to do: the options, their help, their defaults, and the file they are kept in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cbam.compare.grid import parse_variants
from cbam.errors import CBAMError, nearest
from cbam.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Everything that a comparison depends on.

    Each field is an option of `cbam compare`; the text below it is the option's help.

    >>> config = CompareConfig(data="digits", attention="none,cbam", seeds=2)
    >>> config.variants, str(config.folder)
    (('none', 'cbam'), 'runs/digits-resnet20')
    """

    data: str
    """fashion-mnist, digits, or a folder with train/ and val/ and in each a folder per class, or only the latter."""
    model: str = "resnet20"
    """resnet20 ... resnet110 for small images, paper_resnet18 ..., or torchvision's and timm's names, e.g. resnet18."""
    attention: str = "none,se,cbam,control"
    """Variants, with commas: none, se, cbam, cbam:official, cbam:timm, channel, spatial, and control, which is plain,
    but widened until it has as many parameters as cbam."""
    sites: str = "auto"
    """Where attention goes: auto is the end of every residual branch; or module paths and patterns, with commas, as
    `cbam plan` takes them, e.g. features.4,features.9 for a VGG."""
    seeds: int = 3
    """How many times to train each variant: seeds 0 to N-1. More can be added to a finished run."""
    output: Path | None = None
    """The run's folder; the same command again goes on in it. None: runs/DATA-MODEL."""
    config: Path | None = None
    """A YAML file with options, one `name: value` per line; options on the command line win."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the model."""
    weights: Path | None = None
    """Start from this file (.safetensors, .pth); a classifier of another size is left out."""
    reduction_ratio: int = 16
    """Width of the channel gate's hidden layer: channels / ratio."""
    image_size: int | None = None
    """Height and width of the images. None: the set's own, 224 for folders."""
    limit_train: int | None = None
    """Use so many training images only, as many of each class."""
    limit_val: int | None = None
    """Use so many validation images only, as many of each class."""
    val_fraction: float = 0.2
    """Share of each class that validates where there is no validation folder."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What to do with files that cannot be read: stop before training, or leave them out and say so."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe."""

    def __post_init__(self) -> None:
        parse_variants(self.attention)
        for name, given, valid, expected in (
            ("seeds", self.seeds, self.seeds >= 1, "at least 1"),
            ("reduction-ratio", self.reduction_ratio, self.reduction_ratio >= 1, "at least 1"),
            (
                "limit-train",
                self.limit_train,
                self.limit_train is None or self.limit_train >= 1,
                "at least 1",
            ),
            ("limit-val", self.limit_val, self.limit_val is None or self.limit_val >= 1, "at least 1"),
            ("val-fraction", self.val_fraction, 0 < self.val_fraction < 1, "between 0 and 1"),
        ):
            if not valid:
                raise CBAMError(f"--{name} must be {expected}, given {given}")
        if self.pretrained and self.weights:
            raise CBAMError("--pretrained and --weights both say where to start: give one of them")

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants in the order given."""
        return parse_variants(self.attention)

    @property
    def fine_tuning(self) -> bool:
        """Whether training starts from weights of an earlier training."""
        return self.pretrained or self.weights is not None

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        if self.output is not None:
            return self.output
        return Path("runs") / f"{Path(self.data).name or 'data'}-{self.model}".replace("/", "-").replace(
            ":", "-"
        )


# These change where or how fast a run is computed, not what comes out.
NOT_COMPARED = ("output", "workers", "seeds")


def resolved(config: CompareConfig) -> dict[str, Any]:
    """Return every setting by its option's name, with defaults filled in and paths made absolute.

    >>> resolved(CompareConfig(data="digits"))["lr"]
    0.1
    """
    settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    del settings["train"], settings["config"]
    settings |= dataclasses.asdict(config.train)
    settings["lr"] = config.train.peak_lr(fine_tuning=config.fine_tuning)
    settings["attention"] = ",".join(config.variants)
    if Path(config.data).expanduser().is_dir():
        settings["data"] = Path(config.data).expanduser().resolve()
    settings["output"] = config.folder
    settings["weights"] = config.weights.resolve() if config.weights else None
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the settings in which two resolved configurations would give different numbers.

    >>> differences({"epochs": 10, "workers": 0}, {"epochs": 20, "workers": 4})
    ['epochs: 10 there, 20 now']
    """
    names = [name for name in dict.fromkeys([*before, *now]) if name not in NOT_COMPARED]
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def file_arguments(file: Path) -> list[str]:
    """Turn a YAML file into command-line arguments, so that its values are checked and explained like those.

    Args:
        file: One `name: value` per line; underscores and hyphens are the same; `null` means the default.

    Raises:
        CBAMError: There is no such file, it is not YAML of that form, or it names an option that does not exist.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CBAMError(f"--config {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CBAMError(f"--config {file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise CBAMError(f"--config {file} should hold one `name: value` per line, for example `epochs: 10`")
    switches = {"pretrained"}
    fields = [item for part in (CompareConfig, TrainConfig) for item in dataclasses.fields(part)]
    valid = {item.name for item in fields} - {"train", "config"}
    arguments = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in valid:
            close = nearest(name, sorted(valid), count=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CBAMError(f"--config {file}: there is no option {key!r}.{hint}")
        option = name.replace("_", "-")
        if value is None:
            continue
        if name in switches and isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            arguments.append(f"--{option}={','.join(map(str, value))}")
        else:
            # YAML reads a bare `no` as False: `precision: no` is what people write.
            arguments.append(f"--{option}={'no' if value is False else value}")
    return arguments
