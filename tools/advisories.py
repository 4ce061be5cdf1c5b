"""Compare versions with a copy of the Python Packaging Advisory Database; needs no network.

    git clone https://github.com/pypa/advisory-database
    python tools/advisories.py advisory-database

Looks at what is installed here and at the lower bounds of every extra. A copy says nothing about what was found after
its last advisory, whose date is printed. The exit code is 1 if an advisory is about any of those versions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def bounds() -> Iterator[tuple[str, str]]:
    """Yield (package, lower bound) of all that pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    text = text[text.index("\ndependencies = ") :]
    for found in re.findall(r'"([a-z][\w.-]*(?:\[[^\]]*\])?[>=~][^"]*)"', text):
        requirement = Requirement(found)
        for part in requirement.specifier:
            if part.operator in (">=", "=="):
                yield canonicalize_name(requirement.name), part.version


def concerns(advisory: dict[str, Any], name: str, version: str) -> bool:
    """Return whether an advisory is about a version: it lists it, or it lies between two events."""
    for affected in advisory.get("affected", []):
        if canonicalize_name(affected["package"]["name"]) != name:
            continue
        if version in map(str, affected.get("versions", [])):
            return True
        for span in affected.get("ranges", []):
            if span["type"] == "ECOSYSTEM" and inside(span["events"], Version(version)):
                return True
    return False


def inside(events: list[dict[str, Any]], version: Version) -> bool:
    """Return whether a version lies in a range of events, which are in order."""
    hit = False
    for event in events:
        ((kind, value),) = event.items()
        border = Version(str(value))
        if kind == "introduced" and version >= border:
            hit = True
        elif (kind == "fixed" and version >= border) or (kind == "last_affected" and version > border):
            hit = False
    return hit


def main(folder: Path) -> int:
    """Print every advisory that is about one of the versions."""
    installed = {
        (canonicalize_name(d.metadata["Name"]), d.version.partition("+")[0]) for d in distributions()
    }
    asked = sorted(installed | set(bounds()))
    if not (folder / "vulns").is_dir():
        sys.exit(f"{folder} has no folder vulns: give a copy of the Python Packaging Advisory Database")
    found, read = 0, 0
    for name, version in asked:
        for path in sorted((folder / "vulns" / name).glob("*.yaml")):
            advisory = yaml.safe_load(path.read_text(encoding="utf-8"))
            read += 1
            if not advisory.get("withdrawn") and concerns(advisory, name, version):
                found += 1
                other = ", ".join(advisory.get("aliases", []))
                print(
                    f"{name} {version}: {advisory['id']} {other}: {' '.join(advisory['details'].split())[:120]}"
                )
    texts = (path.read_text(encoding="utf-8") for path in (folder / "vulns").rglob("*.yaml"))
    last = max(
        day for text in texts for day in re.findall(r"^published: ['\"]?(\d{4}-\d\d-\d\d)", text, re.M)
    )
    print(
        f"{len(asked)} versions, {read} advisories about their packages; {found} concern them; the last is of {last}"
    )
    return int(found > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
