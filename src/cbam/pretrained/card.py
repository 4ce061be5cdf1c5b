"""The card of a network on the hub: a README.md made from its config.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from torch import nn

from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.formatting import counted
from cbam.nn.registry import attention_kind
from cbam.pretrained.config import Attention, Config

CARD = "README.md"
_MOST_SITES = 12
_MOST_CLASSES = 10
_SEAL = re.compile(r"<!-- card of torch-cbam, seal ([0-9a-f]{16}) -->\n\Z")


def write_card(
    config: Config,
    name: str,
    model: nn.Module,
    metrics: Mapping[str, float | str] | None = None,
    revision: str | None = None,
) -> str:
    """Return the text of README.md.

    Args:
        config: of the saved network.
        name: "user/name" on the hub.
        model: the network itself, for its number of parameters.
        metrics: numbers or strings by name, shown as they are.
        revision: under which the files are, where that is not the main branch.

    Raises:
        CBAMError: metrics that are neither numbers nor strings.

    >>> from cbam.pretrained import Config
    >>> card = write_card(Config("full", "", None, ()), "user/name", nn.Linear(2, 2), {"top-1": 0.9125})
    >>> [line for line in card.splitlines() if "0.9125" in line or "parameters" in line]
    ['| parameters | 6 |', '| top-1 | 0.9125 |']
    """
    parts = [
        _front(config), f"# {name.split('/')[-1]}", _first_sentence(config), _loading(config, name, revision),
        _network(config, model), _attention(config.attention), _results(metrics), _citations(config.attention),
    ]  # fmt: skip
    text = "\n\n".join(part for part in parts if part) + "\n\n"
    return f"{text}<!-- card of torch-cbam, seal {_seal(text)} -->\n"


def is_untouched(text: str) -> bool:
    """Whether a README.md is a card as `write_card` wrote it, unchanged.

    >>> is_untouched("# My network")
    False
    """
    text = text.replace("\r\n", "\n")
    found = _SEAL.search(text)
    return found is not None and found[1] == _seal(text[: found.start()])


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _front(config: Config) -> str:
    lines = ["---", "library_name: torch-cbam"]
    # build_model builds classifiers only, and only a classifier has class names
    if config.backbone is not None or config.class_names is not None:
        lines.append("pipeline_tag: image-classification")
    tags = ["pytorch", "attention", *dict.fromkeys(_tag(group) for group in config.attention)]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _first_sentence(config: Config) -> str:
    what = "A network" if config.backbone is None else f"`{config.backbone.name}`"
    forms = dict.fromkeys(_named(group) for group in config.attention)
    sites = sum(len(group.sites) for group in config.attention)
    having = f" with {' and '.join(forms)} at {counted(sites, 'site')}" if forms else ""
    saved = "Saved with the Python library torch-cbam."
    if config.content == "attention":
        saved = (
            "This repository holds the gates of the attention, the head and the batch norms only. The other"
            " weights are those of a base network, which is needed to load it. " + saved
        )
    return f"{what}{having}. {saved}"


def _tag(group: Attention) -> str:
    return re.sub("[^a-z0-9]+", "-", attention_kind(group.kind).title.lower()).strip("-")


def _named(group: Attention) -> str:
    """Return the kind with the one option that matters most: "CBAM (preset `official`)"."""
    kind = attention_kind(group.kind)
    if not kind.headline:
        return kind.title
    value = group.preset if kind.headline == "preset" else group.options.get(kind.headline)
    return f"{kind.title} ({kind.headline} `{value}`)"


def _loading(config: Config, name: str, revision: str | None) -> str:
    said = [json.dumps(name)]
    needs = ""
    if config.content == "attention":
        said.append("base")
        needs = (
            "\n\n`base` is the network without attention, with exactly the weights that this one had before its"
            " attention was trained; other weights are refused."
        )
        if config.backbone is not None:
            backbone = config.backbone
            built = (
                f"build_model({backbone.name!r}, {backbone.num_classes}, in_channels={backbone.in_channels})"
            )
            needs += f" Its layers are those of `cbam.models.{built}`."
    elif config.backbone is None:
        said.append("network")
        needs = "\n\n`network` is the network without attention; its weights are replaced."
    if revision is not None:
        said.append(f"revision={json.dumps(revision)}")
    code = f"import cbam\n\nmodel = cbam.from_pretrained({', '.join(said)})"
    after = "The network is returned in eval mode; `model.cbam_config` holds the details below."
    return f"## Load\n\n```python\n{code}\n```\n\n{after}{needs}"


def _network(config: Config, model: nn.Module) -> str:
    rows: list[tuple[str, object]] = []
    if config.backbone is not None:
        rows.append(("backbone", f"`{config.backbone.name}`"))
        rows.append(("outputs", config.backbone.num_classes))
    total = sum(parameter.numel() for parameter in model.parameters())
    gates = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if isinstance(module, WithAttention)
        for parameter in module.cbam.parameters()
    }
    share = f", {sum(gates.values()):,} of them in the attention" if gates else ""
    rows.append(("parameters", f"{total:,}{share}"))
    if config.class_names is not None:
        first = ", ".join(config.class_names[:_MOST_CLASSES])
        more = ", ..." if len(config.class_names) > _MOST_CLASSES else ""
        rows.append(("classes", f"{len(config.class_names)}: {first}{more}"))
    if config.input_size is not None:
        rows.append(("input size", " x ".join(map(str, config.input_size))))
    for name, row in (("mean", config.mean), ("standard deviation", config.std)):
        if row is not None:
            rows.append((name, ", ".join(map(str, row))))
    return "## The network\n\n" + _table(("", ""), rows)


def _attention(groups: tuple[Attention, ...]) -> str:
    if not groups:
        return ""
    parts = ["## Attention"]
    for group in groups:
        options = ", ".join(f"`{name}={value!r}`" for name, value in group.options.items())
        parts.append(f"{_named(group)}{': ' if options else ''}{options}.")
        shown = group.sites if len(group.sites) <= _MOST_SITES else group.sites[: _MOST_SITES - 1]
        head = ["module", "position", "channels", "reduction ratio"]
        rows = [[f"`{s.path}`", s.position, s.channels, s.reduction_ratio] for s in shown]
        if all(s.reduction_ratio is None for s in group.sites):
            head, rows = head[:-1], [row[:-1] for row in rows]
        parts.append(_table(head, rows))
        if len(shown) < len(group.sites):
            parts.append(f"And {len(group.sites) - len(shown)} more; `config.json` has them all.")
    return "\n\n".join(parts)


def _results(metrics: Mapping[str, float | str] | None) -> str:
    if not metrics:
        return ""
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, (Real, str)):
            raise CBAMError(f"metrics expects numbers or strings by name, got {name!r}: {value!r:.80}.")
    note = "As reported by the publisher of the network; torch-cbam did not measure them."
    return f"## Results\n\n{_table(('metric', 'value'), metrics.items())}\n\n{note}"


def _citations(groups: tuple[Attention, ...]) -> str:
    papers = "\n\n".join(
        dict.fromkeys(filter(None, (attention_kind(group.kind).citation for group in groups)))
    )
    return f"## Citation\n\n```bibtex\n{papers}\n```" if papers else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    """Return text that stays within one cell of a table."""
    return " ".join(str(value).split()).replace("|", r"\|")
