"""What `cbam bench` is asked to do: the options, their help, their defaults and what is wrong with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cbam.errors import CBAMError, unknown_name

PARTS = ("modules", "network", "scaling")
DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class BenchConfig:
    """Everything that a run depends on.

    Each field is an option of `cbam bench`; the text below it is the option's help.

    >>> BenchConfig(shapes=("64x28x28",)).maps
    [(64, 28, 28)]
    """

    parts: tuple[str, ...] = PARTS
    """What to measure: modules (CBAM alone beside its rivals), network (a whole one),
    scaling (with threads, batch and map)."""
    shapes: tuple[str, ...] = ("256x56x56", "512x28x28", "1024x14x14", "2048x7x7")
    """Feature maps of the modules as CxHxW; by default those at the ends of ResNet-50's stages."""
    batch_size: int = 8
    """Samples in a map, and images for the network."""
    dtype: str = "float32"
    """float32, float64, bfloat16 or float16."""
    memory_formats: tuple[str, ...] = ("contiguous", "channels_last")
    """contiguous, channels_last or both."""
    model: str = "resnet50"
    """The network: a name that torchvision or timm knows."""
    image_size: int = 224
    """Height and width of the network's images."""
    threads: int | None = None
    """CPU threads; by default what torch uses here."""
    rounds: int = 21
    """Rounds of each measurement; in a round every rival runs once, in turn."""
    seconds: float = 4.0
    """A measurement ends early after so long, but not before 5 rounds (or `rounds`, if those are fewer)."""
    compile: bool = True
    """Measure the rivals under torch.compile as well; needs a C++ compiler and, the first time, some minutes."""
    quick: bool = False
    """Only try whether everything works: small maps, three rounds, nothing compiled; the numbers mean nothing."""
    restart: bool = False
    """Forget what the output folder holds, and measure everything anew."""
    output: Path = Path("runs/bench")
    """The run's folder; stopped at any time, the same command goes on in it."""

    def __post_init__(self) -> None:
        for kind, given, valid in (
            ("part", self.parts, PARTS),
            ("dtype", (self.dtype,), DTYPES),
            ("memory format", self.memory_formats, MEMORY_FORMATS),
        ):
            for name in given:
                if name not in valid:
                    raise unknown_name(kind, name, valid)
        for name, several in (
            ("parts", self.parts), ("shapes", self.shapes), ("memory-formats", self.memory_formats),
        ):  # fmt: skip
            if not several:
                raise CBAMError(f"--{name} expects at least one value, given none")
        for name, value, lowest in (
            ("batch-size", self.batch_size, 1),
            ("image-size", self.image_size, 32),
            ("rounds", self.rounds, 2),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            if value < lowest:
                raise CBAMError(f"--{name} must be at least {lowest}, given {value}")
        if not self.seconds > 0:
            raise CBAMError(f"--seconds must be more than 0, given {self.seconds}")
        _ = self.maps

    @property
    def maps(self) -> list[tuple[int, int, int]]:
        """The shapes as (C, H, W)."""
        return [parse_shape(shape) for shape in dict.fromkeys(self.shapes)]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return DTYPES[self.dtype]

    @property
    def growth_batches(self) -> list[int]:
        """Batch sizes of the scaling part."""
        return [1, 2, 4] if self.quick else [1, 2, 4, 8, 16, 32, 64]

    @property
    def growth_sides(self) -> list[int]:
        """Heights and widths of the scaling part."""
        return [7, 14] if self.quick else [7, 14, 28, 56, 112]

    @property
    def growth_channels(self) -> int:
        """Channels of the scaling part."""
        return 64 if self.quick else 256

    @property
    def growth_side(self) -> int:
        """Height and width of the map whose batch grows, and which one and several threads take on at N = 1."""
        return 14 if self.quick else 56

    def resolved(self) -> BenchConfig:
        """Return the settings in effect: threads filled in, and all made small for `quick`."""
        threads = self.threads or torch.get_num_threads()
        if not self.quick:
            return dataclasses.replace(self, threads=threads)
        return dataclasses.replace(
            self, shapes=("64x14x14", "128x7x7"), batch_size=2, model="resnet18", image_size=64,
            threads=threads, rounds=3, seconds=1.0, compile=False,
        )  # fmt: skip

    def identity(self) -> dict[str, object]:
        """Return what two calls must share for their measurements to stand in one table."""
        separate = {"parts", "restart", "output"}
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in separate}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read a feature map's shape.

    Args:
        text: CxHxW.

    Raises:
        CBAMError: It is not of that form.

    >>> parse_shape("256x56x56")
    (256, 56, 56)
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise CBAMError(f"--shapes expects CxHxW, such as 256x56x56, given {text!r}")
    channels, height, width = map(int, found.groups())
    return channels, height, width


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape for people, a square map as a square.

    >>> shape_text((256, 56, 56)), shape_text((8, 256, 7, 9))
    ('256x56²', '8x256x7x9')
    """
    *front, height, width = shape
    tail = f"{height}²" if height == width else f"{height}x{width}"
    return "x".join([*map(str, front), tail])
