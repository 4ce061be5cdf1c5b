"""One server of `cbam` processes for all tests of the command line."""

import pytest

from tests.processes import Server


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()
