"""Do jobs in a process of its own: a kernel that breaks the GPU's context, or never ends, costs one job and no more.

Run as `python -m gpu.worker DEVICE`; takes a job a line on stdin as JSON, and answers with a line each.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from gpu import correctness, device, host, module, network, traffic
from gpu.device import Machine

KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "describe": device.describe,
    "state": device.state,
    "check": correctness.check,
    "module": module.measure,
    "network": network.measure,
    "host": host.measure,
    "traffic": traffic.count,
    "kernels": traffic.kernels,
    "compile module": module.compile_only,
    "compile network": network.compile_only,
}


def main(kind: str) -> None:
    """Answer jobs until there are no more."""
    # What libraries print goes to stderr; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    machine = Machine(kind)
    # Every capture of a graph collects garbage first; what was imported is none.
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        start = time.monotonic()
        try:
            answer: dict[str, Any] = {"result": KINDS[job["kind"]](machine, **job["arguments"])}
        except Exception as error:  # whatever it may be, the other jobs can go on
            answer = {"error": module.first_line(error), "broken": not _works(machine)}
            sys.excepthook(*sys.exc_info())
        answer["seconds"] = time.monotonic() - start
        if not answer.get("broken"):
            machine.tidy(collect=job["kind"] != "check")  # checks leave no cycles, and are many
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _works(machine: Machine) -> bool:
    """Return whether the device still does anything in this process; after an illegal access it does not."""
    try:
        machine.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
