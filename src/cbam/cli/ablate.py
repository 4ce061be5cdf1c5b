"""`cbam ablate`: the paper's ablations on your images, with seeds and spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cbam.cli.compare import parse_as
from cbam.compare import ablation
from cbam.compare.ablation import Ablation
from cbam.compare.config import CompareConfig
from cbam.errors import CBAMError

DESCRIPTION = """Repeat the paper's ablations on your images: what the channel gate pools (Table 1), descriptor and
kernel of the spatial gate (Table 2), arrangement (Table 3), reduction ratios and kernels; each with seeds and spread.
Ends with tables next to the paper's. If it is stopped, the same command resumes it; tables share networks.

Example: cbam ablate --table 1,2,3 --data fashion-mnist --model resnet20 --seeds 3 --epochs 5

Tables of an existing run, finished or not:
         cbam ablate --report runs/ablate-fashion-mnist-resnet20"""

_ALONE = "--report takes the folder of a run and nothing else: cbam ablate --report FOLDER"


@dataclass(frozen=True, kw_only=True)
class AblateConfig(CompareConfig):
    """The options of `cbam compare`, and which ablations to run.

    >>> config = AblateConfig(data="digits", table="3", kernel="3,5")
    >>> config.grid().variants[-2:], str(config.grid().folder)
    (('cbam:official:k3', 'cbam:official:k5'), 'runs/ablate-digits-resnet20')
    """

    # Not needed for --report, which takes nothing else.
    data: Annotated[str, tyro.conf.arg(help_behavior_hint="(required, but not with --report)")] = ""
    """fashion-mnist, digits, a folder of class folders or of train/ and val/ with those, shards, ...: docs/data.md."""
    report: Path | None = None
    """Print the tables of the run in this folder, finished or not, and do nothing else."""
    table: str | None = None
    """Tables of the paper, with commas: 1, 2, 3."""
    reduction: str | None = None
    """Reduction ratios of the channel gate, e.g. 4,8,32; always with the paper's 16."""
    kernel: str | None = None
    """Kernels of the spatial gate, e.g. 3,5,9; always with the paper's 7."""
    attention: str = "none"
    """Variants in addition to those of the ablations, with commas; all differences are to none."""
    output: Path | None = None
    """The run's folder; the same command resumes it, other tables are added to it. None: runs/ablate-DATA-MODEL, with
    -2, -3, ... where that holds another run."""

    def _check_attention(self) -> None:
        """Leave it to `grid`: with the networks of a table, a control alone makes sense."""

    @property
    def ablations(self) -> list[Ablation]:
        """The requested ablations.

        Raises:
            CBAMError: There is none, or one that does not exist.
        """
        chosen = [ablation.table(number) for number in _numbers("table", self.table)]
        if self.reduction is not None:
            chosen.append(ablation.reductions(_numbers("reduction", self.reduction)))
        if self.kernel is not None:
            chosen.append(ablation.kernels(_numbers("kernel", self.kernel)))
        if not chosen:
            raise CBAMError(
                "no ablation is named. Type --table 1,2,3, --reduction 4,8,16,32 or --kernel 3,5,7,9"
            )
        return chosen

    def grid(self) -> CompareConfig:
        """Return the comparison that trains their networks."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(CompareConfig)}
        further = [name.strip() for name in self.attention.split(",") if name.strip()]
        own["attention"] = ",".join(ablation.variants(self.ablations, further))
        plain = CompareConfig(**{**own, "output": None})
        if self.output is None:
            own["output"] = plain.folder.with_name(f"ablate-{plain.folder.name}")
        return CompareConfig(**own)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    if arguments and arguments[0].partition("=")[0] == "--report":
        return _report(arguments)
    config = parse(arguments)
    if config.report is not None:
        raise CBAMError(_ALONE)
    if not config.data:
        raise CBAMError("ablate needs images: type --data NAME, for example --data fashion-mnist")
    ablations = config.ablations
    from cbam.cli.running import placed, run_job
    from cbam.compare.run import prepare

    outcome = run_job(prepare, placed(config.grid()), ["cbam", "ablate", *arguments])
    if outcome:
        from cbam.compare.ablation_page import tables_text, write_page

        print(tables_text(outcome.summary, ablations))
        print(f"\ntables: {write_page(outcome.report.parent)}\nreport: {outcome.report}")
    return 0


def parse(arguments: Sequence[str]) -> AblateConfig:
    """Read the options, those of a `--config` file first; exits with code 2 and an explanation if they are wrong.

    Args:
        arguments: What follows `cbam ablate`.

    >>> parse(["--data", "digits", "--table", "1"]).ablations[0].choice
    'channel:official'
    """
    return parse_as(AblateConfig, arguments, "cbam ablate", DESCRIPTION)


def _report(arguments: Sequence[str]) -> int:
    from cbam.compare.ablation_page import page

    _, equals, folder = arguments[0].partition("=")
    words = [*([folder] if equals else []), *arguments[1:]]
    if len(words) != 1:
        raise CBAMError(_ALONE)
    run = Path(words[0])
    if not (run / "config.yaml").exists():  # `page` would name `cbam compare`
        found = "no run folder at" if not run.is_dir() else "no run in the folder"
        raise CBAMError(f"{found} {run}; `cbam ablate --output {run} ...` makes one")
    print(page(run), end="")
    return 0


def _numbers(option: str, text: str | None) -> list[int]:
    try:
        return [int(word) for word in (text or "").split(",") if word.strip()]
    except ValueError:
        raise CBAMError(f"--{option} takes whole numbers with commas, e.g. 1,2,3; given {text!r}") from None
