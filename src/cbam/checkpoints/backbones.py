"""Names of the network around the blocks for formats with their own: pytorchcv's ResNets."""

from __future__ import annotations

import re

from cbam.errors import CBAMError

# osmr/imgclsmob, pytorchcv/models/common and cbamresnet.py, against torchvision/models/resnet.py.
_FROM_PYTORCHCV = (
    (r"features\.init_block\.conv\.conv\.(.+)", r"conv1.\1"),
    (r"features\.init_block\.conv\.bn\.(.+)", r"bn1.\1"),
    (r"output\.(.+)", r"fc.\1"),
)
_BLOCK = re.compile(r"features\.stage(\d+)\.unit(\d+)\.(.+)")
_INSIDE = (
    (r"body\.conv(\d+)\.conv\.(.+)", r"conv\1.\2"),
    (r"body\.conv(\d+)\.bn\.(.+)", r"bn\1.\2"),
    (r"identity_conv\.conv\.(.+)", r"downsample.0.\1"),
    (r"identity_conv\.bn\.(.+)", r"downsample.1.\1"),
    (r"cbam\.(.*)", r"cbam.\1"),
)
_TO_PYTORCHCV = (
    (r"conv1\.(.+)", r"features.init_block.conv.conv.\1"),
    (r"bn1\.(.+)", r"features.init_block.conv.bn.\1"),
    (r"fc\.(.+)", r"output.\1"),
)
_BACK = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
_INSIDE_BACK = (
    (r"conv(\d+)\.(.+)", r"body.conv\1.conv.\2"),
    (r"bn(\d+)\.(.+)", r"body.conv\1.bn.\2"),
    (r"downsample\.0\.(.+)", r"identity_conv.conv.\1"),
    (r"downsample\.1\.(.+)", r"identity_conv.bn.\1"),
    (r"cbam\.(.*)", r"cbam.\1"),
)


def from_pytorchcv(key: str) -> str:
    """Return torchvision's name for a tensor of pytorchcv's ResNets; other names are returned unchanged.

    >>> from_pytorchcv("features.stage1.unit1.body.conv3.bn.weight")
    'layer1.0.bn3.weight'
    """
    match = _BLOCK.fullmatch(key)
    if match is None:
        return _first(_FROM_PYTORCHCV, key) or key
    inside = _first(_INSIDE, match[3])
    return key if inside is None else f"layer{match[1]}.{int(match[2]) - 1}.{inside}"


def to_pytorchcv(key: str) -> str:
    """Return pytorchcv's name for a tensor of torchvision's ResNets.

    Raises:
        CBAMError: a name that is in no ResNet.

    >>> to_pytorchcv("layer1.0.bn3.weight")
    'features.stage1.unit1.body.conv3.bn.weight'
    """
    match = _BACK.fullmatch(key)
    name = _first(_TO_PYTORCHCV, key) if match is None else _first(_INSIDE_BACK, match[3])
    if name is None:
        raise CBAMError(f"pytorchcv's CBAM networks are ResNets; {key!r} is no name in one.")
    return name if match is None else f"features.stage{match[1]}.unit{int(match[2]) + 1}.{name}"


def _first(rules: tuple[tuple[str, str], ...], key: str) -> str | None:
    for pattern, replacement in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return None
