"""A small ResNet with torchvision's names, plain or with a peer's attention where that peer puts it."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from cbam import attach
from tests.checkpoints import peers

SIZE = (3, 32, 32)


def plain(seed=0):
    """A torchvision ResNet of four blocks with drawn weights and statistics."""
    return peers.shaken(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), seed)


class PeerBlock(nn.Module):
    """torchvision's BasicBlock with attention before the addition, as children of given names."""

    def __init__(self, block, attention):
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.downsample = block.downsample
        self.order = list(attention)
        for name, module in attention.items():
            self.add_module(name, module)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        for name in self.order:
            module = getattr(self, name)
            y = y * module(y) if name in ("ca", "sa") else module(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def with_peer(make, seed=1):
    """The small ResNet with `make(channels)` = {name: module} in every block."""
    model = plain(seed)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage[0] = PeerBlock(stage[0], make(stage[0].conv2.out_channels))
    return peers.shaken(model, seed)


def attached(**options):
    """The small ResNet with this library's attention."""
    model = plain(2)
    attach(model, input_size=SIZE, **options)
    return model.eval()


def image(seed=3):
    return torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(seed))
