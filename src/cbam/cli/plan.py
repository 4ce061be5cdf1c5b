"""`cbam plan`: where attention would go and what it would add; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from torch import nn

from cbam.attach import plan
from cbam.attach.graph.probe import default_inputs
from cbam.attach.sites.select import split_sites
from cbam.cli.attention import with_kinds
from cbam.cli.parsing import first_word_is, read_options
from cbam.models import build_model, made_for
from cbam.models.own import build_own, is_own
from cbam.nn.presets import DEFAULT_PRESET
from cbam.nn.registry import attention_kind
from cbam.runs.imports import import_modules

DESCRIPTION = """Show where attention would go in a model and what it would add. Changes nothing.

Example: cbam plan resnet50 --sites 'layer3.*.bn3' 'layer4.*.bn3'"""


@dataclass(frozen=True)
class PlanConfig:
    """Show where attention would go in a model and what it would add."""

    model: str
    """A backbone: resnet20, paper_resnet50, a name that torchvision or timm knows, or your own as
    my_package.my_net:build, a function or class that returns the network."""
    attention: str = "cbam"
    """Kind of attention."""
    sites: tuple[str, ...] = ("auto",)
    """auto, residual, block, stage, neck, conv, head; paths, patterns or classes; several with spaces or commas.
    auto: residual (the end of every residual branch); in networks without residual branches, stage (the last map at
    each resolution); in networks without stages, conv (after every convolution)."""
    replace: str | None = None
    """se: in the place of the network's squeeze-excitations, of those that --sites names or of all."""
    exclude: tuple[str, ...] = ()
    """Sites to leave out."""
    preset: str = DEFAULT_PRESET
    """CBAM's preset: paper, official or timm."""
    reduction_ratio: int | None = None
    """The channel gate's MLP has 1/r as many hidden units as there are channels; by default 16 for CBAM and SE."""
    kernel_size: int | None = None
    """Kernel of the gate's convolution; by default 7 for CBAM. SE has none."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import", help_behavior_hint="(optional)")] = ()
    """Modules of your own to import first, such as my_package.my_gate, for the attention that they register."""
    num_classes: int | None = None
    """Width of the classifier; by default 10 for the CIFAR ResNets, else 1000."""
    input_size: tuple[int, ...] | None = None
    """Channels, height and width of the images; by default 3 32 32 for the CIFAR ResNets, else 3 224 224. Channels and
    length of signals (1 1024), channels, depth, height and width of volumes or video (3 16 112 112), where --model is
    a network of your own for such maps."""

    def __post_init__(self) -> None:
        import_modules(self.imports)

    @property
    def classes(self) -> int:
        """`num_classes`, or the model's default."""
        if self.num_classes is not None:
            return self.num_classes
        return made_for(self.model)[0]

    @property
    def image_size(self) -> tuple[int, ...]:
        """`input_size`, or the model's default."""
        if self.input_size is not None:
            return self.input_size
        return made_for(self.model)[1]

    def build(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Return the network and the size of its images, or of what else it takes.

        Raises:
            CBAMError: `input_size` has not the dimensions of the network's first convolution.
        """
        given = self.input_size
        if is_own(self.model):
            model = build_own(self.model, self.num_classes, None if given is None else given[0])
        else:
            given = self.image_size
            model = build_model(self.model, self.classes, in_channels=given[0])
        return model, tuple(default_inputs(model, given)[0].shape[1:])

    @property
    def attach_arguments(self) -> dict[str, Any]:
        """Arguments of `cbam.plan` and `cbam.attach`."""
        return {
            "attention": self.attention,
            "sites": split_sites(self.sites),
            "exclude": split_sites(self.exclude),
            "replace": self.replace,
            **self._options(),
        }

    def _options(self) -> dict[str, Any]:
        """Return the attention's options that were given, and the preset where the attention has one."""
        given: dict[str, Any] = {"reduction_ratio": self.reduction_ratio, "kernel_size": self.kernel_size}
        if self.preset != DEFAULT_PRESET or attention_kind(self.attention).takes("preset"):
            given["preset"] = self.preset
        return {name: value for name, value in given.items() if value is not None}


def main(arguments: Sequence[str]) -> int:
    """Run the command with its `arguments`; return the exit code."""
    words = first_word_is("model", arguments)
    return run(read_options(PlanConfig, "cbam plan", with_kinds(DESCRIPTION), words))


def run(config: PlanConfig) -> int:
    """Print the plan's table and return the exit code."""
    model, size = config.build()
    print(plan(model, input_size=size, **config.attach_arguments))
    return 0
