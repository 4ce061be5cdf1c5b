"""The options of a long run: what each one changes, the form they are stored in, and which may change later."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

Value = TypeVar("Value")


def option(default: Value, *, affects_result: bool, affects_comparison: bool | None = None) -> Value:
    """Return a dataclass field that declares whether its value affects results. A plain field does.

    Args:
        default: The option's default.
        affects_result: Whether a run that resumes with another value would end with other numbers (differences of
            rounding aside). False for where, how fast and how much of a run is computed.
        affects_comparison: Whether models that were trained with different values cannot be compared with one
            another. None: as `affects_result`.

    >>> @dataclasses.dataclass
    ... class Config(RunConfig):
    ...     epochs: int = 10
    ...     workers: int = option(0, affects_result=False)
    >>> Config.differences({"epochs": 10, "workers": 0}, {"epochs": 20, "workers": 4})
    ['epochs: 10 there, 20 now']
    """
    across = affects_result if affects_comparison is None else affects_comparison
    field: Any = dataclasses.field(
        default=default, metadata={"affects_result": affects_result, "affects_comparison": across}
    )
    return field


class RunConfig:
    """Base of the dataclasses whose fields are the options of a long run.

    A field that holds a dataclass itself, such as a training recipe, contributes its fields. The fields `config`, the
    YAML file that options came from, and `overwrite` are not stored.
    """

    compares: ClassVar[bool] = False
    """Whether the run's cells are compared with one another, see `option`."""
    essential: ClassVar[tuple[str, ...]] = ()
    """Options without which stored settings are damaged."""

    @property
    def folder(self) -> Path:
        """The run's folder, relative as given."""
        raise NotImplementedError

    def resolved(self) -> dict[str, Any]:
        """Return every option's value by its name, as YAML and JSON hold it; subclasses fill in defaults."""
        settings: dict[str, Any] = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, item.name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                settings |= {key: _plain(each) for key, each in dataclasses.asdict(value).items()}
            elif item.name not in ("config", "overwrite"):
                settings[item.name] = _plain(value)
        return settings

    def as_started(self, before: dict[str, Any] | None) -> Self:
        """Return the options with which the same command once began the run in a folder: defaults may have changed.

        Args:
            before: The settings stored in the folder, if there are any.
        """
        return self

    @classmethod
    def differences(cls, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Name the settings in which two runs would give different results.

        An option that `before` does not hold was added since; the run had what is the default now.

        Args:
            before: The settings stored in the folder.
            now: Those of this call; both of `resolved`, and anything else that must be equal.
        """
        items = _items(cls)
        key = "affects_comparison" if cls.compares else "affects_result"
        before = {name: _default(items[name]) for name in now if name in items} | before
        found = []
        for name in dict.fromkeys([*before, *now]):
            if name in items and not items[name].metadata.get(key, True):
                continue
            there, here = _text(before.get(name)), _text(now.get(name))
            if there != here:
                found.append(f"{name}: {_short(there)} there, {_short(here)} now")
        return found


def _items(form: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a form and of its parts by name."""
    items: dict[str, dataclasses.Field[Any]] = {}
    for item in dataclasses.fields(form):
        if dataclasses.is_dataclass(item.default_factory):
            items |= _items(item.default_factory)
        else:
            items[item.name] = item
    return items


def _default(item: dataclasses.Field[Any]) -> Any:
    return None if item.default is dataclasses.MISSING else _plain(item.default)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> Any:
    # A list is the same as its parts with commas: options are written either way.
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
