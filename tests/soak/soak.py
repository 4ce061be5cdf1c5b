"""Long use: attach and detach over and over, many threads on one network, data workers with a network in them.

`make soak` runs it at full length and writes docs/results/soak.md; `test_soak.py` runs it short.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.utils.data import DataLoader, Dataset

import cbam
from cbam.formatting import columns, duration
from tests.attach.networks import Block, Net

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
WAYS = (
    {"attention": "cbam", "preset": "official"},
    {"attention": "cbam", "init": "paper", "arrangement": "parallel"},
    {"attention": "se", "fuse_epilogue": False},
    {"attention": "eca"},
    {"attention": nn.BatchNorm2d, "init": "paper"},
)
SHARE_TO_WARM_UP = 10  # one in so many cycles is left out of the comparison


@dataclass(frozen=True)
class Count:
    """What a process holds.

    Args:
        blocks: of memory that Python's allocator has given out.
        rss: resident memory in MiB.
        objects: that the garbage collector follows.
        hooks: of the network's modules and of all modules.
        threads: of Python.
    """

    blocks: int
    rss: float
    objects: int
    hooks: int
    threads: int


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net(Block(8), Block(8))


def count(model: nn.Module) -> Count:
    gc.collect()
    everywhere = [
        hooks for name, hooks in vars(global_hooks).items() if name.startswith("_global") and "hooks" in name
    ]
    own = [getattr(module, name) for module in model.modules() for name in HOOKS]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Count(
        sys.getallocatedblocks(),
        pages * 4096 / 2**20,
        len(gc.get_objects()),
        sum(len(hooks) for hooks in [*own, *everywhere] if hasattr(hooks, "__len__")),
        threading.active_count(),
    )


def cycle(model: nn.Module, number: int) -> None:
    """Attach, use in every way, train a step, detach."""
    made = cbam.attach(model, input_size=16, **WAYS[number % len(WAYS)])
    model.train()(IMAGE).square().sum().backward()
    model.zero_grad()
    with torch.no_grad(), cbam.disabled(model):
        model.eval()(IMAGE)
    if number % 5 == 0:
        with torch.no_grad(), cbam.attention_maps(model) as maps:
            model(IMAGE)
        assert len(maps) == len(made.sites)
    cbam.detach(model)


def cycles(
    number: int, seconds: float, break_it: Callable[[nn.Module], None] | None = None
) -> tuple[int, Count, Count]:
    """Repeat; return how many cycles there were, and what the process held after the first tenth and at the end."""
    model, state = network(), {key: value.clone() for key, value in network().state_dict().items()}
    end, done, early = time.monotonic() + seconds, 0, None
    while done < number and (time.monotonic() < end or early is None):
        cycle(model, done)
        if break_it is not None:
            break_it(model)
        done += 1
        if done == max(2 * len(WAYS), number // SHARE_TO_WARM_UP):
            early = count(model)
    late = count(model)
    assert early is not None
    after = model.state_dict()
    assert all(
        torch.equal(after[key], state[key]) for key in state if "running" not in key and "num_" not in key
    )
    return done, early, late


def judge(early: Count, late: Count, done: int) -> list[str]:
    """Say what has grown: more than a small amount, and more than a block in ten cycles."""
    problems = []
    if late.blocks - early.blocks > 200 + done / 10:
        problems.append(f"blocks of memory grew by {late.blocks - early.blocks:,}")
    if late.rss - early.rss > 16:
        problems.append(f"resident memory grew by {late.rss - early.rss:.0f} MiB")
    if late.objects > early.objects + 100:
        problems.append(f"objects grew by {late.objects - early.objects}")
    if late.hooks != early.hooks or late.threads != early.threads:
        problems.append(f"hooks {early.hooks} -> {late.hooks}, threads {early.threads} -> {late.threads}")
    return problems


def threads(number: int, calls: int) -> int:
    """Call one network from many threads at once; return how many maps differed from those of one thread."""
    model = network().eval()
    cbam.attach(model, input_size=16, preset="official", init="paper")
    images = torch.rand(8, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = [model(image) for image in images]
    begin = Barrier(number)

    def call(first: int) -> int:
        wrong = 0
        begin.wait()
        with torch.no_grad():
            for i in range(first, first + calls):
                wrong += not torch.equal(model(images[i % 8]), expected[i % 8])
        return wrong

    with ThreadPoolExecutor(number) as pool:
        return sum(pool.map(call, range(number)))


class WithNetwork(Dataset):
    """Images that go through an attached network on their way, as features do."""

    def __init__(self, model: nn.Module, number: int):
        self.model, self.number = model, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(1)
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            return self.model(image)[0]


def workers(how: str, number: int) -> bool:
    """Compute in worker processes that are forked or spawned, and say whether all is as in this process."""
    model = network().eval()
    cbam.attach(model, input_size=16, preset="official", init="paper")
    items = WithNetwork(model, number)
    expected = torch.stack([items[i] for i in range(number)])
    loader = DataLoader(items, 4, num_workers=2, multiprocessing_context=how)
    return torch.equal(torch.cat(list(loader)), expected)


def page(arguments: argparse.Namespace) -> str:
    """Run all of it and return docs/results/soak.md."""
    started = time.monotonic()
    done, early, late = cycles(arguments.cycles, arguments.seconds)
    took = time.monotonic() - started
    problems = judge(early, late, done)
    rows = [
        ("", f"after {max(2 * len(WAYS), arguments.cycles // SHARE_TO_WARM_UP):,} cycles", f"after {done:,}")
    ]
    for name, title, form in (
        ("blocks", "blocks of Python's allocator", "{:,}"), ("rss", "resident memory, MiB", "{:.0f}"),
        ("objects", "objects", "{:,}"), ("hooks", "hooks", "{}"), ("threads", "threads", "{}"),
    ):  # fmt: skip
        rows.append((title, form.format(getattr(early, name)), form.format(getattr(late, name))))
    wrong = threads(100, arguments.calls)
    forked, spawned = workers("fork", 64), workers("spawn", 64)
    verdict = "; ".join(problems) or "nothing grew"
    return f"""# Long use

`make soak` wrote this page: torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.

A cycle attaches attention (CBAM in two arrangements, SE, ECA, a module of torch's), trains a step, runs with attention
off, records gates every fifth time, and detaches. {done:,} cycles took {duration(took)}: {verdict}.

```text
{chr(10).join(columns(rows))}
```

100 threads called one network {100 * arguments.calls:,} times: {wrong} outputs differed from those of one thread.
Worker processes with an attached network in their data set: forked {"equal" if forked else "NOT equal"}, spawned
{"equal" if spawned else "NOT equal"}, to the bit.
"""


def main() -> None:
    """Write the page; end with an error if something has grown or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1800, help="at most")
    parser.add_argument("--calls", type=int, default=100, help="of each thread")
    parser.add_argument("--output", type=Path, default=Path("docs/results/soak.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = page(arguments)
    arguments.output.write_text(text)
    print(text)  # noqa: T201
    if "nothing grew" not in text or " 0 outputs" not in text or "NOT equal" in text:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
