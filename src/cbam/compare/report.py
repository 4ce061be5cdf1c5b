"""The report of a comparison: one HTML page that needs no network and hides nothing."""

from __future__ import annotations

from pathlib import Path

import jinja2

from cbam.compare.reading import read_run
from cbam.compare.statistics import label, summarise, verdict_sentences
from cbam.train.files import write_atomically


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path."""
    run = read_run(Path(run_dir))
    summary = summarise(run.results, run.variants)
    loader = jinja2.PackageLoader("cbam.compare", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["label"] = label
    page = environment.get_template("report.html.j2").render(
        run=run, summary=summary, verdict=verdict_sentences(summary)
    )
    return write_atomically(run.folder / "report.html", page)
