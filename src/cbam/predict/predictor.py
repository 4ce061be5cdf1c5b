"""A trained network that takes pictures as people have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from cbam.data.inputs import ImageSource, open_picture
from cbam.errors import CBAMError
from cbam.predict.prediction import Prediction
from cbam.preserve_state import preserve_state
from cbam.pretrained.opening import OpenedNetwork, open_network

if TYPE_CHECKING:
    from cbam.data.inputs import InputForm


class Predictor:
    """A network with its preprocessing and its class names; call it with pictures.

    Args:
        network: of `cbam.pretrained.open_network`.
        device: where to compute; None: a GPU if there is one.
        batch_size: pictures at a time.

    Attributes:
        network: what was opened.

    >>> import numpy as np, torch
    >>> from cbam import save_pretrained
    >>> from cbam.models import build_model
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as there:
    ...     net = build_model("resnet20_cbam", 2)
    ...     predictor = load_run(save_pretrained(net, there, "resnet20", class_names=["cat", "dog"]), device="cpu")
    >>> predictor(np.zeros((40, 60, 3), np.uint8)).label in ("cat", "dog")
    True
    >>> [len(found.probabilities) for found in predictor(torch.zeros(3, 3, 32, 32))]
    [2, 2, 2]
    """

    def __init__(
        self, network: OpenedNetwork, *, device: str | torch.device | None = None, batch_size: int = 32
    ):
        if batch_size < 1:
            raise CBAMError(f"batch_size must be at least 1, given {batch_size}.")
        self.network = network
        self.batch_size = batch_size
        self.device = torch.device(device) if device is not None else _best_device()
        self.preprocessing: InputForm = network.preprocessing
        network.model.to(self.device)

    @property
    def model(self) -> nn.Module:
        """The network, in evaluation mode; it takes what `prepare` returns."""
        return self.network.model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the outputs, in order."""
        return self.network.class_names

    def prepare(self, image: ImageSource, name: str = "the image") -> Tensor:
        """Return a picture as the network takes it: (C, H, W), resized, cropped and normalised.

        Raises:
            CBAMError: it cannot be read, or is an array of another form.
        """
        picture = open_picture(image, name)
        return self.preprocessing.batch([self.preprocessing.crop(picture)])[0]

    def __call__(self, images: Any) -> Any:
        """Return classes and probabilities: a `Prediction` for one picture, a list of them for several.

        Args:
            images: a file, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4), a tensor (H, W) or (C, H, W): one
                picture. A list of these, an array (N, H, W, C) or a tensor (N, C, H, W): several. Whole numbers of 8
                or 16 bits, or numbers from 0 to 1; not normalised.

        Raises:
            CBAMError: a picture that cannot be read, or an array of another form.
        """
        if isinstance(images, (str, Path, Image.Image)) or getattr(images, "ndim", 4) < 4:
            return self([images])[0]
        sources = list(images)
        names = [_name(source, number) for number, source in enumerate(sources, 1)]
        found: list[Prediction] = []
        for start in range(0, len(sources), self.batch_size):
            part = list(zip(names, sources, strict=True))[start : start + self.batch_size]
            found += self.of_batch(
                [name for name, _ in part], [self.prepare(one, name) for name, one in part]
            )
        return found

    def of_batch(self, names: Sequence[str], prepared: Sequence[Tensor]) -> Iterator[Prediction]:
        """Yield what the network says of pictures that `prepare` has prepared.

        Args:
            names: of the pictures.
            prepared: each (C, H, W).
        """
        if not prepared:
            return
        like = next(self.model.parameters(), torch.zeros(0))
        with torch.no_grad(), preserve_state(self.model):
            scores = self.model.eval()(torch.stack(list(prepared)).to(like.device, like.dtype))
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CBAMError(
                f"{self.network.title} is no classifier: it returns {shape}, expected scores (N, K)."
            )
        if len(self.class_names) != scores.shape[1]:
            raise CBAMError(
                f"{len(self.class_names)} class names for a network with {scores.shape[1]} outputs."
            )
        probabilities = self.network.probabilities(scores).cpu()
        for name, row in zip(names, probabilities, strict=True):
            yield Prediction(name, self.class_names, row, self.network.task)

    def __repr__(self) -> str:
        classes = f"{len(self.class_names)} classes"
        return f"Predictor({self.network.source!r}, {self.network.task}, {classes}, {self.preprocessing})"


def load_run(
    source: str | Path,
    model: nn.Module | str | None = None,
    *,
    variant: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
) -> Predictor:
    """Open a trained network in any form in which it is saved, for predictions.

    Args:
        source: a run of `cbam train` (its best weights), its `best/`, `final/` or `checkpoints/step-N/`, a run of
            `cbam compare` with `variant`, one of its cells, a folder of `cbam.save_pretrained`, a file of weights with
            `model`, "user/name" on the Hugging Face hub, or the name of a network of torchvision or timm with published
            weights.
        model: the network, or its name, where the source does not say it.
        variant: of a comparison, such as "cbam" (its first seed) or "cbam-seed2".
        class_names, image_size, mean, std: instead of those saved with it.
        device: where to compute; None: a GPU if there is one.
        batch_size: pictures at a time.

    Raises:
        CBAMError: there is no network, or it does not fit; the message names the neighbour that has one.

    Example:
        predictor = cbam.load_run("runs/train-photos-resnet18-cbam")
        predictor("cat.jpg").top(3)  # [("cat", 0.93), ("dog", 0.05), ("cow", 0.02)]
    """
    network = open_network(
        source, model, variant=variant, class_names=class_names, image_size=image_size, mean=mean, std=std
    )
    return Predictor(network, device=device, batch_size=batch_size)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _name(source: Any, number: int) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"image {number}"
