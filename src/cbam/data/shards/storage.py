"""Byte ranges of many files, in a folder or at a URL; no file is open before the first read of a process."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from cbam.errors import CBAMError, MissingExtra

MOST_OPEN_FILES = 64
MERGE_GAP = 64 * 1024  # reading this much too much is faster than another request
MERGED_BYTES = 8 * 1024 * 1024
_TRIES, _FIRST_WAIT_S = 4, 0.5
_SILENCE_S = 30  # a server that sends nothing for so long has failed; object stores' own packages have their own limits
_LOCAL = ("file://", "local://")
_TAGS = ("etag", "md5", "content-md5", "mtime", "last-modified", "lastmodified")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stamp:
    """Identifies a version of a file: its size, and its modification time or the server's tag."""

    size: int
    tag: str

    def fits(self, other: Stamp) -> bool:
        """Whether both may be the same file; tags of different kinds (a copy elsewhere) prove nothing."""
        kinds = {self.tag.partition(":")[0], other.tag.partition(":")[0]}
        return self.size == other.size and (len(kinds) > 1 or self.tag == other.tag)


class NotThere(CBAMError):
    """There is no such file, or it may not be read."""


def is_remote(location: str) -> bool:
    """Whether `location` is a URL and not a path.

    >>> is_remote("s3://bucket/train-0000.tar"), is_remote("/data/train-0000.tar")
    (True, False)
    """
    return "://" in location and not location.startswith(_LOCAL)


def local_path(location: str) -> Path:
    """Return the path of a `location` that is not a URL."""
    for prefix in _LOCAL:
        location = location.removeprefix(prefix)
    return Path(location).expanduser()


# A forked worker drops those of its parent. They must not be collected there: closing their connections would take
# these out of the epoll that both processes share, and the parent would wait for answers that have come.
_used: dict[int, Any] = {}


