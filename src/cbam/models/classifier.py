"""What our backbones share: the head, from the last map to the logits, with the method names of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cbam.checkpoints.sites import named_in_state, sites_of
from cbam.errors import CBAMError


class MapClassifier(nn.Module):
    """A network that makes one map of features, averages it over its positions and applies a linear layer `fc`.

    Subclasses define `forward_features` and call `add_classifier` after creating their other layers.

    >>> from cbam.models import build_model
    >>> net = build_model("resnet20", 10)
    >>> net.reset_classifier(4)
    >>> net.get_classifier().out_features, net.num_features
    (4, 64)
    """

    num_features: int
    num_classes: int

    def add_classifier(self, num_features: int, num_classes: int) -> None:
        """Add the linear layer from `num_features` channels to `num_classes` logits."""
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to the last map (N, num_features, h, w)."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """Average a map (N, C, h, w) to (N, C)."""
        return x.mean(dim=(2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last map to logits (N, num_classes), or to the averages before them."""
        x = self.pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the layer that gives the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of the same device and dtype, or by none for 0 classes.

        Raises:
            CBAMError: for a negative number, or another pooling than the average.
        """
        if num_classes < 0:
            raise CBAMError(f"num_classes must be at least 0, given {num_classes}.")
        if global_pool not in (None, "avg"):
            raise CBAMError(
                f"{type(self).__name__} pools by the average: global_pool='avg', given {global_pool!r}."
            )
        like = next(self.parameters())
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)


def last_layer(model: nn.Module) -> tuple[str, Any] | None:
    """Return the last linear or convolutional layer, in most networks the classifier, and its name in the state dict.

    Attached attention does not count.

    >>> last_layer(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)))[0]
    '1'
    """
    attention, state = tuple(sites_of(model)), model.state_dict()
    found = None
    for prefix, module in named_in_state(model):
        if attention and prefix.startswith(attention):
            continue
        if isinstance(module, (nn.Linear, nn.Conv2d)) and f"{prefix}weight" in state:
            found = prefix.removesuffix("."), module
    return found


def check_counts(num_classes: int, in_channels: int) -> None:
    """Refuse a network without classes or channels.

    Raises:
        CBAMError: if a count is below 1.

    >>> check_counts(10, 3)
    """
    if num_classes < 1 or in_channels < 1:
        raise CBAMError(
            "num_classes and in_channels must be at least 1, given "
            f"num_classes={num_classes}, in_channels={in_channels}."
        )


def kaiming_fan_out(model: nn.Module) -> None:
    """Draw every convolution's weights from a normal distribution of variance 2 / (out_channels k^2 / groups).

    >>> from torch import nn
    >>> kaiming_fan_out(nn.Conv2d(3, 8, 3))
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
