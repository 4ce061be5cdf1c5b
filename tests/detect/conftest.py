"""A small generated set for all tests of detectors; it needs Fashion-MNIST and scikit-image on this machine."""

import pytest

from cbam.data.detection import write_generated
from cbam.data.fashion_mnist import find_fashion_mnist
from tests.processes import Server


@pytest.fixture(scope="session")
def garments(tmp_path_factory):
    """Names of the set in each format: 20 training and 8 validation images of at most 64 pixels, three classes."""
    pytest.importorskip("skimage")
    if find_fashion_mnist(download=False).folder is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    classes = ("Trouser", "Sneaker", "Bag")
    return write_generated(
        tmp_path_factory.mktemp("garments"), images=20, validation=8, size=64, classes=classes, seed=3
    )


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()
