"""The report of a comparison: one self-contained HTML page."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from cbam.attach.variants import label
from cbam.compare.commands import train_commands
from cbam.compare.figures import classes_figure, curve_figure, differences_figure, seeds_figure
from cbam.compare.health import class_counts, levels, too_few_steps
from cbam.compare.mistakes import mistakes_section
from cbam.compare.reading import Run, read_run, telling_damage
from cbam.compare.statistics import ACCURACY, Score, Summary, p_text, points, score_of, summarise
from cbam.compare.tables import class_changes, cost_table, costed, curve_table, extremes
from cbam.compare.verdict import Finding, findings
from cbam.evaluate.metrics import sampling_error
from cbam.explain.overlay import colour_stops
from cbam.files import write_atomically
from cbam.page import embedded, environment, shell_lines


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path; an unfinished run gets a page that says so.

    Everything is inline; the page's content security policy forbids all requests.

    Args:
        run_dir: the folder that `cbam compare` wrote.

    Raises:
        CBAMError: the folder holds no run, or one of its files is broken; the message names the file.
    """
    with telling_damage(Path(run_dir)):
        return _write(read_run(Path(run_dir)))


def _write(run: Run) -> Path:
    score = score_of(run.data)
    summary = summarise(run.results, run.variants, score, run.rows)
    own = {
        "costed": costed(run),
        "pictures": _pictures(run),
        "colour_stops": colour_stops(),
        "sampling": _sampling(run, summary) if score is ACCURACY else None,
        "mistakes": mistakes_section(run),
    }
    return write_page(run, summary, score, "report.html.j2", own)


def write_page(run: Run, summary: Summary, score: Score, template: str, own: Mapping[str, Any]) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Args:
        run: what the folder holds.
        summary: of its results.
        score: the number that is compared.
        template: its name.
        own: what only this template reads.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            run=run,
            summary=summary,
            score=score,
            findings=[*findings(summary), *_remarks(run)],
            facts=_facts(run, summary),
            averaged=_averaged(run, score),
            figures=_figures(run, summary, score),
            curves=curve_table(run, (score.key, "train_loss")),
            costs=cost_table(run, summary.baseline),
            classes=_classes(run, summary, score),
            counted=any(map(class_counts, run.results)),
            levels=list(levels(run.results)),
            command=shell_lines(run.environment.get("command", [])),
            trainings={
                variant: shlex.join(words)
                for variant, words in train_commands(run.config, run.variants, run.parameters).items()
            },
            config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True).strip(),
            tests=_tests(summary),
            **own,
        )
    )
    return write_atomically(run.folder / "report.html", page)


def _environment() -> jinja2.Environment:
    found = environment("cbam.compare")
    found.filters |= {"label": label, "points": points, "p": p_text}
    return found


def _facts(run: Run, summary: Summary) -> list[tuple[str, str]]:
    seeds = sorted(
        {seed for _, seed in run.planned} or {seed for row in summary.variants for seed in row.seeds}
    )
    size = run.data.get("input_size")
    images = [f"{run.data[part]:,}" for part in ("train_images", "val_images") if part in run.data]
    facts = {
        "data": run.data.get("name") or run.config.get("data"),
        "model": run.config.get("model"),
        "images": " training, ".join(images) + " validation" if len(images) == 2 else None,
        "input": f"{size[0]} × {size[1]} × {size[2]}" if size else None,
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else None,
        "epochs": run.config.get("epochs"),
        "started": str(run.environment.get("started", ""))[:16].replace("T", " "),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _remarks(run: Run) -> list[Finding]:
    """Say if there were too few steps to train anything from scratch."""
    images, settings = run.data.get("train_images"), run.config
    batch_size, epochs = settings.get("batch_size"), settings.get("epochs")
    if settings.get("pretrained") or settings.get("weights") or not (images and batch_size and epochs):
        return []
    text = too_few_steps(images, batch_size, epochs)
    return [Finding(text, qualifies=True)] if text else []


def _averaged(run: Run, score: Score) -> dict[str, float]:
    """Mean score of the moving average of the weights, per variant, where the run kept one."""
    found: dict[str, list[float]] = {}
    for result in run.results:
        if result.get(f"{score.key}_ema") is not None:
            found.setdefault(result["variant"], []).append(result[f"{score.key}_ema"])
    return {variant: statistics.fmean(values) for variant, values in found.items()}


def _figures(run: Run, summary: Summary, score: Score) -> dict[str, Any]:
    variants = run.variants
    curves = run.history if any(row["epoch"] > 1 for row in run.rows) else {}
    return {
        "seeds": seeds_figure(summary, score, levels(run.results)) if run.results else None,
        "differences": differences_figure(summary, score),
        "score": curve_figure(
            curves,
            variants,
            score.key,
            f"Validation {score.word} in percent",
            percent=True,
            levels=levels(run.results),
        ),
        "loss": curve_figure(curves, variants, "train_loss", "Training loss", percent=False),
    }


def _classes(run: Run, summary: Summary, score: Score) -> list[dict[str, Any]]:
    others = [row.variant for row in summary.variants if row.variant != summary.baseline]
    changes = {variant: class_changes(run, variant, summary.baseline, score) for variant in others}
    shown = {variant: extremes(rows) for variant, rows in changes.items() if rows}
    drawn = [value for rows in shown.values() for row in rows for value in row.differences]
    return [
        {
            "variant": variant,
            "figure": classes_figure(
                variant, rows, summary.baseline, (min(0.0, *drawn), max(0.0, *drawn)), score
            ),
            "shown": rows,
            "total": len(changes[variant]),
        }
        for variant, rows in shown.items()
    ]


def _pictures(run: Run) -> dict[str, Any]:
    """Return the manifest of the pictures with every file replaced by a data URI, None where it is missing."""
    folder = run.folder / "pictures"
    images = []
    for entry in run.pictures.get("images", []):
        variants = {
            variant: {**shown, "overlay": picture(folder, shown.get("overlay"))}
            for variant, shown in entry["variants"].items()
        }
        images.append({**entry, "original": picture(folder, entry.get("original")), "variants": variants})
    shown = [variant for variant in run.variants if any(variant in image["variants"] for image in images)]
    size = run.pictures.get("map_size")
    return {
        "images": images,
        "variants": shown,
        "rule": run.pictures.get("rule", ""),
        "layer": run.pictures.get("layer", ""),
        "seed": run.pictures.get("seed"),
        "map_size": f"{size[0]} × {size[1]}" if size else None,
        "coarse": size is not None and min(size) < 4,
        "notes": run.pictures.get("notes") or {},
    }


def picture(folder: Path, name: str | None) -> Any:
    """Return a picture of a run's folder as a data URI with its size; None where it is missing."""
    return embedded(folder / Path(name).name) if name else None


def _tests(summary: Summary) -> int:
    """Count the intervals on the page."""
    gaps = [gap for row in summary.variants for gap in (row.to_baseline, row.to_control)]
    return sum(gap is not None and gap.low is not None for gap in gaps)


def _sampling(run: Run, summary: Summary) -> float | None:
    mean, images = summary[summary.baseline].mean, run.data.get("val_images")
    return sampling_error(mean, images) if mean is not None and images else None
