from __future__ import annotations

import datetime as dt
import json
import os
import subprocess

import torch

from cbam.runs.environment import describe_environment, now


def test_describes_this_machine():
    found = describe_environment(["cbam", "compare", "--data", "a b"], "cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["command"][-1] == "a b"
    assert found["packages"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert 1 <= found["machine"]["cores"] <= os.cpu_count()
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cpu"]


def test_time_is_utc():
    parsed = dt.datetime.fromisoformat(now())
    assert parsed.utcoffset() == dt.timedelta(0)
    assert abs(dt.datetime.now(dt.timezone.utc) - parsed) < dt.timedelta(seconds=5)


def test_without_git(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert describe_environment([], "cpu")["git"] is None
