"""Each kind of page, written once."""

from __future__ import annotations

import pytest

from tests.page.kinds import KINDS


@pytest.fixture(scope="session", params=KINDS)
def file(request, tmp_path_factory):
    """A page of each command."""
    pytest.importorskip("matplotlib")
    return KINDS[request.param](tmp_path_factory.mktemp("page") / request.param)
