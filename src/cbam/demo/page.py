"""The page itself, in gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from cbam.data.pictures import FORMATS
from cbam.demo.networks import MOST_PIXELS, Network
from cbam.demo.results import message, render
from cbam.errors import CBAMError
from cbam.explain.explanation import Explanation

MOST_BYTES = 20_000_000  # of an upload
_AT_ONCE = 4  # answers that are computed; more wait
_WAITING = 100
_KEPT = 3600  # seconds: uploads, and what a session last saw
_PREDICTED = -1
_HINT = "Drop a picture, or take an example."


@dataclass(frozen=True)
class Seen:
    """What a session looks at."""

    explanation: Explanation
    attention: bool

    @property
    def sites(self) -> list[str]:
        """The sites whose gates were recorded, in the order of the network."""
        ((view,),) = self.explanation.views.values()
        return list(view.gates)


def _as_given(image: gr.Image) -> gr.Image:
    """Let a component hand on the file as it is, unopened, with its name, and fetch none from an address.

    On the component itself: gradio takes a class of one's own for a custom component and looks for its scripts.
    """
    move = image.async_move_resource_to_block_cache

    def preprocess(payload: ImageData | None) -> Any:
        if payload is None or payload.path is None:
            return None
        return payload.path, payload.orig_name or Path(payload.path).name

    async def move_local(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("Upload a picture; addresses are not opened.")
        return await move(url_or_file_path)

    image.preprocess = preprocess  # type: ignore[method-assign]
    image.async_move_resource_to_block_cache = move_local  # type: ignore[method-assign]
    return image


def build_page(networks: Sequence[Network], examples: Sequence[Path] = ()) -> gr.Blocks:
    """Return the page.

    Args:
        networks: to choose from, the first one chosen.
        examples: pictures to begin with.
    """
    by_title = {network.title: network for network in networks}

    def look(upload: Any, title: str, attention: bool, label: int, site: str | None) -> Any:
        return _look(by_title[title], upload, attention, label, site)

    def choose(title: str) -> Any:
        chosen = by_title[title]
        return _label_choices(chosen), _switch(chosen)

    first = networks[0]
    with gr.Blocks(title="cbam demo", analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        gr.HTML("<h1>Where does it look?</h1>" + f'<p class="lede">{_limits()}</p>')
        seen = gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = _as_given(
                    gr.Image(
                        label="Picture",
                        sources=["upload", "clipboard"],
                        height=280,
                        elem_id="upload",
                        buttons=[],
                    )
                )
                if examples:
                    # Not gr.Examples: it replaces the component by a new one, which opens the file itself.
                    samples = gr.Dataset(
                        components=[gr.Image(render=False)], samples=[[str(path)] for path in examples],
                        type="index", label="Examples", elem_id="examples",
                    )  # fmt: skip
                network = gr.Dropdown(list(by_title), value=first.title, label="Network", elem_id="network")
                attention = gr.Checkbox(**_switch_options(first), elem_id="attention")
                label = gr.Dropdown(**_label_options(first), elem_id="label")
                site = gr.Dropdown([], value=None, elem_id="site", **_no_sites())
                with gr.Row():
                    back = gr.Button("← Earlier site", elem_id="back", size="sm")
                    on = gr.Button("Later site →", elem_id="on", size="sm")
            with gr.Column(scale=5, min_width=300):
                results = gr.HTML(message(_HINT), elem_id="results")
        given, told = [upload, network, attention, label, site], [seen, results, site]
        work: Any = {
            "concurrency_limit": _AT_ONCE, "concurrency_id": "look", "show_progress": "minimal",
            "trigger_mode": "always_last", "api_visibility": "undocumented",
        }  # fmt: skip
        upload.change(look, given, told, **work)
        network.input(choose, network, [label, attention], api_visibility="undocumented").then(
            look, given, told, **work
        )
        if examples:
            samples.click(lambda index: str(examples[index]), samples, upload, api_visibility="undocumented")
        attention.input(look, given, told, **work)
        label.input(look, given, told, **work)
        quick: Any = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}
        site.input(_draw, [seen, site], results, **quick)
        for button, step in ((back, -1), (on, 1)):
            button.click(_mover(step), [seen, site], [site, results], **quick)
    page.queue(max_size=_WAITING)
    return page


def _look(network: Network, upload: Any, attention: bool, label: int, site: str | None) -> Any:
    """Return what the session has seen, its HTML, and the sites to choose from."""
    nothing = gr.Dropdown(choices=[], value=None, **_no_sites())
    if upload is None:
        return None, message(_HINT), nothing
    file, name = upload
    try:
        content = Path(file).read_bytes()
    except FileNotFoundError:
        return None, message("The picture is no longer here. Give it again.", alert=True), nothing
    try:
        chosen = None if label == _PREDICTED else label
        found = network.look(content, name, attention=attention, label=chosen)
    except CBAMError as error:
        return None, message(str(error), alert=True), nothing
    seen = Seen(found, attention or not network.has_attention)
    if not seen.sites:
        return seen, render(found, None, attention=seen.attention), nothing
    site = site if site in seen.sites else seen.sites[-1]
    choices = [(each or "the network", each) for each in seen.sites]
    return (
        seen,
        _draw(seen, site),
        gr.Dropdown(choices=choices, value=site, interactive=True, label="Site", info=""),
    )


def _draw(seen: Seen | None, site: str | None) -> str:
    return message(_HINT) if seen is None else render(seen.explanation, site, attention=seen.attention)


def _mover(step: int) -> Any:
    """Return the function that goes `step` sites on, and stops at the ends."""

    def move(seen: Seen | None, site: str | None) -> Any:
        if seen is None or site not in seen.sites:
            return site, _draw(seen, site)
        index = min(max(seen.sites.index(site) + step, 0), len(seen.sites) - 1)
        return seen.sites[index], _draw(seen, seen.sites[index])

    return move


def _label_options(network: Network) -> dict[str, Any]:
    choices = [("what the network says", _PREDICTED), *((n, i) for i, n in enumerate(network.class_names))]
    return {"choices": choices, "value": _PREDICTED, "label": "Class to explain", "filterable": True}


def _label_choices(network: Network) -> Any:
    return gr.Dropdown(**_label_options(network))


def _switch_options(network: Network) -> dict[str, Any]:
    info = "" if network.has_attention else "This network has none to switch."
    there = network.has_attention
    return {"value": there, "label": "Attention", "info": info, "interactive": there}


def _switch(network: Network) -> Any:
    return gr.Checkbox(**_switch_options(network))


def _no_sites() -> dict[str, Any]:
    return {"label": "Site", "info": "No gates to show.", "interactive": False}


def _limits() -> str:
    return (
        f"{', '.join(FORMATS)}, up to {MOST_BYTES // 10**6} MB and {MOST_PIXELS // 10**6} million pixels. Pictures are"
        " looked at on the computer that runs this page, and go nowhere else."
    )
