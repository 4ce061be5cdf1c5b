from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from accelerate import Accelerator

from cbam.train.stopping import SIGNALS, Stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_an_end_and_the_handlers_come_back(number):
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with Stop().listening() as stop:
        assert not stop.agreed(Accelerator(cpu=True), 1)
        os.kill(os.getpid(), number)
        assert stop.reason == signal.Signals(number).name
        assert stop.agreed(Accelerator(cpu=True), 1)
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import time\nfrom cbam.train.stopping import Stop\n"
        "with Stop().listening():\n    print('here', flush=True)\n    time.sleep(0.5)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM
    process.stdout.close()
