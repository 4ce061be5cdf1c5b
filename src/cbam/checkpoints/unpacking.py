"""Find the state dict in the content of a file, and drop the prefixes that wrappers add to its names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cbam.checkpoints.pickled import kind_of
from cbam.checkpoints.reading import Content, check_names, is_dense
from cbam.checkpoints.switches import ORDER, Switches, of_block, read_switches
from cbam.errors import CBAMError, unknown_name
from cbam.ops.reference import DESCRIPTOR_ORDERS

# In the order in which they are tried; "state_dict_ema" is timm's running average.
ENTRIES = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net")
PREFIXES = ("module.", "_orig_mod.")
OPTIONAL_PREFIXES = ("model.", "backbone.", "net.")
AVERAGED = "n_averaged"  # torch's AveragedModel counts in it, beside "module."
DEEPEST_ENTRY = 8
MOST_PREFIXES = 8


@dataclass(frozen=True)
class Unpacked:
    """A state dict from a file.

    Args:
        name: of the file, for messages.
        shapes: names to tensors, perhaps without data.
        notes: for the report.
        metadata: of the file.
        switches: what it says of its attention, see `switches`.
        content: of the file.
        path: keys that lead to the state dict.
        prefix: the one that was dropped.
    """

    name: str
    shapes: dict[str, Tensor]
    notes: tuple[str, ...]
    metadata: Mapping[str, str]
    switches: Switches
    content: Content
    path: tuple[str, ...]
    prefix: str

    def order_of(self, prefix: str) -> str | None:
        """Return in which order a block's kernel reads; None if the file does not say it."""
        said = of_block(self.switches, prefix).get("descriptor_order") or self.metadata.get(ORDER)
        return said if said in DESCRIPTOR_ORDERS else None

    def tensors(self) -> dict[str, Tensor]:
        """Return names to tensors with their data."""
        tree: Any = self.content.read()
        for key in self.path:
            tree = tree[key]
        return {str(key).removeprefix(self.prefix): tree[key] for key in tree}

    def holding(self, state: dict[str, Tensor]) -> Unpacked:
        """Return a copy that holds these tensors instead."""
        return replace(
            self, shapes=state, content=replace(self.content, read=lambda: state), path=(), prefix=""
        )


def unpack(content: Content, entry: str | None = None, wanted: Iterable[str] = ()) -> Unpacked:
    """Find the state dict in the content of a file.

    Args:
        content: of the file.
        entry: name of the state dict in it; by default the first of `ENTRIES` that is there, or the only one.
        wanted: keys of the model: a prefix such as "model." is dropped only if more keys then match.

    Raises:
        CBAMError: no state dict, one that holds other things than dense tensors, or an unknown entry.
    """
    tree: Any = content.tree
    path: list[str] = []
    notes: list[str] = []
    if entry is not None:
        inside = [key for key, value in tree.items() if isinstance(key, str) and isinstance(value, Mapping)]
        if entry not in inside:
            raise unknown_name("entry", entry, inside)
    while True:
        choice = entry if entry is not None and not path else _entry(tree)
        if choice is None:
            break
        others = [key for key in ENTRIES if key != choice and isinstance(tree.get(key), Mapping)]
        notes += [f"the file also holds {key!r}; to load that pass entry={key!r}" for key in others]
        path.append(choice)
        if len(path) > DEEPEST_ENTRY:
            raise CBAMError(
                f"{content.name!r} holds entries in entries ({'.'.join(path[:3])}...), in itself or more than"
                f" {DEEPEST_ENTRY} deep. Save the state dict alone."
            )
        tree = tree[choice]
    if not _is_state_dict(tree):
        odd = next((f"{k!r}: {kind_of(v)}" for k, v in tree.items() if not is_dense(v)), "nothing")
        raise CBAMError(
            f"{content.name!r} holds no state dict of dense tensors; it holds {odd}.{_entries(tree)}"
        )
    check_names(tree, repr(content.name))
    if path:
        notes.insert(0, f"taken from the entry {'.'.join(path)!r}")
    names = set(wanted)
    keys = [key for key in tree if key != AVERAGED or AVERAGED in names or not _is_average(tree)]
    prefix = _prefix(keys, names)
    if prefix:
        notes.append(f"the prefix {prefix!r} was dropped")
    shapes = {key.removeprefix(prefix): tree[key] for key in keys}
    switches = read_switches(tree, content.metadata, prefix, repr(content.name))
    return Unpacked(
        content.name, shapes, tuple(notes), content.metadata, switches, content, tuple(path), prefix
    )


def _entry(tree: Mapping[str, Any]) -> str | None:
    """Return the entry to look into: one of `ENTRIES`, or the only one that holds a state dict."""
    known = next((key for key in ENTRIES if isinstance(tree.get(key), Mapping)), None)
    others = _state_dicts(tree)
    return known or (others[0] if len(others) == 1 else None)


def _state_dicts(tree: Mapping[str, Any]) -> list[str]:
    return [k for k, v in tree.items() if isinstance(k, str) and isinstance(v, Mapping) and _is_state_dict(v)]


def _is_state_dict(tree: Mapping[str, Any]) -> bool:
    return bool(tree) and all(is_dense(value) for value in tree.values())


def _is_average(tree: Mapping[str, Any]) -> bool:
    return all(key == AVERAGED or key.startswith(PREFIXES[0]) for key in tree)


def _entries(tree: Mapping[str, Any]) -> str:
    names = ", ".join(repr(key)[:60] for key in _state_dicts(tree)[:4])
    return f" These entries are state dicts: {names}. Pass one as entry=... (--entry)." if names else ""


def _prefix(keys: list[str], wanted: set[str]) -> str:
    dropped, matching = "", _matching(keys, "", wanted)
    for _ in range(MOST_PREFIXES):
        for prefix in PREFIXES + OPTIONAL_PREFIXES:
            longer = dropped + prefix
            if not _can_drop(longer, keys, some=prefix in OPTIONAL_PREFIXES):
                continue
            then = _matching(keys, longer, wanted)
            if then > matching or (prefix in PREFIXES and not matching):
                dropped, matching = longer, then
                break
        else:
            break
    return dropped


def _can_drop(prefix: str, keys: list[str], *, some: bool) -> bool:
    """Return whether all keys begin with a prefix; or most, beside a loss of a Lightning module with a weight."""
    with_it = [key for key in keys if key.startswith(prefix) and len(key) > len(prefix)]
    enough = 2 * len(with_it) > len(keys) if some else len(with_it) == len(keys)
    return enough and len({key.removeprefix(prefix) for key in keys}) == len(keys)


def _matching(keys: list[str], prefix: str, wanted: set[str]) -> int:
    return sum(key.removeprefix(prefix) in wanted for key in keys)
