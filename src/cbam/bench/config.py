"""The options of `cbam bench`: their help, their defaults on each device, and checks."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cbam.bench.device import DEVICES
from cbam.errors import CBAMError, unknown_name
from cbam.runs.config import RunConfig, option

PARTS = ("modules", "network", "host", "scaling")
"""What a run on a CPU measures by default."""
ASKED_FOR = ("compiled", "code")
"""What it measures if it is asked to, since compiling takes minutes."""
GPU_PARTS = ("checks", "kernels", "modules", "network", "compiled", "host", "traffic", "scaling")
ALL_PARTS = tuple(dict.fromkeys((*GPU_PARTS, *PARTS, *ASKED_FOR)))
DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class BenchConfig(RunConfig):
    """Everything that a run depends on.

    Each field is an option of `cbam bench`; the text below it is the option's help.

    >>> BenchConfig(shapes=("64x28x28",)).maps
    [(64, 28, 28)]
    """

    parts: tuple[str, ...] = option(PARTS, affects_result=False)
    """What to measure: modules (CBAM alone, next to other implementations), network (a whole one), host (what a call
    costs on a tiny map), scaling (with threads, batch and map). On a CPU only if asked for, since compiling takes
    minutes: compiled (the network under torch.compile, three times: plain, with this library's CBAM and with a careful
    module; four minutes for resnet18) and code (what compiled code says of the GPU kernels, without a GPU; three
    minutes). On a GPU also checks (is the operator correct here?), kernels, compiled, and traffic (bytes read from and
    written to DRAM)."""
    device: str = "cpu"
    """cpu, cuda, or dry-run: the steps of a GPU run on tiny maps on the CPU; the numbers mean nothing."""
    shapes: tuple[str, ...] = ("256x56x56", "512x28x28", "1024x14x14", "2048x7x7")
    """Feature maps of the modules as CxHxW; by default those at the ends of ResNet-50's stages."""
    batch_size: int = 8
    """Samples in a map, and images for the network."""
    dtype: str = "float32"
    """float32, float64, bfloat16 or float16; on a GPU, networks other than float32 run under AMP."""
    memory_formats: tuple[str, ...] = ("contiguous", "channels_last")
    """contiguous, channels_last or both."""
    model: str = "resnet50"
    """The network: a name that torchvision or timm knows."""
    image_size: int = 224
    """Height and width of the network's images."""
    threads: int | None = None
    """CPU threads; by default as many as torch uses."""
    rounds: int = 21
    """Rounds of each measurement; in a round every candidate runs once, in turn."""
    seconds: float = 4.0
    """A measurement ends early after this time, but not before 5 rounds (or `rounds`, if those are fewer)."""
    compile: bool = True
    """Measure under torch.compile as well; needs a C++ compiler and, the first time, some minutes."""
    quick: bool = False
    """Only check that everything works: few small maps, few rounds, nothing compiled; the numbers mean nothing."""
    budget: float = option(math.inf, affects_result=False)
    """Seconds for everything. The most important comes first; what does not fit is left out and named. The same
    command adds it later."""
    keep_going: bool = option(False, affects_result=False)
    """On a GPU: measure even if a check fails."""
    commit: str | None = None
    """Commit of this code, where it is not in a git repository."""
    restart: bool = option(False, affects_result=False)
    """Discard the results in the output folder, and measure everything again."""
    output: Path = option(Path("runs/bench"), affects_result=False)
    """The run's folder; the same command resumes it."""

    def __post_init__(self) -> None:
        for kind, given, valid in (
            ("device", (self.device,), DEVICES),
            ("part", self.parts, ALL_PARTS),
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
            ("batch-size", self.batch_size, 1), ("image-size", self.image_size, 32), ("rounds", self.rounds, 2),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):  # fmt: skip
            if value < lowest:
                raise CBAMError(f"--{name} must be at least {lowest}, given {value}")
        for name, time in (("seconds", self.seconds), ("budget", self.budget)):
            if not time > 0:
                raise CBAMError(f"--{name} must be more than 0, given {time}")
        here = GPU_PARTS if self.like_gpu else (*PARTS, *ASKED_FOR)
        if not set(self.parts) & set(here):
            where = (
                "on a CPU only. Leave out --device" if self.like_gpu else "on a GPU only. Add --device cuda"
            )
            raise CBAMError(f"--parts {' '.join(self.parts)}: measured {where}")
        _ = self.maps

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output

    @property
    def maps(self) -> list[tuple[int, int, int]]:
        """The shapes as (C, H, W)."""
        return [parse_shape(shape) for shape in dict.fromkeys(self.shapes)]

    @property
    def like_gpu(self) -> bool:
        """Whether the run has the measurements of a GPU."""
        return self.device != "cpu"

    @property
    def small(self) -> bool:
        """Whether the numbers mean nothing."""
        return self.quick or self.device == "dry-run"

    @property
    def scaling(self) -> tuple[list[int], list[int], tuple[int, int]]:
        """Batches, heights, and the map (C, H) whose batch grows and which the study of threads takes at N = 1."""
        if self.small:
            return [1, 2, 4], [7, 14], (64, 14)
        return [1, 2, 4, 8, 16, 32, 64], [7, 14, 28, 56, 112], (256, 56)

    def in_effect(self) -> BenchConfig:
        """Return the options in effect: threads filled in, and everything small for `quick` and a dry run."""
        values: dict[str, Any] = {"threads": self.threads or torch.get_num_threads()}
        if self.device == "dry-run":
            values |= {
                "shapes": ("8x6x6",), "batch_size": 2, "model": "resnet20", "image_size": 32, "rounds": 2,
                "seconds": 0.1,
            }  # fmt: skip
        elif self.quick and self.device == "cpu":
            values |= {
                "shapes": ("64x14x14", "128x7x7"), "batch_size": 2, "model": "resnet18", "image_size": 64, "rounds": 3,
                "seconds": 1.0, "compile": False,
            }  # fmt: skip
        elif self.quick:
            values |= {
                "shapes": (self.shapes[0], self.shapes[-1]),
                "rounds": 7,
                "seconds": 0.3,
                "compile": False,
            }
        return dataclasses.replace(self, **values)

    def identity(self) -> dict[str, Any]:
        """Return what two calls must share for their measurements to appear in one table."""
        items = {item.name: item.metadata.get("affects_result", True) for item in dataclasses.fields(self)}
        return {name: value for name, value in self.resolved().items() if items[name]}


def defaults(device: str) -> BenchConfig:
    """Return the default options on a device.

    >>> defaults("cuda").batch_size
    128
    """
    if device not in ("cuda", "dry-run"):
        return BenchConfig()
    return BenchConfig(
        device=device, parts=GPU_PARTS, batch_size=128, dtype="bfloat16", memory_formats=("channels_last",), rounds=25,
        seconds=0.6, budget=480.0, output=Path("runs/bench-gpu"),
    )  # fmt: skip


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
    end = f"{height}²" if height == width else f"{height}x{width}"
    return "x".join([*map(str, front), end])
