"""Plans: what a direct start passes to the kernels, which calls have a plan of their own, what starts cost the host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.library import needs_triton

pytestmark = [needs_triton, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
DIRECT = """
import torch
from triton import knobs
from triton.runtime import driver
from cbam.ops.triton import plans
from cbam.ops.triton.plan import Plan
from tests.ops.triton.instructions import call
from tests.ops.triton.stand_in import Driver

passed, starts = [], []

class Recording(Driver):
    def launcher_cls(self, source, metadata):
        return lambda *arguments: passed.append(arguments)

def plain(value):
    return value.data_ptr() if isinstance(value, torch.Tensor) else value

def compare(plan, tensors, addresses):
    runs = []
    for run in (lambda: plan.start_through_triton(tensors), lambda: start(plan, tensors, addresses)):
        passed.clear()
        run()
        runs.append([(a[:6], [plain(value) or 0 for value in a[9:]]) for a in passed])
    assert runs[0] == runs[1] and len(runs[0]) == len(plan.launches) > 0
    assert all(a[6:9] == (None,) * 3 for a in passed), "the second one was not direct"
    starts.append(plan)

driver.set_active(Recording("cuda", "90"))
start, Plan.start = Plan.start, compare
for options in ({}, {"norm": True, "epilogue": True}, {"channels_last": False}, {"dtype": torch.float32}):
    call((3, 24, 5, 7), **options)
    call((3, 24, 5, 7), training=False, **options)
assert len(starts) == len(set(map(id, starts))) == len(plans._plans) == 12
call((3, 24, 5, 7))
assert len(starts) == 14 and len(plans._plans) == 12, "the same kind of call"
call((3, 24, 7, 5), training=False)
assert len(plans._plans) == 13, "another shape"

from cbam.ops.triton import forward
from cbam.ops.signature import ForwardArguments, NormBefore, OperatorConfig, Weights, flat
new, first = torch.empty, len(plans._plans)
weights = Weights(kernel=new(1, 2, 7, 7))
for offset in (4, 1, 5):
    x = new(80)[offset : offset + 60].view(1, 3, 4, 5)
    forward(*flat(ForwardArguments(x, weights, NormBefore(), None, OperatorConfig(descriptor=3), False)))
assert len(plans._plans) == first + 2, "an address that is no multiple of 16"
last = weights._replace(kernel=new(1, 2, 7, 7).contiguous(memory_format=torch.channels_last))
double = weights._replace(kernel=new(1, 2, 7, 7, dtype=torch.float64))
for other in (last, double):
    forward(*flat(ForwardArguments(x, other, NormBefore(), None, OperatorConfig(descriptor=3), False)))
assert len(plans._plans) == first + 4, "a weight in another layout, or of another type"

found, kept = len(plans._plans), []
config, full = OperatorConfig(3, 3), Weights(new(2, 3), None, new(3, 2), None, None, new(1, 2, 7, 7))
x = new(1, 3, 4, 5)
others = (
    {"activation": 1}, {"relu": True}, {"pooling": 1}, {"descriptor": 1}, {"norm_eps": 1e-3}, {"pre_eps": 1e-3},
    {"norm_training": True}, {"pre_training": True},
)
for changed in ({}, *others):
    one = ForwardArguments(x, full, NormBefore(), None, config._replace(**changed), False)
    for _ in range(2):
        forward(*flat(one))
    assert len(plans._plans) == found + 1, changed
    found += 1
for one in (one._replace(keep=True), one._replace(x=x.bfloat16()), one._replace(x=x.double()),
            one._replace(weights=full._replace(b0=new(2)))):
    forward(*flat(one))
    assert len(plans._plans) == found + 1, "what is kept, the type of the map, another weight"
    found += 1
for _ in range(3):  # all alive, so all at other addresses
    kept.append(one._replace(x=torch.empty_like(one.x), weights=full._replace(w0=new(2, 3), b0=new(2))))
    kept.append(forward(*flat(kept[-1])))
assert len(plans._plans) == found, "the same kind of call elsewhere"

Plan.start = start
from cbam import CBAM
from cbam.nn import after_norm
from cbam.ops.triton import forms
from tests.ops.triton.host_time import stub_launcher
begin, starts = forms._Started.start, []

def compare_form(started, addresses, tensors):
    runs = []
    for run in (lambda: started.plan.start_through_triton(tensors()), lambda: begin(started, addresses, tensors)):
        passed.clear()
        run()
        runs.append([(a[:6], [plain(value) or 0 for value in a[9:]]) for a in passed])
    assert runs[0] == runs[1] and len(runs[0]) == len(started.plan.launches) > 0
    assert all(a[6:9] == (None,) * 3 for a in passed), "the second one was not direct"
    starts.append(started)

with stub_launcher():
    driver.set_active(Recording("cuda", "90"))
    plans.forget()
    forms._Started.start = compare_form
    x = torch.randn(2, 24, 5, 7, requires_grad=True)
    for module in (CBAM(24), CBAM(24, preset="official"), CBAM(24, arrangement="channel"), CBAM(24, gate_scale=2.0)):
        norm = torch.nn.BatchNorm2d(24)
        for _ in range(3):
            for call_it in (module, lambda u: after_norm.attend(norm, module, u, 2 * x.detach(), True)):
                call_it(x).backward(torch.ones_like(x))
                with torch.no_grad():
                    call_it(x)
        norm.eval()
        after_norm.attend(norm, module, x, torch.zeros_like(x), False).backward(torch.ones_like(x))
assert len(starts) == 4 * (3 * 6 + 2) and len(set(starts)) < len(starts)
forms._Started.start = begin
driver.set_active(Recording("cuda", "90"))
plans.forget()

knobs.runtime.launch_enter_hook.add(lambda metadata: None)
passed.clear()
call((3, 24, 5, 7))
assert passed and all(a[7] is not None for a in passed), "hooks on launches"
print("done")
"""


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_direct_start_passes_what_triton_would():
    assert python("-c", DIRECT).strip() == "done"


def test_what_a_call_costs_the_host():
    """In calls of relu, with the fastest of many rounds of each, so a busy machine does not show."""
    times = json.loads(python("-m", "tests.ops.triton.host_time", "--json", "--quick"))["bfloat16"]
    assert 1 < times["operator, inference"] < 25, (
        times
    )  # 12 on the machine where it was written; 105 before plans
    assert 1 < times["operator, forward"] < 25, times
    assert 0.5 < times["operator, backward"] < 3, times  # of relu's backward: 1.2
