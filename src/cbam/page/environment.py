"""The templates of a page: those of its own package, and the shared ones."""

from __future__ import annotations

import base64
import hashlib

import jinja2
from markupsafe import Markup

from cbam.formatting import counted
from cbam.page.drawing import LOOKS, OTHER_LOOK, css_name


def environment(package: str) -> jinja2.Environment:
    """Return the environment for the templates of `package`, which may extend `page.html.j2`.

    `page.html.j2` has the head, the style sheet and the script of every page; its content security policy allows this
    script alone, and no request. `parts.html.j2` has what pages repeat.

    >>> "sha256-" in environment("cbam.page").globals["script_policy"]
    True
    """
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader(package, "templates"), jinja2.PackageLoader("cbam.page", "templates")]
    )
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    made.filters["css"] = css_name
    made.filters["counted"] = counted
    made.globals["looks"] = {
        css_name(variant): style[:2] for variant, style in {**LOOKS, "other": OTHER_LOOK}.items()
    }
    source, _, _ = loader.get_source(made, "page.js")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    made.globals["script"] = Markup(f"<script>{source}</script>")
    made.globals["script_policy"] = Markup(f"script-src 'sha256-{digest}'")
    return made
