"""Tables of files and their labels: CSV, TSV, JSON or JSON lines, whose columns are guessed by name and content."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.data.options import split_options
from cbam.data.pictures import SUFFIXES
from cbam.data.scan import some
from cbam.errors import CBAMError, unknown_name
from cbam.files import checked_path

OPTIONS = ("file", "label", "split", "separator", "task")
TASKS = ("multiclass", "multilabel")
SEPARATORS = (";", "|")
_FILES = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name"),
    *("image_file", "img", "img_path", "picture", "photo", "image_id", "id", "name"),
)
_LABELS = (
    *("label", "labels", "class", "classes", "class_name", "target", "targets", "category", "categories"),
    *("tag", "tags", "class_id", "y", "species", "breed", "diagnosis"),
)
_SPLITS = ("split", "set", "subset", "partition", "phase", "is_valid", "is_val", "is_test")
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


@dataclass(frozen=True)
class Table:
    """The rows of a file, as text; several labels of one image in JSON are a list.

    Attributes:
        path: the file.
        columns: their names in order.
        rows: a value for each column.
        lines: where each row stands in the file, from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]

    def values(self, column: str) -> list[Any]:
        """Return a column."""
        return [row[column] for row in self.rows]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        file: the name of the image's file.
        labels: one column with the label or labels, or several that say yes or no to one label each.
        split: training or validation, if a column says so.
        task: "multiclass" or "multilabel".
        separator: between the labels in a column, if there are several.
    """

    file: str
    labels: tuple[str, ...]
    split: str | None
    task: str
    separator: str

    @property
    def words(self) -> str:
        """What was found, for the user."""
        of = f"{self.labels[0]!r}" if len(self.labels) == 1 else f"{len(self.labels)} columns of 0 and 1"
        split = f", the split from {self.split!r}" if self.split else ""
        return f"files from column {self.file!r}, labels from {of}{split}: {self.task}"


def read_table(path: Path) -> Table:
    """Read a table.

    Args:
        path: a .csv or .tsv file with names in its first line; a .json file with a list of objects, or one object with
            the label of each file by its name; a .jsonl file with an object a line.

    Raises:
        CBAMError: there is no such file, it is none of these, or holds no rows.
    """
    if not checked_path(path).is_file():
        raise CBAMError(f"--labels {path}: there is no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CBAMError(f"--labels {path} is not text in UTF-8: {error}. Save it as UTF-8") from error
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        rows, lines = _json_rows(path, text)
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        columns, rows, lines = _csv_rows(path, text)
    else:
        raise CBAMError(f"--labels {path}: expected a name that ends in .csv, .tsv, .json or .jsonl")
    if not rows:
        raise CBAMError(f"--labels {path} holds no rows")
    if short := [line for row, line in zip(rows, lines, strict=True) if len(row) != len(columns)]:
        raise CBAMError(
            f"--labels {path}: {len(short):,} rows do not have the {len(columns)} values of {some(columns)}: "
            f"{_lines(short)}"
        )
    return Table(path, columns, rows, lines)


def find_columns(text: str) -> tuple[Table, Columns]:
    """Read a table and find out which of its columns hold what.

    Args:
        text: "FILE" or "FILE?file=COLUMN&label=COLUMN&split=COLUMN&separator=;&task=multilabel"; several columns of 0
            and 1 have commas between them, split=none ignores the split.

    Raises:
        CBAMError: see `read_table`; a column that does not exist; or it cannot be seen which one holds what.
    """
    name, options = split_options(text, OPTIONS)
    table = read_table(Path(name).expanduser())
    if (task := options.get("task")) is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    for option in ("file", "label", "split"):
        for column in options.get(option, "").split(","):
            if column and column not in table.columns and (option, column) != ("split", "none"):
                raise unknown_name("column", column, table.columns)
    file = options.get("file") or _file_column(table)
    split = options.get("split") or _named(table, _SPLITS, (file,))
    split = None if split == "none" else split
    used = [file, *([split] if split else [])]
    labels = tuple(options["label"].split(",")) if "label" in options else _label_columns(table, used)
    separator = options.get("separator") or _separator(table, labels)
    return table, Columns(file, labels, split, task or _task(table, labels, separator), separator)


def labels_of(table: Table, columns: Columns) -> list[tuple[str, ...]]:
    """Return the labels of every row.

    Raises:
        CBAMError: a column of 0 and 1 holds something else.
    """
    if len(columns.labels) == 1:
        values = table.values(columns.labels[0])
        return [_parts(value, columns.separator) for value in values]
    if wrong := [
        line
        for row, line in zip(table.rows, table.lines, strict=True)
        if not all(_is_flag(row[name]) for name in columns.labels)
    ]:
        raise CBAMError(
            f"--labels {table.path}: {len(wrong):,} rows hold something else than 0 or 1 in {some(columns.labels)}: "
            f"{_lines(wrong)}"
        )
    return [tuple(name for name in columns.labels if _yes(row[name])) for row in table.rows]


def is_validation(column: str, value: Any) -> str | None:
    """Return "train", "val" or "test" for the value of a split column; None if it is none of these.

    >>> is_validation("split", "Training"), is_validation("is_valid", "True"), is_validation("split", "fold 3")
    ('train', 'val', None)
    """
    word = str(value).strip().lower()
    if _plain(column).startswith("is_"):
        return ("val" if word in _YES else "train") if word in (*_YES, *_NO) else None
    names = {
        "train": ("train", "training"),
        "val": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }
    return next((side for side, of in names.items() if word in of), None)


def _csv_rows(path: Path, text: str) -> tuple[tuple[str, ...], list[dict[str, Any]], list[int]]:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    rows, lines = [], []
    try:
        columns = tuple(name.strip() for name in next(reader, []))
        if len(set(columns)) < len(columns) or "" in columns[1:]:
            raise CBAMError(
                f"--labels {path}: the names of its columns are empty or not unique: {some(columns)}"
            )
        for values in reader:
            if values:
                same = len(values) == len(columns)
                rows.append(dict(zip(columns, map(str.strip, values), strict=True)) if same else {})
                lines.append(reader.line_num)
    except csv.Error as error:
        raise CBAMError(f"--labels {path}, line {reader.line_num}: {error}") from error
    return columns, rows, lines


def _json_rows(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int]]:
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(text)
        else:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise CBAMError(f"--labels {path} is no JSON: {error}") from error
    if isinstance(content, dict):
        content = [{"file": file, "label": label} for file, label in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise CBAMError(
            f'--labels {path}: expected a list such as [{{"file": "a.jpg", "label": "cat"}}, ...]'
        )
    return [{name: _text(value) for name, value in row.items()} for row in content], [
        *range(1, len(content) + 1)
    ]


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [str(part).strip() for part in value]
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value).strip()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _named(table: Table, usual: Sequence[str], taken: Iterable[str]) -> str | None:
    found = {_plain(column): column for column in reversed(table.columns) if column not in taken}
    return next((found[name] for name in usual if name in found), None)


def _file_column(table: Table) -> str:
    def share(column: str) -> float:
        return sum(str(value).lower().endswith(SUFFIXES) for value in table.values(column)) / len(table.rows)

    named = _named(table, _FILES, ())
    if named is not None and share(named) > 0.5:
        return named
    like_files = [column for column in table.columns if share(column) > 0.5]
    if len(like_files) == 1 or (like_files and named is None):
        return like_files[0]
    if named is None:
        raise _unknown(table, "file", "the names of the files")
    return named


def _label_columns(table: Table, used: Sequence[str]) -> tuple[str, ...]:
    if named := _named(table, _LABELS, used):
        return (named,)
    rest = [column for column in table.columns if column not in used]
    flags = [column for column in rest if all(map(_is_flag, table.values(column)))]
    if len(flags) > 1:
        return tuple(flags)
    if len(rest) == 1:
        return (rest[0],)
    raise _unknown(table, "label", "the labels")


def _unknown(table: Table, option: str, what: str) -> CBAMError:
    return CBAMError(
        f"--labels {table.path}: which column holds {what}? There are {', '.join(table.columns)}. Type for example: "
        f"--labels '{table.path}?{option}={table.columns[-1]}'"
    )


def _separator(table: Table, labels: Sequence[str]) -> str:
    if len(labels) > 1:
        return ""
    values = [value for value in table.values(labels[0]) if isinstance(value, str)]
    return next((mark for mark in SEPARATORS if any(mark in value for value in values)), "")


def _task(table: Table, labels: Sequence[str], separator: str) -> str:
    if len(labels) > 1:
        return (
            "multiclass"
            if all(sum(_yes(row[n]) for n in labels) == 1 for row in table.rows)
            else "multilabel"
        )
    several = any(isinstance(value, list) for value in table.values(labels[0]))
    return "multilabel" if separator or several else "multiclass"


def _parts(value: Any, separator: str) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else value.split(separator) if separator else [value]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _is_flag(value: Any) -> bool:
    return str(value).lower() in (*_YES, *_NO)


def _yes(value: Any) -> bool:
    return str(value).lower() in _YES


def _lines(numbers: Sequence[int]) -> str:
    return f"line {some(map(str, numbers))}" if len(numbers) == 1 else f"lines {some(map(str, numbers))}"
