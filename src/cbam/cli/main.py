"""`cbam COMMAND ...`: find the command, run it, and turn errors into a message and an exit code.

Exit codes: 0 done, 1 failed, 2 invalid arguments, 130 stopped by Ctrl-C, 143 by SIGTERM.
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

# Command -> what it does. The module of that name has main(arguments) and is imported only when needed.
COMMANDS = {
    "compare": "train plain, SE, CBAM and a control on your images; report whether attention helps",
    "ablate": "repeat the paper's ablations on your images, with seeds and spread",
    "train": "train one network with attention, on a laptop or many GPUs; resumable",
    "evaluate": "score a trained network: accuracy, each class, what it confuses, calibration",
    "predict": "classes and probabilities for pictures, from a run or any saved network",
    "detect": "train, compare, evaluate and apply detectors with attention",
    "explain": "show where a network looks: class activation maps, gates, a page side by side",
    "demo": "the same as a page in the browser: drop a picture, switch attention off and on",
    "plan": "show where attention would go in a model; change nothing",
    "cost": "count parameters, multiply-adds and memory of a model",
    "bench": "time attention against baselines and against a copy of the map",
    "export": "write a trained network as ONNX, torch.export or AOTInductor file, checked",
    "convert": "convert a checkpoint between CBAM implementations: authors, timm, pytorchcv, ...",
    "shards": "write a folder of images as tar shards, for clusters and object stores",
    "doctor": "show what this machine has and when the fused operator runs",
}
# What brings a command's packages, if it is not `compare`.
EXTRAS = {
    **dict.fromkeys(("train", "evaluate", "plan", "cost", "shards", "convert"), "train"),
    **{name: name for name in ("explain", "demo", "detect", "export")},
}
_LESS = (
    "What was saved is kept. Compute less at a time: --accumulate 4 takes each batch of a training in four parts, with"
    " the same steps; else a smaller --batch-size or --image-size"
)
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill: stop as after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments after `cbam`; by default those of the process.

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
    command, *rest = arguments
    if command not in COMMANDS:
        close = nearest(command, COMMANDS, count=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return _fail(f"unknown command {command!r}.{hint} Commands: {', '.join(COMMANDS)}", 2)
    try:
        with _stop_on_sigterm():
            return importlib.import_module(f"cbam.cli.{command}").main(rest)
    except KeyboardInterrupt as stop:
        code = TERMINATED if isinstance(stop, Terminated) else 130
        # Of several processes one speaks.
        return _fail(str(stop) or "stopped", code) if os.environ.get("RANK", "0") == "0" else code
    except BrokenPipeError:
        # The reader of our output is gone, as in `cbam ... | head`; Python would print an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CBAMError as error:
        return _fail(str(error), getattr(error, "exit_code", 2))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("cbam", ""):
            raise
        return _fail(str(MissingExtra(f"cbam {command}", EXTRAS.get(command, "compare"), package)), 2)
    except OSError as error:
        return _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0][:200] or "Python got none"
        return _fail(f"out of memory ({said}). {_LESS}", 1)


def usage() -> str:
    """Return the text of `cbam --help`."""
    names = "\n".join(f"  {command:<10}{what}" for command, what in COMMANDS.items())
    return (
        "usage: cbam COMMAND [options]\n\nCBAM attention for any CNN: attach it, count what it costs, "
        f"measure whether it helps.\n\n{names}\n\n"
        "cbam COMMAND --help shows the options of a command; cbam --version shows the version."
    )


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    # Only the main thread may set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError on accelerators; on the CPU a plain RuntimeError.
    on_cpu = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu


def _fail(message: str, code: int) -> int:
    print(f"cbam: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
