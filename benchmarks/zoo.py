"""Attach CBAM to every convolutional model of torchvision and timm, and check what `attach` promises.

    python benchmarks/zoo.py --library torchvision --output runs/zoo.jsonl
    python benchmarks/zoo.py --report docs/zoo.md --output runs/zoo.jsonl

For each model, with random weights and a small image: sites are found; every output is the same bit for bit; one
training step moves the gates at every site; the old state dict loads; `detach` gives the model back. Each runs in a
process of its own with a time limit; the same command goes on where it was stopped. Needs pip install '.[compare]';
the libraries smp (segmentation_models_pytorch: a U-Net around each encoder) and transformers need their packages.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import cbam
from cbam.attach import WithAttention
from cbam.runs.pool import Answer, Task, run_tasks, worker_pool
from cbam.runs.progress import Progress
from cbam.runs.rows import Rows
from cbam.runs.tables import markdown

LIBRARIES = ("torchvision", "timm", "smp", "transformers")
SIZES = (64, 128, 224, 299)
SECONDS = 900
STEPS = 6
LARGE, LARGE_WEIGHT = 150_000_000, 1_000_000  # parameters of a model, of one weight
# Name -> class and options of its configuration.
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-18": ("ResNet", BASIC),
    "resnet-50": ("ResNet", {}),
    "resnet-101": ("ResNet", {"depths": [3, 4, 23, 3]}),
    "regnet-x": ("RegNet", {"layer_type": "x"}),
    "regnet-y": ("RegNet", {"layer_type": "y"}),
    "convnext-tiny": ("ConvNext", {}),
    "convnextv2-tiny": ("ConvNextV2", {}),
}
_INTRODUCTION = (
    "A model passes if sites are found, every output is the same bit for bit after attaching, a training step",
    "moves the gates at every site, the old state dict loads, and `detach` gives the model back. Random weights,",
    "small images.",
)


def main() -> int:
    """Run what is missing, or write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=[*LIBRARIES, "all"], default="all")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--output", type=Path, default=Path("runs/zoo.jsonl"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, help="write the table and run nothing")
    options = parser.parse_args()
    rows = Rows(options.output)
    if options.report:
        options.report.write_text(report(rows.read()), encoding="utf-8")
        return 0
    rows.mend()
    done = {(row["library"], row["model"]) for row in rows.read()}
    chosen = [m for m in models(options.library) if options.only in m[1] or m in done]
    tasks = [Task(" ".join(model), check, model, limit=SECONDS) for model in chosen if model not in done]

    def keep(task: Task, answer: Answer) -> None:
        library, name = task.arguments
        found = {"library": library, "model": name, "seconds": answer.seconds, "family": "", "sites": 0}
        row = {**found, "convolutional": True, "reason": answer.error, **(answer.result or {})}
        rows.append(row)
        progress.begin(task.name)
        progress.end(f"{row['reason'] or 'passes'} ({answer.seconds:.0f} s)")

    with Progress() as progress, worker_pool(min(options.processes, len(tasks))) as workers:
        progress.start("model", len(chosen), len(chosen) - len(tasks))
        run_tasks(tasks, workers, keep)
    return 0


def models(library: str) -> Iterator[tuple[str, str]]:
    """Yield (library, name) of all models; whether they are convolutional is seen when they are built."""
    if library in ("torchvision", "all"):
        from torchvision.models import list_models

        yield from (("torchvision", name) for name in list_models() if not name.startswith("quantized"))
    if library in ("timm", "all"):
        import timm

        yield from (("timm", name) for name in timm.list_models())
    if library in ("smp", "all"):
        from segmentation_models_pytorch.encoders import get_encoder_names

        yield from (("smp", name) for name in get_encoder_names())
    if library in ("transformers", "all"):
        yield from (("transformers", name) for name in TRANSFORMERS)


