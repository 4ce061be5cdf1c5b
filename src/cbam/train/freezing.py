"""The first epochs of a fine-tuning: only the classifier and the attention learn, the backbone stays as it is."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from cbam.errors import CBAMError
from cbam.models.classifier import last_layer
from cbam.nn.base import AttentionModule


class Backbone:
    """The part of a network that is neither classifier nor attention.

    Args:
        model: Before it is sharded.

    Raises:
        CBAMError: It has no classifier that could be told apart.

    >>> from cbam import CBAM
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), CBAM(16), nn.Flatten(), nn.Linear(16, 2))
    >>> sorted(Backbone(net).names)
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """

    def __init__(self, model: nn.Module):
        head = last_layer(model)
        if head is None:
            raise CBAMError(
                "--freeze-backbone: the network has no linear or convolutional layer as its classifier"
            )
        learning = {id(parameter) for parameter in head[1].parameters()}
        for module in model.modules():
            if isinstance(module, AttentionModule):
                learning |= {id(part) for part in (*module.parameters(), *module.modules())}
        self.names = {name for name, weight in model.named_parameters() if id(weight) not in learning}
        self.norms = {
            name
            for name, module in model.named_modules()
            if isinstance(module, _NormBase) and id(module) not in learning
        }

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the weights of the backbone of a network of the same names."""
        return [weight for name, weight in model.named_parameters() if name in self.names]

    def hold_statistics(self, model: nn.Module) -> None:
        """Let batch norms of the backbone use their running statistics, and keep them."""
        for name, module in model.named_modules():
            if name in self.norms:
                module.eval()
