"""A loader whose worker processes fail with the words that the main process would have used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from cbam.errors import CBAMError

_LOST = re.compile(r"DataLoader worker \(pid.*?(?:exited unexpectedly|is killed by signal: \w[\w ]*)")
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
        try:
            yield from super().__iter__()
        except (RuntimeError, CBAMError) as error:
            told = _told(str(error))
            if told is None:
                raise
            raise told from error


def _told(text: str) -> CBAMError | None:
    """Return the error that a text of torch's reports, None if it is none of these."""
    if lost := _LOST.search(text):
        return WorkerLost(
            f"a process that loads images was killed or has crashed ({lost[0]}), often because memory ran out. Nothing"
            " that was saved is lost: type the same again, and it resumes. Fewer --workers take less memory."
        )
    if "DataLoader worker process" in text and (found := list(_OURS.finditer(text))):
        return CBAMError(text[found[-1].end() :].strip())
    return None