def check(library: str, name: str) -> dict[str, Any]:
    """Return what attaching to one model gives."""
    torch.set_num_threads(1)
    with suppress(Exception), torch.device("meta"):  # not every model can be built without memory
        shape_only = build(library, name)
        if not is_convolutional(shape_only):
            return {"family": type(shape_only).__name__, "convolutional": False, "reason": ""}
    torch.manual_seed(0)
    model = build(library, name).eval()
    row: dict[str, Any] = {"family": type(model).__name__, "convolutional": is_convolutional(model)}
    if not row["convolutional"]:
        return {**row, "reason": ""}
    inputs, before = first_that_runs(model)
    old = copied_state(model)
    attachment = cbam.attach(model, example_input=inputs)
    row.update(sites=len(attachment.sites), notes=list(attachment.notes), size=size_of(inputs))

    def failed(reason: str) -> dict[str, Any]:
        return {**row, "reason": reason}

    if not same(outputs(model, inputs), before):
        return failed("the output is not the same")
    still = unmoved(model, inputs)
    if still:
        count = f"{len(still)} of {row['sites']}"
        return failed(f"a training step leaves {count} gates as they were, such as {still[0]}")
    loaded = model.load_state_dict(old, strict=False)
    if loaded.unexpected_keys or any(".cbam." not in key for key in loaded.missing_keys):
        return failed("the old state dict does not fit")
    cbam.detach(model)
    if list(model.state_dict()) != list(old) or not same(outputs(model.eval(), inputs), before):
        return failed("detach does not give the model back")
    return {**row, "reason": ""}


def build(library: str, name: str) -> Any:
    """Return the model with random weights; detectors for small images."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    if library == "smp":
        import segmentation_models_pytorch

        return segmentation_models_pytorch.Unet(name, encoder_weights=None, classes=2)
    if library == "transformers":
        import transformers

        kind, given = TRANSFORMERS[name]
        config = getattr(transformers, f"{kind}Config")(**given)
        return getattr(transformers, f"{kind}ForImageClassification")(config)
    from torchvision.models import get_model, get_model_builder

    options: dict[str, Any] = {"weights": None}
    builder = get_model_builder(name)
    if "detection" in builder.__module__ or "segmentation" in builder.__module__:
        options["weights_backbone"] = None
    if "rcnn" in name or "retinanet" in name or "fcos" in name:
        options.update(min_size=128, max_size=160)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return get_model(name, **options)


def is_convolutional(model: Any) -> bool:
    """Return whether the network convolves beyond a stem of patches: three kernels or more that overlap."""
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return sum(m.kernel_size != m.stride for m in kernels) >= 3


def first_that_runs(model: Any) -> tuple[tuple[Any, ...], Any]:
    """Return inputs of the smallest size that the model takes, and its outputs."""
    config = getattr(model, "default_cfg", None) or {}
    # The second classifier of the Inceptions, used in training, needs the whole map.
    fixed = config.get("fixed_input_size") or type(model).__name__ in ("Inception3", "InceptionV3")
    sizes = [] if fixed else list(SIZES)
    problem: Exception | None = None
    for size in [*sizes, config.get("input_size", (3, 299, 299))[-1]]:
        images = torch.rand(2, config.get("input_size", (3,))[0], size, size)
        inputs = (list(images),) if is_detector(model) else (images,)
        if "optical_flow" in type(model).__module__:
            inputs = (images, images.flip(-1))
        try:
            return inputs, outputs(model, inputs)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            problem = error
    raise RuntimeError(f"runs at no size: {problem}")


def is_detector(model: Any) -> bool:
    """Return whether the model takes a list of images and targets."""
    return ".detection." in type(model).__module__


def size_of(inputs: tuple[Any, ...]) -> int:
    """Return the images' height."""
    return int(inputs[0][0].shape[-1])


