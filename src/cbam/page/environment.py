"""The templates of a page: those of its own package, and the shared ones."""

from __future__ import annotations

import base64
import hashlib

import jinja2
from markupsafe import Markup


def environment(package: str) -> jinja2.Environment:
    """Return the environment for the templates of `package`, which may include `report.css`.

    A page with tables of class `sortable` includes `{{ sort_script }}`, and `{{ sort_policy }}` in its content
    security policy, which allows this script alone.

    >>> "sha256-" in environment("cbam.page").globals["sort_policy"]
    True
    """
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader(package, "templates"), jinja2.PackageLoader("cbam.page", "templates")]
    )
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    source, _, _ = loader.get_source(made, "sort.js")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    made.globals["sort_script"] = Markup(f"<script>{source}</script>")
    made.globals["sort_policy"] = Markup(f"script-src 'sha256-{digest}'")
    return made
