"""Exit codes and sentences, in the process itself where nothing needs to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types

import pytest

from cbam.cli.main import COMMANDS, main
from cbam.errors import CBAMError


def run_as(monkeypatch, command_main):
    """Let `cbam cost` run `command_main`."""
    module = types.ModuleType("cbam.cli.cost")
    module.main = command_main
    monkeypatch.setitem(sys.modules, "cbam.cli.cost", module)
    return main(["cost"])


def raises(error):
    def command(arguments):
        raise error

    return command


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_no_command_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: cbam COMMAND" in capsys.readouterr().out


def test_version(capsys):
    from cbam import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cbam {__version__}\n"


def test_a_wrong_command_gets_the_nearest(capsys):
    assert main(["compere"]) == 2
    assert capsys.readouterr().err.startswith("cbam: unknown command 'compere'. Did you mean 'compare'?")


class Failed(CBAMError):
    exit_code = 1


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CBAMError("no such thing"), 2, "cbam: no such thing\n"),
        (Failed("broke down"), 1, "cbam: broke down\n"),
        (OSError(28, "No space left on device", "x"), 1, "cbam: [Errno 28] No space left on device: 'x'\n"),
        (KeyboardInterrupt(), 130, "cbam: stopped\n"),
        (MemoryError(), 1, "else a smaller --batch-size or --image-size\n"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            1,
            "else a smaller --batch-size or --image-size\n",
        ),
        (KeyboardInterrupt("stopped. Go on so"), 130, "cbam: stopped. Go on so\n"),
        (
            ModuleNotFoundError("No module named 'timm'", name="timm.x"),
            2,
            "pip install 'torch-cbam[train]'\n",
        ),
    ],
)
def test_what_went_wrong_becomes_a_sentence_and_a_code(monkeypatch, capsys, error, code, told):
    assert run_as(monkeypatch, raises(error)) == code
    assert capsys.readouterr().err.endswith(told)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_as(monkeypatch, raises(ZeroDivisionError()))
    with pytest.raises(RuntimeError):
        run_as(monkeypatch, raises(RuntimeError("sizes do not match")))
    with pytest.raises(ModuleNotFoundError):
        run_as(monkeypatch, raises(ModuleNotFoundError("No module named 'cbam.x'", name="cbam.x")))


def test_sigterm_stops_like_ctrl_c_and_the_handler_is_given_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def command(arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert run_as(monkeypatch, command) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_is_cheap_and_python_m_works():
    program = (
        "import runpy, sys\nsys.argv = ['cbam', '--help']\n"
        "try:\n    runpy.run_module('cbam', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torchvision', 'timm', 'accelerate', 'matplotlib', 'scipy', 'rich', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("usage: cbam COMMAND")