def outputs(model: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Return all tensors that the model returns."""
    with torch.no_grad():
        return [t for t in tree_leaves(model(*inputs)) if isinstance(t, torch.Tensor)]


def same(got: list[Any], expected: list[Any]) -> bool:
    """Return whether the tensors are equal bit for bit, NaN being NaN."""
    return len(got) == len(expected) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(7.0, 8.0, 9.0), b.nan_to_num(7.0, 8.0, 9.0))
        for a, b in zip(got, expected, strict=True)
    )


def large_weights(model: Any) -> list[Any]:
    """Return the weights that are neither trained nor copied: none, but in models of very many parameters."""
    if sum(p.numel() for p in model.parameters()) < LARGE:
        return []
    return [p for p in model.parameters() if p.numel() > LARGE_WEIGHT]


def copied_state(model: Any) -> Any:
    """Return the state dict with its metadata, since some models look for their version, as a copy."""
    state = model.state_dict()
    shared = {p.data_ptr() for p in large_weights(model)}
    for key, value in state.items():
        if getattr(value, "data_ptr", None) and value.data_ptr() not in shared:
            state[key] = value.clone()
    return state


def unmoved(model: Any, inputs: tuple[Any, ...]) -> list[str]:
    """Train one step, or more where stochastic depth passed sites over; return the sites that have not moved."""
    model.train()
    sites = {name: module.cbam for name, module in model.named_modules() if isinstance(module, WithAttention)}
    start = {name: [p.detach().clone() for p in gate.parameters()] for name, gate in sites.items()}
    # Adam moves what has a gradient, however small that is behind random weights. Gradients and moments of a billion
    # parameters do not fit into a laptop: in a large model the large weights are frozen.
    for parameter in large_weights(model):
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    arguments = inputs
    if is_detector(model):
        side = size_of(inputs)
        target = {"boxes": torch.tensor([[4.0, 4.0, side / 2, side / 2]]), "labels": torch.tensor([1])}
        if "Mask" in type(model).__name__:
            target["masks"] = torch.ones(1, side, side, dtype=torch.uint8)
        if "Keypoint" in type(model).__name__:
            target["keypoints"] = torch.ones(1, 17, 3) * side / 4
        arguments = (*inputs, [target, target])
    still = list(sites)
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = [t for t in tree_leaves(model(*arguments)) if isinstance(t, torch.Tensor) and t.requires_grad]
        sum((t.float() * torch.rand(t.shape)).sum() for t in found).backward()
        optimizer.step()
        still = [
            name
            for name in still
            if all(torch.equal(p, old) for p, old in zip(sites[name].parameters(), start[name], strict=True))
        ]
        if not still:
            break
    return still


def version_of(library: str) -> str:
    """Return the version of a library, or an empty text where it is not installed."""
    package = {"smp": "segmentation_models_pytorch"}.get(library, library)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table by family, and every failure with its reason."""
    lines = ["# The zoo: attaching CBAM to every model", "", *_INTRODUCTION]
    lines[-1] += (
        f" Written by `python benchmarks/zoo.py --report`; cbam {cbam.__version__}, torch {torch.__version__}."
    )
    for library in LIBRARIES:
        own = [row for row in rows if row["library"] == library]
        if not own:
            lines += ["", f"**{library}: not run yet.**"]
            continue
        conv = [row for row in own if row["convolutional"]]
        passed = sum(not row["reason"] for row in conv)
        lines += ["", f"## {library} {version_of(library)}", ""]
        lines += [f"{passed} of {len(conv)} convolutional models pass;"]
        lines += [f"{len(own) - len(conv)} others (fewer than three kernels that overlap) were left out.", ""]
        with suppress(ImportError):
            done = {row["model"] for row in own}
            if waiting := [name for _, name in models(library) if name not in done]:
                lines += [f"Not run: {', '.join(waiting)}.", ""]
        families = defaultdict(list)
        for row in conv:
            families[row["family"] or row["model"]].append(row)
        table = []
        for family, members in sorted(families.items()):
            sites, good = [row["sites"] for row in members], sum(not row["reason"] for row in members)
            span = str(min(sites)) if min(sites) == max(sites) else f"{min(sites)} to {max(sites)}"
            table.append([family, str(len(members)), str(good), f"{100 * good / len(members):.0f} %", span])
        lines += markdown(["family", "models", "pass", "share", "sites"], table)
        if failures := [[row["model"], row["reason"].replace("|", "/")] for row in conv if row["reason"]]:
            lines += ["", *markdown(["fails", "why"], failures)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
