"""Build what is released, and try it as those who install it: `make release-check`.

    python tools/release_check.py build                 # wheel, manylinux tag, sdist, twine check
    python tools/release_check.py try --torch floor     # the wheel in a new environment, with the fast tests
    python tools/release_check.py try --torch newest
    python tools/release_check.py sdist                 # the sdist where there is no compiler
    python tools/release_check.py audit                 # known vulnerabilities of all that the extras bring

Everything is written below build/release.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "release"
# The oldest torch that pyproject.toml allows, with what was released beside it; the interpreter of its Triton, which
# the tests use, fails with NumPy 2.4. Newest: what the registry serves.
TORCH = {"floor": ["torch==2.11.0", "torchvision==0.26.0", "numpy<2.4"], "newest": ["torch", "torchvision"]}
# They come with PyTorch, which is loaded first.
NOT_INCLUDED = ("libtorch_cpu.so", "libtorch.so", "libc10.so")
TESTS = (
    "tests/nn",
    "tests/attach",
    "tests/test_functional.py",
    "tests/test_import.py",
    "tests/cli/test_main.py",
)
TOOLS = ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis"]


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command, shown before; stop if it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, check=True)


def build() -> None:
    """Build sdist and wheel, the operator for this machine's PyTorch and newer, and check both."""
    shutil.rmtree(FOLDER / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", FOLDER / "built", CBAM_BUILD_CPP="1")
    (wheel,) = (FOLDER / "built").glob("*.whl")
    without = [word for name in NOT_INCLUDED for word in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", *without, "--wheel-dir", FOLDER / "dist", wheel)
    for sdist in (FOLDER / "built").glob("*.tar.gz"):
        shutil.copy2(sdist, FOLDER / "dist")
    shutil.rmtree(FOLDER / "built")
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted((FOLDER / "dist").iterdir()))


def new_environment(name: str) -> Path:
    """Return the Python of an empty environment."""
    folder = FOLDER / name
    venv.create(folder, clear=True, with_pip=True)
    return folder / "bin" / "python"


def elsewhere(name: str) -> Path:
    """Return a folder with the tests but without the sources, so that what is installed is tested."""
    folder = FOLDER / f"{name}-tests"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", folder)
    return folder


def try_wheel(name: str, tests: list[str]) -> None:
    """Install the wheel beside one version of PyTorch and run the fast tests that need no more than that."""
    (wheel,) = (FOLDER / "dist").glob("*.whl")
    python = new_environment(name)
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        *TORCH[name],
        f"torch-cbam[compare] @ {wheel.as_uri()}",
        *TOOLS,
    )
    run(python, "-m", "pip", "check")
    folder = elsewhere(name)
    run(python, "-m", "cbam", "doctor", cwd=folder)
    run(python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not slow and not exhaustive", *tests,
        cwd=folder, CBAM_REQUIRE_CPP="1")  # fmt: skip


def try_sdist() -> None:
    """Install the sdist where no compiler works: it runs in plain PyTorch, and says so."""
    (sdist,) = (FOLDER / "dist").glob("*.tar.gz")
    python = new_environment("sdist")
    broken = {"CC": "/bin/false", "CXX": "/bin/false"}
    run(python, "-m", "pip", "install", "--quiet", "torch", "setuptools>=77", "wheel")
    run(python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "safetensors", sdist, **broken)
    code = (
        "import cbam, torch, warnings\n"
        "from cbam.ops import cpp\n"
        "warnings.simplefilter('error')\n"
        "print('the operator:', cpp.unavailable_reason())\n"
        "assert cpp.unavailable_reason()\n"
        "try:\n    cbam.CBAM(16)(torch.rand(2, 16, 32, 32))\n"
        "except UserWarning as told:\n    print(told)\n"
        "else:\n    raise SystemExit('nothing was said')\n"
    )
    run(python, "-c", code, cwd=FOLDER)


def audit() -> None:
    """Compare all that the extras bring, as installed here, with the databases of known vulnerabilities.

    A package that the database does not answer for is a failure, not a pass.
    """
    run(
        sys.executable,
        "-m",
        "pip_audit",
        "--local",
        "--skip-editable",
        "--strict",
        "--progress-spinner",
        "off",
    )


def main() -> None:
    """Read the arguments and run one part."""
    reader = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    reader.add_argument("part", choices=("build", "try", "sdist", "audit"))
    reader.add_argument("--torch", choices=tuple(TORCH), default="newest")
    reader.add_argument("--tests", nargs="*", default=list(TESTS), help="what of tests/ runs")
    given = reader.parse_args()
    if given.part == "try":
        try_wheel(given.torch, given.tests)
    else:
        {"build": build, "sdist": try_sdist, "audit": audit}[given.part]()


if __name__ == "__main__":
    main()