def filesystem(url: str) -> Any:
    """Return fsspec's file system for `url`, one for each process.

    Raises:
        CBAMError: no such protocol.
        MissingExtra: its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https") and "client_kwargs" not in fsspec.config.conf.get(protocol, {}):
            from aiohttp import ClientTimeout

            limits = ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            options["client_kwargs"] = {"timeout": limits}
        found = fsspec.core.url_to_fs(url, **options)[0]
        return _used.setdefault(id(found), found)
    except ImportError as error:
        package = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        raise MissingExtra(
            f"reading from {protocol}://", "remote", package.get(protocol, protocol)
        ) from error
    except ValueError as error:
        raise CBAMError(
            f"{url!r} cannot be read: {error}. Give a path, or https://, s3://, gs:// ..."
        ) from error


def stamp(location: str) -> Stamp:
    """Return size and tag of one file.

    Raises:
        CBAMError: there is no such file, or it cannot be asked for.
    """
    if not is_remote(location):
        try:
            status = local_path(location).stat()
        except OSError as error:
            kind = NotThere if isinstance(error, (FileNotFoundError, NotADirectoryError)) else CBAMError
            raise kind(f"{location} cannot be read: {error.strerror}.") from error
        return Stamp(status.st_size, f"mtime:{status.st_mtime_ns}")
    files = filesystem(location)
    info = _again(lambda: files.info(location), location)
    if info.get("size") is None:
        raise CBAMError(
            f"{location}: the server does not tell how long it is, so it cannot be read in parts."
        )
    known = {str(key).lower(): value for key, value in info.items()}
    tag = next((f"{key}:{known[key]}" for key in _TAGS if known.get(key)), "")
    return Stamp(int(info["size"]), tag)


def with_open(location: str, use: Callable[[IO[bytes]], Result]) -> Result:
    """Return what `use` makes of one open file, which it reads from front to back, with seeks forward.

    Raises:
        CBAMError: the file cannot be read to its end, over a network after some tries; or raised by `use`.
    """
    if not is_remote(location):
        try:
            with local_path(location).open("rb") as stream:
                return use(stream)
        except OSError as error:
            raise CBAMError(f"{location} cannot be read: {error.strerror or error}.") from error
    files = filesystem(location)

    def attempt() -> Result:
        with files.open(location, "rb", block_size=MERGED_BYTES, cache_type="readahead") as stream:
            return use(stream)

    return _again(attempt, location)


def read_all(location: str, limit: int) -> bytes | None:
    """Return the content of a small file; None if it does not exist.

    Raises:
        CBAMError: it is longer than `limit` bytes, or cannot be read.
    """
    try:
        size = stamp(location).size
    except NotThere:
        return None
    if size > limit:
        raise CBAMError(f"{location} has {size:,} bytes, more than {limit:,}; it is not what its name says.")
    if not is_remote(location):
        return with_open(location, lambda stream: stream.read())
    files = filesystem(location)
    return bytes(_again(lambda: files.cat_file(location), location))


class Storage:
    """Reads ranges of files; for worker processes: a copy opens its own files at its first read.

    Args:
        locations: paths, or URLs of one protocol.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"0123456789"), file.flush()
        ...     Storage([file.name]).read([(0, 2, 5), (0, 9, 10)])
        [b'234', b'9']
    """

    def __init__(self, locations: Sequence[str]):
        self.locations = list(locations)
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"locations": self.locations}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["locations"])  # type: ignore[misc]

    def __del__(self) -> None:
        # After a fork the descriptors are copies that this process must close as well.
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def read(self, wanted: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Return the bytes of each (number of the file, start, end); over a network, neighbours are fetched together.

        Raises:
            CBAMError: a file is gone, has become shorter, or its server cannot read parts.
        """
        if not wanted:
            return []
        if not is_remote(self.locations[0]):
            return [self._whole(part, self._pread(*part)) for part in wanted]
        runs = list(_merged(wanted))
        blocks = self._fetched([(number, start, end) for number, start, end, _ in runs])
        found: dict[int, bytes] = {}
        for (number, start, end, members), block in zip(runs, blocks, strict=True):
            self._whole((number, start, end), block)
            for position in members:
                _, first, last = wanted[position]
                found[position] = block[first - start : last - start]
        return [found[position] for position in range(len(wanted))]

    def _whole(self, part: tuple[int, int, int], block: bytes) -> bytes:
        number, start, end = part
        if len(block) != end - start:
            raise CBAMError(
                f"{self.locations[number]}: bytes {start:,} to {end:,} were asked for, {len(block):,} came. Either "
                "the file has changed since it was indexed, or its server cannot read parts (HTTP range requests)."
            )
        return block

    def _fetched(self, ranges: list[tuple[int, int, int]]) -> list[bytes]:
        files = filesystem(self.locations[ranges[0][0]])
        paths, starts, ends = zip(*((self.locations[number], a, b) for number, a, b in ranges), strict=True)

        def fetch() -> list[
            bytes
        ]:  # together: an object store has a high latency, but serves many requests at a time
            return files.cat_ranges(list(paths), list(starts), list(ends), on_error="raise")

        return [bytes(block) for block in _again(fetch, paths[0])]

    def _pread(self, number: int, start: int, end: int) -> bytes:
        try:
            descriptor = self._descriptor(number)
            parts, position = [], start
            while position < end and (part := os.pread(descriptor, end - position, position)):
                parts.append(part)
                position += len(part)
            return b"".join(parts)
        except OSError as error:
            raise CBAMError(f"{self.locations[number]} cannot be read: {error.strerror}.") from error

    def _descriptor(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= MOST_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = os.open(local_path(self.locations[number]), os.O_RDONLY)
        return self._open[number]


def _merged(wanted: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int, list[int]]]:
    """Yield (file, start, end, positions in `wanted`) with nearby ranges merged."""
    run: tuple[int, int, int, list[int]] | None = None
    for position in sorted(range(len(wanted)), key=lambda position: wanted[position]):
        number, start, end = wanted[position]
        near = run is not None and run[0] == number and start <= run[2] + MERGE_GAP
        if run is not None and near and max(end, run[2]) - run[1] <= MERGED_BYTES:
            run = (number, run[1], max(end, run[2]), [*run[3], position])
            continue
        if run is not None:
            yield run
        run = (number, start, end, [position])
    if run is not None:
        yield run


def _again(ask: Callable[[], Result], location: str) -> Result:
    """Try a request up to `_TRIES` times: of millions a few fail even on a good network."""
    for attempt in range(_TRIES):
        try:
            return ask()
        except CBAMError:
            raise
        except Exception as error:  # every protocol has its own errors
            final = isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError))
            if final and not _is_passing(error.__cause__):
                raise NotThere(f"{location} cannot be read: {error or type(error).__name__}.") from error
            if attempt == _TRIES - 1:
                raise CBAMError(
                    f"{location} could not be read in {_TRIES} tries: {reason_of(error)}."
                ) from error
            time.sleep(_FIRST_WAIT_S * 2**attempt)
    raise AssertionError


def _is_passing(cause: BaseException | None) -> bool:
    """Whether the cause of a "no such file" is a failure of the network, which fsspec calls so over HTTP."""
    status = getattr(cause, "status", None)  # of the server's answer
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    lost = isinstance(cause, (TimeoutError, asyncio.TimeoutError, ConnectionError))
    return lost or type(cause).__module__.partition(".")[0] == "aiohttp"


def reason_of(error: BaseException) -> str:
    """Return what failed, in words."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"no answer within {_SILENCE_S:g} seconds"
    return str(error) or type(error).__name__
