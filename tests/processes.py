"""Real `cbam` processes that do not import torch again: one parent imports everything once, and forks.

A child is a process in every respect that the tests use: it gets signals and dies of them, has its own files, output,
environment and exit code. `python -m cbam` itself runs in the tests that start a straight run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PRELOAD = (
    "torch, torchvision, timm, accelerate, sklearn.datasets, rich.console, scipy.stats, cbam.cli.main, cbam.cli.train, "
    "cbam.cli.compare, cbam.train.run, cbam.models.timm_registry"
)


class Process:
    """A child of the server, with the methods of `subprocess.Popen`."""

    def __init__(self, server, pid, folder):
        self._server, self.pid, self._folder, self.returncode = server, pid, folder, None

    def poll(self):
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def communicate(self, timeout=300):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired("cbam", timeout)
            time.sleep(0.01)
        return tuple((self._folder / name).read_text(encoding="utf-8") for name in ("out", "err"))

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Server:
    """The parent of the children; `close` ends it."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        self._folder = TemporaryDirectory()
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments, first="", environment=()):
        """Start `cbam ARGUMENTS`, after the code `first`, as a process."""
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        request = {"arguments": list(map(str, arguments)), "first": first, "folder": str(folder)}
        return Process(self, self.ask({**request, "environment": dict(environment)}), folder)

    def run(self, *arguments, first="", environment=(), timeout=500):
        """Run `cbam ARGUMENTS` to its end, as `subprocess.run` does."""
        process = self.start(*arguments, first=first, environment=environment)
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._folder.cleanup()


def serve():
    """Answer requests, one a line; replies go to the standard output as it was at the start."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    exec(f"import {PRELOAD}")
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                replies.close()
                _be_child(request)
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def _be_child(request):
    code = 1
    try:
        os.setsid()
        for number, name, flags in ((0, os.devnull, "r"), (1, "out", "w"), (2, "err", "w")):
            with (Path(request["folder"]) / name).open(flags) as file:  # an absolute name stays what it is
                os.dup2(file.fileno(), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request["environment"])
        sys.argv = ["cbam", *request["arguments"]]
        exec(request["first"], {})
        from cbam.cli.main import main

        code = main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
