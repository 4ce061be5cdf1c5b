"""`cbam VERB ...`: find the verb, run it, and turn what went wrong into a sentence and an exit code.

Exit codes: 0 done, 1 failed, 2 asked for something that does not exist, 130 stopped by Ctrl-C, 143 by a TERM signal.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cbam.errors import CBAMError, MissingExtra, nearest

# Verb -> what it does. The file of that name holds main(arguments) and is imported only when it is needed.
VERBS = {
    "compare": "train plain, SE, CBAM and a control on your images; report whether attention helps",
    "ablate": "repeat the paper's ablations on your images, with seeds and spread",
    "train": "train one network with attention, on a laptop or many GPUs; stopped, it goes on",
    "evaluate": "top-1 and top-5 of a trained network, every image counted once",
    "plan": "show where attention would go in a model; change nothing",
    "cost": "count parameters, multiply-adds and memory of a model",
    "bench": "time the attention beside its rivals and beside a copy of the map",
    "convert": "turn a checkpoint of one CBAM into that of another: authors, timm, pytorchcv, ...",
    "shards": "write a folder of images as tar shards, for clusters and object stores",
    "doctor": "tell what this machine has, and for what the fused operator runs",
}
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """A TERM signal, as a batch system sends before it kills: stop like after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows `cbam`; by default what was typed.

    Returns:
        The exit code.

    >>> main(["comparr"])
    2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        from cbam import __version__

        print(f"cbam {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        close = nearest(verb, VERBS, count=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return _fail(f"there is no verb {verb!r}.{hint} Verbs: {', '.join(VERBS)}", 2)
    try:
        with _stop_on_sigterm():
            return importlib.import_module(f"cbam.cli.{verb}").main(rest)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "stopped", TERMINATED if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:
        # The reader of our output went away, as in `cbam ... | head`; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CBAMError as error:
        return _fail(str(error), getattr(error, "exit_code", 2))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("cbam", ""):
            raise
        return _fail(str(MissingExtra(f"cbam {verb}", "compare", package)), 2)
    except OSError as error:
        return _fail(str(error), 1)


def usage() -> str:
    """Return the text of `cbam --help`."""
    verbs = "\n".join(f"  {verb:<10}{what}" for verb, what in VERBS.items())
    return (
        "usage: cbam VERB [options]\n\nCBAM attention for any CNN: attach it, count what it costs, "
        f"measure whether it helps.\n\n{verbs}\n\n"
        "cbam VERB --help shows the options of a verb; cbam --version the version."
    )


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread do this
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    print(f"cbam: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
