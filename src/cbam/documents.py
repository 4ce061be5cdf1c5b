"""Read files that strangers wrote: JSON, XML and YAML, none of which may take the machine's memory."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import yaml

from cbam.errors import CBAMError
from cbam.files import checked_path

_MOST_XML = 4 * 2**20  # bytes; a VOC file has a few hundred an object
_MOST_TEXT = 2**20
_DEEPEST = 20  # brackets inside each other in a YAML file
_MOST_JSON = 4 * 2**30  # COCO's largest has half a gigabyte


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        CBAMError: it cannot be read, or is no JSON.
    """
    content = _content(path, _MOST_JSON)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also bad UTF-8, integers of thousands of digits
        raise CBAMError(f"{path} is no valid JSON: {_reason(error)}.") from error


class RefusedFile(CBAMError):
    """A file that could harm whoever reads it, so it is not read."""


class _PlainTree(ET.TreeBuilder):
    """Refuses a document type, in which entities are declared: without it no text can grow or point elsewhere."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise RefusedFile("it declares a document type, which no annotations need; it could hide an XML bomb")


def read_xml(path: Path) -> ET.Element:
    """Return the root of an XML file without document type, at most 4 MiB.

    The parser announces a document type before it reads the entities inside, so stopping there refuses nested
    entities and external ones alike, in any encoding.

    Raises:
        RefusedFile: it declares a document type.
        CBAMError: it cannot be read, or is no XML.
    """
    content = _content(path, _MOST_XML)
    try:
        parser = ET.XMLParser(target=_PlainTree())
        parser.feed(content)
        return parser.close()
    except RefusedFile as error:
        raise RefusedFile(f"{path} is refused: {error}.") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        raise CBAMError(f"{path} is no valid XML: {_reason(error)}.") from error


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, by which a few lines can stand for gigabytes, and brackets in brackets, which take hours."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it repeats parts by *aliases, which no such file needs")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEEPEST:
            raise yaml.YAMLError(f"it has more than {_DEEPEST} brackets inside each other")
        super().fetch_flow_collection_start(token)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of at most 1 MiB without aliases holds.

    Raises:
        CBAMError: it cannot be read, is no YAML, or uses aliases.
    """
    content = _content(path, _MOST_TEXT)
    try:
        return yaml.load(content, Loader=_PlainLoader)  # a SafeLoader
    except (
        yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
        raise CBAMError(f"{path} cannot be used: {_reason(error)}.") from error


def read_text(path: Path, most: int = _MOST_TEXT) -> str:
    """Return the text of a file of at most `most` bytes.

    Raises:
        CBAMError: it cannot be read, or is not UTF-8.
    """
    try:
        return _content(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CBAMError(f"{path} is not a text in UTF-8: {error}.") from error


def inside(folder: Path, name: str) -> Path | None:
    """Return the path of `name` below `folder`, None if the name is empty, absolute, or leads out of it.

    Names come from annotation files. Links that lie in the folder are followed: its owner made them.

    >>> inside(Path("photos"), "a/./b.jpg"), inside(Path("photos"), "../../etc/passwd")
    (PosixPath('photos/a/b.jpg'), None)
    """
    plain = posixpath.normpath(name.replace("\\", "/"))
    leaves = plain == ".." or plain.startswith(("../", "/")) or plain[1:2] == ":"
    return None if not name or leaves or "\0" in name else folder / plain


def _content(path: Path, most: int) -> bytes:
    try:
        size = checked_path(path).stat().st_size
        if not path.is_file():
            raise CBAMError(f"{path} is no file.")
        content = path.read_bytes() if size <= most else b""
    except OSError as error:
        raise CBAMError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size > most:
        raise CBAMError(f"{path} is larger than {most:,} bytes, which no such file should be.")
    return content


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + " ..."
