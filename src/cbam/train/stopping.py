"""Stop at the end of a step when a user or a batch system asks for it: all processes at one step, nothing lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

from cbam.errors import CBAMError

if TYPE_CHECKING:
    from accelerate import Accelerator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
CTRL_C = (signal.SIGINT,)
SIGNALS = (
    *CTRL_C,
    *(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)),
)
_STEPS_BETWEEN_REDUCTIONS = 10


class Preempted(CBAMError):
    """The training stopped at the end of a step as requested; its state is saved."""

    exit_code = EXIT_CODE


class Interrupted(KeyboardInterrupt):
    """The training stopped at the end of a step after Ctrl-C; its state is saved."""


class Stop:
    """A request to stop.

    Attributes:
        reason: Name of the signal; empty while there was none.
    """

    def __init__(self) -> None:
        self.reason = ""

    @contextmanager
    def listening(self, signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[Stop]:
        """Treat signals as requests to stop inside a `with` block; a second one acts as it did before.

        Slurm sends SIGUSR1 some time before SIGTERM where it is asked to (`--signal=USR1@600`).

        Args:
            signals: By default Ctrl-C, SIGTERM and SIGUSR1.
        """
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # Python lets only the main thread do this
            yield self
            return
        before = {number: signal.getsignal(number) for number in signals}

        def ask(number: int, frame: FrameType | None) -> None:
            self.reason = signal.Signals(number).name
            for each, handler in before.items():
                signal.signal(each, handler)
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                # Not through the display: the signal may have come while that holds its lock.
                os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")

        for number in signals:
            signal.signal(number, ask)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """Return whether to stop after this step: all processes do as soon as one has a request.

        Args:
            accelerator: Connects the processes.
            step: The same number on all of them; they communicate only every few steps, since it takes time.

        >>> from accelerate import Accelerator
        >>> stop = Stop()
        >>> stop.agreed(Accelerator(cpu=True), 3)
        False
        """
        if accelerator.num_processes == 1:
            return bool(self.reason)
        if step % _STEPS_BETWEEN_REDUCTIONS:
            return False
        asked = torch.tensor(float(bool(self.reason)), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)
