"""Serve the page: to this machine unless asked otherwise, with nothing from outside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from cbam.demo.networks import Network
from cbam.demo.page import MOST_BYTES, build_page
from cbam.errors import CBAMError

# gradio's page asks for scripts and fonts of other hosts in a few places; the browser then does not.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:;"
        " object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_SESSIONS = 200  # whose last explanation is kept


class _Headers:
    """Adds the headers above to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(event: Any) -> None:
            if event["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                kept = [(name, value) for name, value in event["headers"] if name.decode() not in _HEADERS]
                event["headers"] = [*kept, *added]
            await send(event)

        await self.app(scope, receive, with_headers)


@contextlib.contextmanager
def serving(
    networks: Sequence[Network],
    host: str = "127.0.0.1",
    port: int | None = None,
    examples: Sequence[Path] = (),
) -> Iterator[str]:
    """Serve the page while a `with` block runs.

    Args:
        networks: to choose from.
        host: the address to listen at; 0.0.0.0: all of this machine.
        port: None: the first free one from 7860 on.
        examples: pictures to begin with.

    Yields:
        The page's address.

    Raises:
        CBAMError: the port is taken.
    """
    with TemporaryDirectory(prefix="cbam-demo-") as uploads:
        # For uploads a folder of their own, which only the user may read, and which is gone afterwards.
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ALLOWED_PATHS="", GRADIO_ANALYTICS_ENABLED="False")
        page = build_page(networks, examples)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                show_error=False,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                pwa=False,
                allowed_paths=[],
                max_file_size=MOST_BYTES,
                state_session_capacity=_SESSIONS,
                theme=_theme(),
                css=(Path(__file__).parent / "templates" / "demo.css").read_text(encoding="utf-8"),
                app_kwargs={"middleware": [Middleware(_Headers)]},
            )
            yield address
        except OSError as error:
            raise CBAMError(
                f"cannot serve at {host}, port {port}: {error}. Another one: --port NUMBER"
            ) from None
        finally:
            page.close(verbose=False)


def _theme() -> Any:
    """Return gradio's plain theme with the fonts of the reader's system."""
    return gr.themes.Default(
        primary_hue="orange",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
