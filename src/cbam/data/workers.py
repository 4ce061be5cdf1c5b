"""A loader whose worker processes fail with the words that the main process would have used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from cbam.errors import CBAMError

_LOST = re.compile(r"DataLoader worker \(pid.*?(?:exited unexpectedly|is killed by signal: \w[\w ]*)")
_IN_WORKER = "DataLoader worker process"
# The end of the traceback that torch hands on as text: one of our errors and its message.
_OURS = re.compile(r"^cbam\.[\w.]+: ", re.M)


class WorkerLost(CBAMError):
    """A worker process of a loader has ended, as a rule because the system killed it."""

    exit_code = 1


class Loader(DataLoader[Any]):
    """`torch.utils.data.DataLoader`; an error of this library in a worker arrives without torch's traceback.

    Raises:
        CBAMError: what a worker met, in its words.
        WorkerLost: a worker has ended.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of an epoch."""
        iterator = super().__iter__()
        with _worded(iterator), _worded(iterator):  # torch may report a lost worker once more meanwhile
            yield from iterator


@contextmanager
def _worded(iterator: Any) -> Iterator[None]:
    try:
        yield
    except WorkerLost:
        raise
    except (RuntimeError, CBAMError, ConnectionError, EOFError) as error:
        told = _told(str(error))
        if told is None and _IN_WORKER not in str(error) and isinstance(error, (ConnectionError, EOFError)):
            told = _lost(f"{type(error).__name__}: {error}")  # it was writing a batch
        if told is None:
            raise
        if isinstance(told, WorkerLost):
            _forget(iterator)
        raise told from error


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Raise `WorkerLost` where torch reports a lost worker between two batches: it raises wherever the process is."""
    try:
        yield
    except RuntimeError as error:
        told = _told(str(error))
        if not isinstance(told, WorkerLost):
            raise
        raise told from error


def _forget(iterator: Any) -> None:
    """Take a lost worker off torch's list: it would raise again, anywhere, when the next child of the process ends."""
    with suppress(AttributeError):  # of a torch that keeps no such list
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _told(text: str) -> CBAMError | None:
    """Return the error that a text of torch's reports, None if it is none of these."""
    if lost := _LOST.search(text):
        return _lost(lost[0])
    if _IN_WORKER in text and (found := list(_OURS.finditer(text))):
        return CBAMError(text[found[-1].end() :].strip())
    return None


def _lost(how: str) -> WorkerLost:
    return WorkerLost(
        f"a process that loads images was killed or has crashed ({how}), often because memory ran out. Nothing"
        " that was saved is lost: type the same again, and it resumes. Fewer --workers take less memory."
    )
