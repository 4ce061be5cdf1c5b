"""Workers with time limits: what breaks or never ends costs one task."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from cbam.runs.pool import Task, Worker, run_tasks, worker_pool


def double(number):
    return 2 * number


def fails(text):
    raise ValueError(text)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def variable(name):
    sys.stdout.write("to the log\n")
    sys.stdout.flush()
    return os.environ.get(name)


@pytest.fixture
def pool(tmp_path):
    with worker_pool(1, {"CBAM_TEST": "here"}, tmp_path / "log.txt") as workers:
        yield workers


def test_time_limits_errors_and_deaths_cost_one_task_each(pool, tmp_path):
    answers = {}
    tasks = [
        Task("first", double, (2,)),
        Task("too long", time.sleep, (1000,), limit=0.5),
        Task("error", fails, ("no\nsuch thing",)),
        Task("death", dies),
        Task("again", double, (3,)),
        Task("environment", variable, ("CBAM_TEST",)),
    ]
    left = run_tasks(tasks, pool, lambda task, answer: answers.update({task.name: answer}))
    assert left == []
    assert [answers[name].result for name in ("first", "again", "environment")] == [4, 6, "here"]
    assert answers["too long"].error == "took more than 0 s"
    assert answers["error"].error == "ValueError: no such thing"
    assert answers["death"].error == "its process ended with -9"
    assert "to the log" in (tmp_path / "log.txt").read_text()
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_task_cut_off_by_the_end_is_not_held_against_it(pool):
    tasks = [Task("cut", time.sleep, (1000,), limit=500), Task("late", double, (1,), needs=5)]
    left = run_tasks(tasks, pool, lambda task, answer: pytest.fail("nothing was done"), time.monotonic() + 1)
    assert left[0][1] == "stopped when the time ran out"
    assert left[1][1].startswith("not enough time: needs 5 s")


def test_what_is_not_wanted_is_not_begun(pool):
    done = []
    left = run_tasks(
        [Task("a", double, (1,)), Task("b", double, (2,))],
        pool,
        lambda task, answer: done.append(answer.result),
        wanted=lambda task: task.name == "b",
    )
    assert done == [4]
    assert [task.name for task, _ in left] == ["a"]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_the_caller_is_not_swallowed(count, tmp_path):
    def broken(task, answer):
        raise ZeroDivisionError

    with worker_pool(count) as workers, pytest.raises(ZeroDivisionError):
        run_tasks([Task("a", double, (1,))], workers, broken)


def meet(folder):
    """Wait until tasks of two processes have come here; return the process."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return os.getpid()


def test_several_workers_share_the_tasks(tmp_path):
    pids = set()
    with worker_pool(2) as workers:
        tasks = [Task(str(number), meet, (tmp_path,)) for number in range(4)]
        run_tasks(tasks, workers, lambda task, answer: pids.add(answer.result))
    assert len(pids) == 2
    for worker in workers:
        assert worker._process is None, "ended with the block"


def test_a_worker_starts_when_it_is_needed():
    worker = Worker()
    try:
        assert worker.do(Task("a", double, (21,)), 60).result == 42
    finally:
        worker.close()
