"""`cbam convert`: convert a checkpoint from one CBAM format to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cbam.attach import attach
from cbam.checkpoints.converting import convert, form_in, write
from cbam.checkpoints.formats import FORMATS
from cbam.checkpoints.loading import load_weights
from cbam.checkpoints.switches import switches_of
from cbam.cli.parsing import read_options
from cbam.errors import CBAMError
from cbam.models import build_model, made_for

DESCRIPTION = f"""Convert a checkpoint from one CBAM format to another.

Formats: {", ".join(FORMATS)}. Pickles are never executed; nothing is written unless everything fits.

Examples: cbam convert authors.pth cbam.safetensors
          cbam convert authors.pth timm.safetensors --to timm
          cbam convert authors.pth attached.safetensors --model resnet50"""


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint from one CBAM format to another."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """The checkpoint: .safetensors, a file written by torch.save, or the folder of a run."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The output file: .safetensors, .pth or .pt."""
    to: str = "cbam"
    """The format to write."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = "auto"
    """The format of the checkpoint; auto: detect it."""
    entry: str | None = None
    """Which state dict in the file to use, such as state_dict_ema."""
    outer_residual: bool = False
    """The network itself adds the block's input, which xmu's block does inside."""
    descriptor_order: str | None = None
    """avg-max or max-avg, for files with this library's names that do not say in which order their kernels read."""
    model: str | None = None
    """Write the keys of this backbone with attached attention: resnet50, paper_resnet50, any of timm."""
    num_classes: int | None = None
    """Width of the classifier of --model; by default 10 for the CIFAR ResNets, else 1000."""


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    return run(read_options(ConvertConfig, "cbam convert", DESCRIPTION, arguments))


def run(config: ConvertConfig) -> int:
    """Convert, print the report and return the exit code."""
    if config.model is not None:
        return _for_model(config, config.model)
    if config.num_classes is not None:
        raise CBAMError(
            "--num-classes has no effect without --model NAME. Leave it out, or name the backbone."
        )
    print(
        convert(
            config.source,
            config.out,
            config.to,
            config.from_,
            outer_residual=config.outer_residual,
            entry=config.entry,
            descriptor_order=config.descriptor_order,
        )
    )
    print(f"written to {config.out}")
    return 0


def _for_model(config: ConvertConfig, name: str) -> int:
    if config.to != "cbam":
        raise CBAMError("--model writes this library's names. Leave out --to.")
    classes = config.num_classes or made_for(name)[0]
    model = build_model(name, classes)
    form = form_in(config.source, config.from_, config.entry, config.descriptor_order)
    attach(model, **form)
    report = load_weights(
        model,
        config.source,
        config.from_,
        outer_residual=config.outer_residual,
        entry=config.entry,
    )
    write(config.out, model.state_dict(), "cbam", switches_of(model))
    print(report)
    print(f"matching attention: cbam.attach(model, {_written(form)})")
    print(f"written to {config.out}")
    return 0


def _written(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
