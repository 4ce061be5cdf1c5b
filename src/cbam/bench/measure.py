"""One case: what measures it, here or in a worker process, and what is compiled for it beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cbam.bench import code, gpu, host, modules, network, traffic
from cbam.bench.baselines import CAREFUL, OPERATOR, TEXTBOOK
from cbam.bench.cases import EVERYTHING_COMPILED, PLAIN, Case, Result
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device, device_of
from cbam.runs.pool import Task

MEASURE: dict[str, Callable[[Case, BenchConfig, Device], Result]] = {
    "modules": modules.measure,
    "network": network.measure,
    "scaling": modules.measure_scaling,
    "checks": gpu.check,
    "kernels": gpu.kernels,
    "host": host.measure,
    "traffic": traffic.measure,
    "code": code.measure,
}
# Part -> seconds that a case needs, and after which it is given up, on a GPU.
SECONDS = {"checks": (20, 160), "traffic": (30, 170), "network": (12, 150), "modules": (6, 75)}
COMPILING = (20, 180)


def measure(case: Case, config: BenchConfig) -> Result:
    """Measure a case on the run's device."""
    device = device_of(config.device)
    try:
        return MEASURE[case.part](case, config, device)
    finally:
        device.tidy()


def measuring(case: Case, config: BenchConfig) -> Task:
    """Return the measurement of a case as a task for a worker."""
    return Task(case.name, measure, (case, config), *SECONDS.get(case.part, (6, 60)))


def compiling(case: Case, config: BenchConfig) -> Iterator[Task]:
    """Yield what fills torch's compile cache for a case; the networks one by one, on a CPU by the case itself."""
    if not case.compiles or (case.part == "network" and case.threads):
        return
    names = [""]
    if case.part == "network":
        more = [TEXTBOOK, network.SE] if case.study == EVERYTHING_COMPILED else []
        names = [PLAIN, OPERATOR, CAREFUL, *more]
    for name in names:
        yield Task(f"{name} {case.name}".strip(), compile_case, (case, config, name), *COMPILING)


def compile_case(case: Case, config: BenchConfig, only: str) -> None:
    """Fill torch's compile cache with what `measure` needs.

    What fails here is not lost: the process that measures compiles it again, and says why it cannot.
    """
    device = device_of(config.device)
    if case.threads:
        torch.set_num_threads(case.threads)  # it is written into the code
    if case.part == "network":
        network.Networks(case, config, device, only).prepare()
    else:
        modules.Comparison(case, device, modules.compiled_in(case, config)).compile()
    device.tidy()
