"""A run of three cells: resumed, refused, and shared by two processes."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from rich.console import Console

from cbam.errors import CBAMError
from cbam.runs.config import RunConfig, option
from cbam.runs.folder import FolderInUse, FolderLost, RunFolder
from cbam.runs.job import Job, OneProcess
from cbam.runs.progress import Progress


@dataclass(frozen=True)
class Squares(RunConfig):
    power: int = 2
    count: int = option(3, affects_result=False)


@dataclass(frozen=True)
class Number:
    value: int

    @property
    def name(self) -> str:
        return f"number-{self.value}"


@dataclass(kw_only=True)
class SquaresJob(Job[Number, "list[int]"]):
    config: Squares
    breaks_at: int | None = None
    calls: list[int] = field(default_factory=list)

    @property
    def cells(self) -> list[Number]:
        return [Number(value) for value in range(self.config.count)]

    def is_done(self, cell: Number) -> bool:
        return any(row["name"] == cell.name for row in self.folder.metrics.read())

    def do(self, cell: Number) -> str:
        if cell.value == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append(cell.value)
        if self.processes.is_main_process:
            self.folder.metrics.append({"name": cell.name, "result": cell.value**self.config.power})
        return "done"

    def finish(self, worked: Sequence[Number]) -> list[int]:
        return [row["result"] for row in self.folder.metrics.read()]


def job(path, config=None, **more: Any):
    progress = Progress(Console(file=io.StringIO(), width=200))
    return SquaresJob(
        config=config or Squares(), command=["squares"], folder=RunFolder(path), progress=progress, **more
    )


def test_stopped_anywhere_the_same_call_goes_on(tmp_path):
    first = job(tmp_path / "run", breaks_at=1)
    with pytest.raises(KeyboardInterrupt):
        first.execute()
    second = job(tmp_path / "run")
    assert second.execute() == [0, 1, 4]
    assert first.calls + second.calls == [0, 1, 2], "each once"
    text = second.progress.console.file.getvalue()
    assert text.splitlines() == [
        "3 cells, 1 of them done before",
        "[2/3] number-1  done",
        "[3/3] number-2  done",
    ]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"power": 2, "count": 3}
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert environment["command"] == ["squares"]
    assert len(environment["continued"]) == 1


def test_a_finished_run_can_grow_but_not_change(tmp_path):
    job(tmp_path).execute()
    grown = job(tmp_path, Squares(count=5))
    assert grown.execute() == [0, 1, 4, 9, 16]
    assert grown.calls == [3, 4]
    with pytest.raises(CBAMError, match="power: 2 there, 3 now"):
        job(tmp_path, Squares(power=3)).execute()


def test_a_run_whose_folder_was_deleted_does_not_end_well(tmp_path):
    class Deleting(SquaresJob):
        def do(self, cell):
            if cell.name == "number-1":
                shutil.rmtree(self.folder.path)
            return super().do(cell)

    whole = job(tmp_path / "run")
    lost = Deleting(**{name: getattr(whole, name) for name in ("config", "command", "folder", "progress")})
    with pytest.raises(FolderLost, match="was deleted, moved or emptied"):
        lost.execute()


def test_one_run_at_a_time(tmp_path):
    """The lock is of a process, so another one holds it: see tests/compare/test_folder.py."""

    class Held(RunFolder):
        def locked(self):
            raise FolderInUse("held")

    held = job(tmp_path)
    held.folder = Held(tmp_path)
    with pytest.raises(FolderInUse):
        held.execute()
    assert held.calls == []


class Together(OneProcess):
    def __init__(self, barrier, main):
        self.barrier, self.is_main_process = barrier, main

    def wait_for_everyone(self):
        self.barrier.wait(10)


def test_processes_agree_on_what_is_left(tmp_path):
    job(tmp_path, Squares(count=1)).execute()
    barrier = threading.Barrier(2)
    helper = job(tmp_path, processes=Together(barrier, False))
    found = []
    thread = threading.Thread(target=lambda: found.append(helper.execute()))
    thread.start()
    main = job(tmp_path, processes=Together(barrier, True))
    assert main.execute() == [0, 1, 4]
    thread.join(10)
    assert found == [None], "only the first process finishes"
    assert helper.calls == main.calls == [1, 2]
