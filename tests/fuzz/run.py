"""Read mutated files for a while, guided by the coverage of our own code (atheris); `make fuzz` runs it.

    python -m tests.fuzz.run --seconds 600

Each target runs in a process of its own and goes on after a finding. A finding is an exception other than `CBAMError`,
or an input that takes more than two seconds; its bytes are written to a folder, one for each place in the code.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

RUNS = 100_000
SLOW = 2.0  # seconds of computing for one input
_DONE = re.compile(r"stat::number_of_executed_units: (\d+)")


def work(name: str, seconds: int, runs: int, findings: Path) -> None:
    """Run one target; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cbam"], enable_loader_override=False):
        from tests.fuzz import targets
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="cbam-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(targets.TARGETS[name].seeds()):
        (corpus / str(number)).write_bytes(content)
    words = ["".join(f"\\x{byte:02x}" for byte in token) for token in targets.TOKENS]
    (folder / "tokens").write_text("".join(f'"{word}"\n' for word in words))
    (folder / "work").mkdir()
    read = targets.reader_of(name, folder / "work")

    def one(content: bytes) -> None:
        started = time.process_time()
        try:
            read(content)
        except Exception as error:
            _keep(findings / name, content, traceback.format_exc(), error)
        took = time.process_time() - started
        if took > SLOW:
            _keep(findings / name, content, f"{took:.1f} s", None)

    atheris.Setup(
        [
            "fuzz", f"-max_total_time={seconds}", f"-runs={runs}", "-print_final_stats=1", "-verbosity=0",
            "-rss_limit_mb=6000", "-timeout=60", "-max_len=20480", "-seed=1",
            f"-artifact_prefix={findings / name}/", f"-dict={folder / 'tokens'}", str(corpus),
        ],
        one,
    )  # fmt: skip
    atheris.Fuzz()


def _keep(folder: Path, content: bytes, text: str, error: Exception | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    where = f"{type(error).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else "slow"
    file = folder / hashlib.sha1(where.encode()).hexdigest()[:12]
    if not file.exists():
        file.write_bytes(content)
        file.with_suffix(".txt").write_text(text)


def main() -> None:
    """Run all targets, or the ones that are named; end with an error if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together")
    parser.add_argument("--runs", type=int, default=RUNS, help="inputs of each target, at most")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.targets[0], arguments.seconds, arguments.runs, arguments.findings)
        return
    from tests.fuzz import targets

    names = arguments.targets or list(targets.TARGETS)
    shutil.rmtree(arguments.findings, ignore_errors=True)
    for name in names:
        (arguments.findings / name).mkdir(parents=True, exist_ok=True)
    end, bad = time.monotonic() + arguments.seconds, 0
    for number, name in enumerate(names):
        share = max(5, int((end - time.monotonic()) / (len(names) - number)))
        command = [sys.executable, "-m", "tests.fuzz.run", "--work", name, "--seconds", str(share)]
        command += ["--runs", str(arguments.runs), "--findings", str(arguments.findings)]
        started = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
        )
        count = _DONE.search(done.stderr)
        files = [file for file in (arguments.findings / name).iterdir() if file.suffix != ".txt"]
        early = count is None or done.returncode
        bad += len(files) + bool(early)
        shown = f"{int(count[1]) if count else 0:,} inputs" + (
            f", ended early: {done.stderr[-2000:]}" if early else ""
        )
        print(f"{name}: {shown} in {time.monotonic() - started:.0f} s, findings: {len(files)}", flush=True)  # noqa: T201
    if bad:
        raise SystemExit(f"see {arguments.findings}/")


if __name__ == "__main__":
    main()
