"""config.json, which describes a saved network. It is read as untrusted input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cbam.errors import CBAMError
from cbam.files import checked_path

FORMAT = 2
READ = (1, 2)  # 1 knows neither the task nor how images are resized
FILE = "config.json"
TASKS = ("multiclass", "multilabel")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
WEIGHTS = {"full": "model.safetensors", "attention": "attention.safetensors"}
_MOST_BYTES = 2**20
_MOST_CHANNELS = 2**20
_MOST_WIDE = 2**33
_LARGEST = 1e6
_SIZES = {
    1: "two numbers: channels, length",
    2: "three numbers: channels, height, width",
    3: "four numbers: channels, depth, height, width",
}


@dataclass(frozen=True)
class Backbone:
    """The network without its attention, as `cbam.models.build_model` builds it.

    Args:
        name: "resnet20", "torchvision/resnet50", "timm/tf_efficientnet_lite0", ...
        num_classes: width of the classifier.
        in_channels: channels of the images.
        widened_to: of a control the target of `cbam.models.match_parameters`; None for other networks.
    """

    name: str
    num_classes: int
    in_channels: int
    widened_to: int | None = None

    def __post_init__(self) -> None:
        known = (
            isinstance(self.name, str) and len(self.name) < 200 and ":" not in self.name
        )  # no code of anybody's
        _check(known, "backbone.name", "the name of a network that this library knows", self.name)
        for field in ("num_classes", "in_channels"):
            _check_count(f"backbone.{field}", getattr(self, field))
        whole = self.widened_to is None or (
            type(self.widened_to) is int and 1 <= self.widened_to <= _MOST_WIDE
        )
        _check(whole, "backbone.widened_to", f"1 to {_MOST_WIDE:,}, or null", self.widened_to)


@dataclass(frozen=True)
class SavedSite:
    """One site with attention.

    Args:
        path: of the host module in the network without attention.
        position: "output", "input" or "instead".
        channels: C.
        reduction_ratio: C over the hidden width; None: the attention has none.
    """

    path: str
    position: str
    channels: int
    reduction_ratio: int | None = None

    def __post_init__(self) -> None:
        _check(isinstance(self.path, str) and len(self.path) < 1000, "a site's path", "a name", self.path)
        known = self.position in ("output", "input", "instead")
        _check(known, "a site's position", "output, input or instead", self.position)
        _check_count("a site's channels", self.channels)
        if self.reduction_ratio is not None:
            _check_count("a site's reduction_ratio", self.reduction_ratio)


@dataclass(frozen=True)
class Attention:
    """Sites with attention of one form.

    Args:
        kind: its name in `cbam.nn.registry`, such as "cbam", "se" or "timm:gc".
        preset: of CBAM: its name, "custom" if switches made another form of it; for readers. Else the kind again.
        options: of the kind, without the reduction ratio.
        sites: where it is attached.
    """

    kind: str
    preset: str
    options: dict[str, Any]
    sites: tuple[SavedSite, ...]

    def __post_init__(self) -> None:
        _check(isinstance(self.kind, str) and len(self.kind) < 200, "attention.kind", "a name", self.kind)
        plain = isinstance(self.options, dict) and all(
            isinstance(name, str) and _is_plain(value) for name, value in self.options.items()
        )
        _check(plain, "attention.options", "names with strings, numbers or lists of these", self.options)
        kernel, dims = self.options.get("kernel_size"), self.options.get("dims", 2)
        _check(type(dims) is int and 1 <= dims <= 3, "dims", "1, 2 or 3", dims)
        fits = kernel is None or (isinstance(kernel, int) and 1 <= kernel <= (99 if dims == 3 else 999))
        _check(fits, "kernel_size", "1 to 999, for volumes to 99", kernel)


@dataclass(frozen=True)
class Config:
    """config.json of a saved network.

    Args:
        content: "full", or "attention": gates, head and batch norms only.
        sha256: of the file with the weights.
        backbone: how to build the network; None: the caller brings it.
        attention: what is attached.
        fuse_epilogue: blocks run their epilogue in the attention's operator call.
        base_sha256: for "attention": of all weights that are not in the file.
        class_names, input_size, mean, std: of the images and outputs, as far as known.
        task: what the outputs are: "multiclass", one class of all (softmax), or "multilabel", each class for itself
            (sigmoid).
        resize: to how many pixels the short side of a picture is resized before the centre crop to `input_size`.
        interpolation: how: "bilinear", "bicubic", "nearest" or "lanczos".
        versions: of the packages that wrote it.
    """

    content: str
    sha256: str
    backbone: Backbone | None
    attention: tuple[Attention, ...]
    fuse_epilogue: bool = True
    base_sha256: str | None = None
    class_names: tuple[str, ...] | None = None
    input_size: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    task: str = "multiclass"
    resize: int | None = None
    interpolation: str | None = None
    versions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        _check(self.content in WEIGHTS, "content", "full or attention", self.content)
        _check(isinstance(self.sha256, str), "sha256", "a digest", self.sha256)
        _check_row("class_names", self.class_names, str)
        _check(self.task in TASKS, "task", " or ".join(TASKS), self.task)
        if self.resize is not None:
            _check_count("resize", self.resize)
        known = self.interpolation is None or self.interpolation in INTERPOLATIONS
        _check(known, "interpolation", ", ".join(INTERPOLATIONS), self.interpolation)
        self._check_images()

    def _check_images(self) -> None:
        size, channels = self.input_size, None if self.backbone is None else self.backbone.in_channels
        for name in ("input_size", "mean", "std"):
            _check_row(name, getattr(self, name), (int, float))
        if size is not None:
            dims = {group.options.get("dims", 2) for group in self.attention} or {2}
            numbers = " or ".join(_SIZES[n] for n in sorted(dims))
            _check(len(size) - 1 in dims, "input_size", numbers, size)
            for value in size:
                _check_count("input_size", value)
            channels = channels or int(size[0])
            _check(size[0] == channels, "input_size", f"the network's {channels} channels", size)
        for name in ("mean", "std"):
            row = getattr(self, name)
            each = (
                "a number for each channel"
                if channels is None
                else f"a number for each of the {channels} channels"
            )
            # Compared, and not math.isfinite, which a number of a thousand digits would overflow.
            known = row is None or all(-_LARGEST < value < _LARGEST for value in row)
            _check(known and (row is None or len(row) == (channels or max(1, len(row)))), name, each, row)
        _check(self.std is None or all(value > 0 for value in self.std), "std", "numbers above 0", self.std)

    @property
    def weights(self) -> str:
        """Name of the file with the weights, in the same folder."""
        return WEIGHTS[self.content]

    def to_json(self) -> str:
        """Return the text of config.json."""
        return json.dumps({"library_name": "torch-cbam", "format": FORMAT, **asdict(self)}, indent=2) + "\n"


def read_config(folder: str | Path) -> Config:
    """Read config.json in a folder.

    Raises:
        CBAMError: it is missing, damaged, from a later version, or holds invalid values.
    """
    path = checked_path(Path(folder) / FILE)
    if not path.is_file():
        raise CBAMError(f"no {FILE} in {str(folder)!r}. Give a folder that cbam.save_pretrained wrote.")
    if path.stat().st_size > _MOST_BYTES:
        raise CBAMError(f"{str(path)!r} has more than {_MOST_BYTES:,} bytes, which no {FILE} of ours has.")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CBAMError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(said, dict) or said.get("library_name") != "torch-cbam":
        raise CBAMError(f"{str(path)!r} was not written by cbam.save_pretrained.")
    if said.get("format") not in READ:
        raise CBAMError(f"{str(path)!r} has format {said.get('format')!r}, this version reads {READ}.")
    try:
        return _parse({key: value for key, value in said.items() if key not in ("library_name", "format")})
    except (TypeError, KeyError, AttributeError) as error:
        raise CBAMError(f"{str(path)!r} is incomplete or has unknown fields: {error}") from error


def _parse(said: dict[str, Any]) -> Config:
    if "fuse_tail" in said:  # its name before the first release
        said["fuse_epilogue"] = said.pop("fuse_tail")
    backbone = said.pop("backbone")
    attention = [
        Attention(**{**group, "sites": tuple(SavedSite(**site) for site in group["sites"])})
        for group in said.pop("attention")
    ]
    rows = {key: said.pop(key, None) for key in ("class_names", "input_size", "mean", "std")}
    tuples: dict[str, Any] = {key: tuple(row) if isinstance(row, list) else row for key, row in rows.items()}
    return Config(
        backbone=None if backbone is None else Backbone(**backbone),
        attention=tuple(attention),
        **tuples,
        **said,
    )


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(item is None or isinstance(item, (str, int, float, bool)) for item in values)


def _check_count(what: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check(whole and 1 <= value <= _MOST_CHANNELS, what, f"1 to {_MOST_CHANNELS:,}", value)


def _check_row(what: str, value: Any, kind: Any) -> None:
    fits = value is None or (isinstance(value, tuple) and all(isinstance(item, kind) for item in value))
    _check(fits, what, "a list or null", value)


def _check(fits: bool, what: str, expected: str, given: Any) -> None:
    if not fits:
        raise CBAMError(f"config: {what} expects {expected}, got {repr(given)[:80]}.")
