"""Export networks of every kind with attention, and compare each file with eager mode: docs/results/export.md.

    python benchmarks/export.py [--only WORDS] [--output runs/export.jsonl] [--report docs/results/export.md]

Random weights. Every file takes any batch, and any height and width where the network's own code allows it; it is
compared at batch 1 and 3 and at larger images. The same command resumes; `--report` writes the table and runs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torchvision.models.video import r3d_18

import cbam
from cbam.errors import CBAMError
from cbam.export import export
from cbam.models import build_model
from cbam.nn import CBAM, PRESETS, AttentionModule
from cbam.nn.presets import ARRANGEMENTS
from cbam.runs.rows import Rows
from cbam.runs.tables import Section

SIDES = ("batch", "height", "width")
FILES = {"ONNX": ("net.onnx", False), ".pt2, operator": ("op.pt2", False), ".pt2, plain": ("plain.pt2", True)}


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        group: heading in the table.
        name: in the table.
        build: makes it, with attention.
        size: of an input, (C, H, W) or of other dimensions.
        dynamic: sizes to try first; where that fails, the batch alone.
        plain: whether to write a .pt2 without our operator too.
    """

    group: str
    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, ...]
    dynamic: tuple[str, ...] = SIDES
    plain: bool = True


class Residual(nn.Module):
    """A block whose branch ends in a batch norm, of 1, 2 or 3 dimensions."""

    def __init__(self, channels: int, dims: int = 2):
        super().__init__()
        convolution, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        self.conv1, self.bn1 = convolution(channels, channels, 3, padding=1), norm(channels)
        self.conv2, self.bn2 = convolution(channels, channels, 3, padding=1), norm(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch + x)."""
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Small(nn.Module):
    """A stem, a block and a classifier."""

    def __init__(self, dims: int = 2):
        super().__init__()
        self.stem = getattr(nn, f"Conv{dims}d")(3, 16, 3, padding=1)
        self.block, self.fc, self.dims = Residual(16, dims), nn.Linear(16, 5), dims

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        return self.fc(self.block(self.stem(x)).flatten(2).mean(-1))


def with_attention(
    model: nn.Module, size: tuple[int, ...], attention: str = "cbam", **options: object
) -> nn.Module:
    """Attach attention with gates that are open by different amounts."""
    torch.manual_seed(0)
    cbam.attach(model, attention, input_size=size, **{"init": "paper", **options})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AttentionModule):
                for parameter in module.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def folded() -> nn.Module:
    """Return a network whose doubled gates were folded into the norms in front."""
    model = Small()
    cbam.attach(model, input_size=(3, 16, 16))
    for module in model.modules():
        if isinstance(module, CBAM):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0, 0.2)
    cbam.fold_gate_scale(model)
    return model


OPTIONS = {
    "average pooling": {"channel_pooling": "avg"},
    "maximum pooling": {"channel_pooling": "max"},
    "average descriptor": {"spatial_descriptor": "avg"},
    "maximum descriptor": {"spatial_descriptor": "max"},
    "learned descriptor": {"spatial_descriptor": "conv"},
    "kernel 3": {"kernel_size": 3},
    "hard sigmoid": {"gate": "hardsigmoid"},
    "doubled gates": {"init": "identity"},
    "epilogue apart": {"fuse_epilogue": False},
    "behind a convolution": {"sites": "conv"},
    "in front of the head": {"sites": "head"},
}
KINDS = ("se", "eca", "channel", "spatial", "timm:gc")
BACKBONES = (
    "resnet20", "torchvision/resnet18", "torchvision/mobilenet_v3_small", "torchvision/densenet121",
    "torchvision/regnet_y_400mf", "torchvision/shufflenet_v2_x0_5", "torchvision/convnext_tiny",
    "timm/resnet26d", "timm/tf_efficientnet_lite0", "timm/convnext_atto", "timm/ghostnet_050", "timm/hardcorenas_a",
)  # fmt: skip


def cases() -> list[Case]:
    """Return all networks."""
    found = []
    for name in BACKBONES:
        size = (3, 32, 32) if name == "resnet20" else (3, 64, 64)

        def backbone(name: str = name, size: tuple[int, ...] = size) -> nn.Module:
            return with_attention(build_model(name, 10), size, preset="official")

        found.append(Case("Backbones, authors' form", name, backbone, size, plain=False))
    small = (3, 16, 16)
    found += [
        Case(
            "Presets and arrangements, in one residual block",
            f"{preset}, {arrangement}",
            lambda p=preset, a=arrangement: with_attention(Small(), small, preset=p, arrangement=a),
            small,
        )
        for preset, arrangement in itertools.product(PRESETS, ARRANGEMENTS)
    ]
    found += [
        Case(
            "Other forms of CBAM, in the same block",
            name,
            lambda o=o: with_attention(Small(), small, **o),
            small,
        )
        for name, o in OPTIONS.items()
    ]
    found += [Case("Other forms of CBAM, in the same block", "folded gates", folded, small)]
    found += [
        Case(
            "Other attention, in the same block",
            kind,
            lambda k=kind: with_attention(Small(), small, k),
            small,
        )
        for kind in KINDS
    ]
    found += [
        Case("Other dimensions", "signals", lambda: with_attention(Small(1), (3, 32)), (3, 32), ("batch", "length")),
        Case(
            "Other dimensions", "volumes", lambda: with_attention(Small(3), (3, 8, 8, 8)), (3, 8, 8, 8),
            ("batch", "depth", "height", "width"),
        ),
        Case(
            "Other dimensions", "torchvision/r3d_18", lambda: with_attention(r3d_18(num_classes=10), (3, 8, 32, 32)),
            (3, 8, 32, 32), ("batch", "depth", "height", "width"), False,
        ),
    ]  # fmt: skip
    return found


def measure(case: Case) -> dict[str, str]:
    """Export one network in every form; return a cell for each."""
    torch.manual_seed(0)
    model = case.build().eval()
    example = torch.rand(1, *case.size)
    row = {"group": case.group, "name": case.name}
    for title, (file, plain) in FILES.items():
        if plain and not case.plain:
            continue
        start = time.perf_counter()
        row[title] = attempt(model, example, case.dynamic, file, plain)
        print(f"{case.name}: {title}: {row[title]} ({time.perf_counter() - start:.0f} s)", flush=True)
    return row


def attempt(model: nn.Module, example: Tensor, dynamic: Sequence[str], file: str, plain: bool) -> str:
    """Return the largest difference as a share of the largest output, or the reason why there is no file."""
    reason = ""
    for sizes in dict.fromkeys([tuple(dynamic), tuple(dynamic[:1])]):
        with TemporaryDirectory() as folder:
            try:
                found = export(model, Path(folder) / file, example, plain=plain, dynamic=sizes)
            except CBAMError as error:
                reason = reason or str(error).splitlines()[0][:160]
                continue
        worst = max(each.relative for each in found.differences)
        fixed = "" if sizes == tuple(dynamic) else " (batch only)"
        return f"{worst:.0e}{fixed}"
    return f"no: {reason}"


def report(rows: Sequence[dict[str, str]]) -> str:
    """Return the page."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxscript", "onnxruntime"))
    lines = [
        "# What can be exported", "",
        "Networks with attention and random weights, as files of `cbam.export`, and the largest difference from eager",
        "mode over batches of 1 and 3 and images of several sizes, as a share of the largest output. Batch, height and",
        "width are dynamic, or what stands in brackets. The script has more networks than have been run for this page.",
        "Detectors: [Export](../export.md#detectors).", "",
        f"Made by `python benchmarks/export.py`, on {platform.machine()}: {versions}.",
    ]  # fmt: skip
    for group in dict.fromkeys(row["group"] for row in rows):
        cells = [
            [row["name"], *(row.get(title, "") for title in FILES)] for row in rows if row["group"] == group
        ]
        lines += ["", Section(group, ["", *FILES], cells).markdown()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, or write the report."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--only", default="", help="networks whose heading or name contains this")
    options.add_argument("--output", type=Path, default=Path("runs/export.jsonl"))
    options.add_argument("--report", type=Path, help="write the table and run nothing")
    given = options.parse_args()
    rows = Rows(given.output)
    if given.report:
        order = [case.name for case in cases()]
        known = sorted(
            (row for row in rows.read() if row["name"] in order), key=lambda row: order.index(row["name"])
        )
        given.report.write_text(report(known), encoding="utf-8")
        return
    rows.mend()
    done = {row["name"] for row in rows.read()}
    for case in cases():
        if case.name not in done and given.only in f"{case.group}: {case.name}":
            rows.append(measure(case))


if __name__ == "__main__":
    main()
