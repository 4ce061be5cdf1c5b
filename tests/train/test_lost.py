"""What a training says where another of its processes is gone, and that it says so nowhere else."""

import pytest
from torch import distributed

from cbam.train.lost import ProcessLost, naming_lost_processes


def raised(error, processes=2):
    with pytest.raises(type(error)) as caught, naming_lost_processes(processes):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234",
        "Connection reset by peer",
        "connection refused",
        "Broken pipe",
        "NCCL error in: ProcessGroupNCCL.cpp",
        "Timed out waiting 1800000ms for recv operation to complete",
    ],
)
def test_the_end_of_another_process_is_named(text):
    with pytest.raises(ProcessLost) as lost, naming_lost_processes(2):
        raise RuntimeError(f"{text}\nframe #0: more")
    assert f"is gone ({text})" in str(lost.value)
    assert "start all processes again" in str(lost.value)
    assert lost.value.exit_code == 1


def test_torch_s_own_error_needs_no_known_words():
    with pytest.raises(ProcessLost, match="some words"), naming_lost_processes(2):
        raise distributed.DistBackendError("some words")


def test_what_is_something_else_stays_what_it_is():
    for error, processes in (
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2),
        (RuntimeError("Connection closed by peer"), 1),
        (ValueError("Connection closed by peer"), 2),
    ):
        assert raised(error, processes) is error
