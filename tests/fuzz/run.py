"""Read mutated files for a while, guided by the coverage of our own code (atheris); `make fuzz` runs it.

    python -m tests.fuzz.run --seconds 600
    python -m tests.fuzz.run shards --seconds 400 --corpus build/fuzz    # go on another time where this one ended

Each target runs in a process of its own and goes on after a finding. A finding is an exception other than `CBAMError`,
an input that takes more than two seconds of computing, or one that ends the process; its bytes are written to a folder,
one for each place in the code. A target ends when its time is over or all inputs are read; any other end is a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import mmap
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

RUNS = 100_000
SLOW = 2.0  # seconds of computing for one input
HANGS = 60.0  # likewise; more ends the process
LONGEST = 20_480  # bytes of an input
MEMORY = 2_500  # MiB, of which torch and what we import take 750
_STATUS = re.compile(r"^#(\d+)\s+\w+ +cov: (\d+)", re.MULTILINE)
_DONE = re.compile(r"^Done (\d+) (?:runs )?in \d+ second", re.MULTILINE)
_LAST = "last-input"


def work(name: str, seconds: int, runs: int, findings: Path, corpus: Path) -> None:
    """Run one target; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cbam"], enable_loader_override=False):
        from tests.fuzz import targets
    import torch

    torch.set_num_threads(1)
    findings.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(targets.TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(content)
    folder = Path(tempfile.mkdtemp(prefix="cbam-fuzz-", dir=_memory()))
    words = ["".join(f"\\x{byte:02x}" for byte in token) for token in targets.TOKENS]
    (folder / "tokens").write_text("".join(f'"{word}"\n' for word in words))
    (folder / "work").mkdir()
    read = targets.reader_of(name, folder / "work")
    last = _mapped(findings / _LAST)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, and ends the process

    def one(content: bytes) -> None:
        last[:8] = len(content).to_bytes(8, "little")
        last[8 : 8 + len(content)] = content
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        started = time.process_time()
        try:
            read(content)
        except Exception as error:
            _keep(findings, content, traceback.format_exc(), error)
        took = time.process_time() - started
        if took > SLOW:
            _keep(findings, content, f"{took:.1f} s", None)

    # Time on the clock says little where others compute: -timeout is for what waits without computing,
    # and what is slow is said above.
    atheris.Setup(
        [
            "fuzz", f"-max_total_time={seconds}", f"-runs={runs}", f"-rss_limit_mb={MEMORY}", "-timeout=900",
            "-report_slow_units=1000000",
            f"-max_len={LONGEST}", f"-seed={len(list(corpus.iterdir()))}", f"-artifact_prefix={findings}/",
            f"-dict={folder / 'tokens'}", str(corpus),
        ],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def _memory() -> Path | None:
    return path if (path := Path("/dev/shm")).is_dir() else None


def _mapped(file: Path) -> mmap.mmap:
    """Return memory that outlives the process, whatever ends it."""
    file.write_bytes(bytes(8 + LONGEST))
    with file.open("r+b") as stream:
        return mmap.mmap(stream.fileno(), 0)


def _keep(folder: Path, content: bytes, text: str, error: Exception | None) -> None:
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    where = f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else "slow"
    file = folder / hashlib.sha1(where.encode()).hexdigest()[:12]
    if not file.exists():
        file.write_bytes(content)
        file.with_suffix(".txt").write_text(text)


@dataclass(frozen=True)
class Ending:
    """How the process of a target ended.

    Args:
        inputs: that were read.
        coverage: branches of our code that the good files reach, and that all inputs reach.
        early: why it ended before its time and its number of inputs; empty if it did not.
    """

    inputs: int
    coverage: tuple[int, int]
    early: str

    @classmethod
    def of(cls, status: int, output: str) -> Ending:
        """Read it from a process's exit status and what libFuzzer wrote.

        Only its own last line counts as a good end: a process can end with status 0 for other reasons.
        """
        lines = [(int(inputs), int(branches)) for inputs, branches in _STATUS.findall(output)]
        done = _DONE.search(output)
        inputs = int(done[1]) if done else max((inputs for inputs, _ in lines), default=0)
        coverage = (lines[0][1], lines[-1][1]) if lines else (0, 0)
        if status == 0 and done and inputs:
            return cls(inputs, coverage, "")
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return cls(inputs, coverage, f"{how}: {output[-2000:].strip()}")


def run(name: str, seconds: int, runs: int, findings: Path, corpus: Path) -> bool:
    """Run one target in a process of its own and print a line; return whether all is well."""
    for file in findings.glob("*"):
        file.unlink()
    command = [sys.executable, "-m", "tests.fuzz.run", "--work", name, "--seconds", str(seconds)]
    command += ["--runs", str(runs), "--findings", str(findings), "--corpus", str(corpus)]
    started, computed = time.monotonic(), _computed()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    took = f"{time.monotonic() - started:.0f} s, {_computed() - computed:.0f} s of computing"
    ending = Ending.of(done.returncode, done.stderr)
    last = findings / _LAST
    if ending.early and last.exists():
        content = last.read_bytes()
        last.with_name("ended-the-process").write_bytes(
            content[8 : 8 + int.from_bytes(content[:8], "little")]
        )
    last.unlink(missing_ok=True)
    files = [file for file in findings.glob("*") if file.suffix != ".txt"]
    end = (
        f"ENDED EARLY, {ending.early}"
        if ending.early
        else "time over"
        if ending.inputs < runs
        else "all read"
    )
    first, all_ = ending.coverage
    print(  # noqa: T201
        f"{name}: {ending.inputs:,} inputs in {took}; branches {first:,} -> {all_:,}; findings: {len(files)}; {end}",
        flush=True,
    )
    return not files and not ending.early


def _computed() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run all targets, or the ones that are named; end with an error if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together")
    parser.add_argument("--runs", type=int, default=RUNS, help="inputs of each target, at most")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument(
        "--corpus", type=Path, help="keep the inputs that reached new code here, and start from them"
    )
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    corpus = arguments.corpus or Path(tempfile.mkdtemp(prefix="cbam-fuzz-"))
    if arguments.work:
        work(arguments.targets[0], arguments.seconds, arguments.runs, arguments.findings, corpus)
        return
    from tests.fuzz import targets

    names = arguments.targets or list(targets.TARGETS)
    if unknown := set(names) - set(targets.TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets.TARGETS)}")
    end, bad = time.monotonic() + arguments.seconds, []
    for number, name in enumerate(names):
        share = max(5, int((end - time.monotonic()) / (len(names) - number)))
        if not run(name, share, arguments.runs, arguments.findings / name, corpus / name):
            bad.append(name)
    if bad:
        raise SystemExit(f"{', '.join(bad)}: see {arguments.findings}/")


if __name__ == "__main__":
    main()
