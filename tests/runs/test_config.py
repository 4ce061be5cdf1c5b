"""Which options make two runs different is written at each option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cbam.runs.config import RunConfig, option


@dataclass(frozen=True)
class Recipe:
    epochs: int = 10
    workers: int = option(0, affects_result=False)
    parts: int = option(1, affects_result=False, affects_comparison=True)


@dataclass(frozen=True)
class Alone(RunConfig):
    data: str
    sites: tuple[str, ...] = ("auto",)
    output: Path | None = option(None, affects_result=False)
    config: Path | None = None
    train: Recipe = field(default_factory=Recipe)


class Compared(Alone):
    compares = True


def test_every_option_is_stored_by_its_name_as_yaml_has_it():
    settings = Alone(
        "digits", output=Path("runs/a"), config=Path("my.yaml"), train=Recipe(epochs=3)
    ).resolved()
    assert settings == {
        "data": "digits", "sites": ["auto"], "output": "runs/a", "epochs": 3, "workers": 0, "parts": 1,
    }  # fmt: skip
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_only_what_affects_results_is_a_difference():
    before = Alone("digits").resolved()
    elsewhere = Alone("digits", output=Path("b"), train=Recipe(workers=4, parts=2)).resolved()
    assert Alone.differences(before, elsewhere) == []
    other = Alone("digits", sites=("a", "b"), train=Recipe(epochs=3)).resolved()
    assert Alone.differences(before, other) == ["sites: auto there, a,b now", "epochs: 10 there, 3 now"]


def test_cells_that_are_compared_share_more():
    before, now = (Compared("digits", train=Recipe(parts=n, workers=n)).resolved() for n in (1, 2))
    assert Compared.differences(before, now) == ["parts: 1 there, 2 now"]


def test_an_option_that_is_new_had_its_default():
    before = Alone("digits").resolved()
    del before["epochs"], before["sites"]
    assert Alone.differences(before, Alone("digits").resolved()) == []
    now = Alone("digits", train=Recipe(epochs=3)).resolved()
    assert Alone.differences(before, now) == ["epochs: 10 there, 3 now"]


def test_what_is_no_option_has_to_be_equal():
    before = Alone("digits").resolved() | {"torch": "2.15"}
    now = Alone("digits").resolved() | {"torch": "2.16"}
    assert Alone.differences(before, now) == ["torch: 2.15 there, 2.16 now"]


def test_a_list_and_its_parts_with_commas_are_the_same():
    assert Alone.differences({"sites": "a,b"}, {"sites": ["a", "b"]}) == []
