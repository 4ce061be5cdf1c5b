"""Our backbones against one table: sizes, places for attention, shapes, gradients; and against other people's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cbam.attach import attach
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.models import MobileNetV1, PreActivationResNet, build_model, made_for
from cbam.models.paper_resnet import PaperResNet
from cbam.models.registry import OWN


@dataclass(frozen=True)
class Expected:
    """Parameters with the classes that it was made for, {channels: places} of the attention, first and last place."""

    name: str
    parameters: int
    places: dict[int, int]
    first: str
    last: str


def _stages(widths, counts):
    return dict(zip(widths, counts, strict=True))


BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
TABLE = [
    Expected("resnet20", 269_722, _stages((16, 32, 64), (3, 3, 3)), "layer1.0.bn2", "layer3.2.bn2"),
    Expected("resnet32", 464_154, _stages((16, 32, 64), (5, 5, 5)), "layer1.0.bn2", "layer3.4.bn2"),
    Expected("resnet44", 658_586, _stages((16, 32, 64), (7, 7, 7)), "layer1.0.bn2", "layer3.6.bn2"),
    Expected("resnet56", 853_018, _stages((16, 32, 64), (9, 9, 9)), "layer1.0.bn2", "layer3.8.bn2"),
    Expected("resnet110", 1_727_962, _stages((16, 32, 64), (18,) * 3), "layer1.0.bn2", "layer3.17.bn2"),
    Expected("resnet164", 1_703_258, _stages((64, 128, 256), (18,) * 3), "layer1.0.conv3", "layer3.17.conv3"),
    Expected("resnet1001", 10_327_706, _stages((64, 128, 256), (111,) * 3), "layer1.0.conv3", "layer3.110.conv3"),
    Expected("paper_resnet18", 11_689_512, _stages(BASIC, (2, 2, 2, 2)), "layer1.0.bn2", "layer4.1.bn2"),
    Expected("paper_resnet34", 21_797_672, _stages(BASIC, (3, 4, 6, 3)), "layer1.0.bn2", "layer4.2.bn2"),
    Expected("paper_resnet50", 25_557_032, _stages(BOTTLENECK, (3, 4, 6, 3)), "layer1.0.bn3", "layer4.2.bn3"),
    Expected("paper_resnet101", 44_549_160, _stages(BOTTLENECK, (3, 4, 23, 3)), "layer1.0.bn3", "layer4.2.bn3"),
    Expected("paper_resnet152", 60_192_808, _stages(BOTTLENECK, (3, 8, 36, 3)), "layer1.0.bn3", "layer4.2.bn3"),
    Expected("paper_resnet200", 64_673_832, _stages(BOTTLENECK, (3, 24, 36, 3)), "layer1.0.bn3", "layer4.2.bn3"),
    Expected("wrn18_1.5", 25_875_816, _stages((96, 192, 384, 768), (2,) * 4), "layer1.0.bn2", "layer4.1.bn2"),
    Expected("wrn18_2.0", 45_618_216, _stages((128, 256, 512, 1024), (2,) * 4), "layer1.0.bn2", "layer4.1.bn2"),
    Expected(
        "paper_resnext50_32x4d", 25_028_904, _stages(BOTTLENECK, (3, 4, 6, 3)), "layer1.0.bn3", "layer4.2.bn3"
    ),
    Expected(
        "paper_resnext101_32x4d", 44_177_704, _stages(BOTTLENECK, (3, 4, 23, 3)), "layer1.0.bn3", "layer4.2.bn3"
    ),
    Expected(
        "mobilenet_v1", 4_231_976, {32: 2, 64: 2, 128: 4, 256: 4, 512: 12, 1024: 3},
        "stem.relu", "layers.12.1.relu",
    ),
    Expected(
        "mobilenet_v1_0.7", 2_298_747, {22: 2, 44: 2, 89: 4, 179: 4, 358: 12, 716: 3},
        "stem.relu", "layers.12.1.relu",
    ),
]  # fmt: skip
NAMES = [row.name for row in TABLE]


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _on_meta(name, *args, **more):
    with torch.device("meta"):
        return build_model(name, *args, **more)


def _places(model):
    return [name for name, module in model.named_modules() if isinstance(module, WithAttention)]


def test_the_table_has_all_of_them():
    assert list(OWN) == NAMES


DEEP = ("resnet1001",)
ROWS = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in DEEP)) for row in TABLE]


@pytest.mark.parametrize("row", ROWS)
def test_parameters_places_and_gradients(row):
    classes, size = made_for(row.name)
    assert size == ((3, 32, 32) if classes == 10 else (3, 224, 224))
    assert _parameters(_on_meta(row.name, classes)) == row.parameters
    model = _on_meta(f"{row.name}_cbam", classes)
    places = _places(model)
    assert (places[0], places[-1], len(places)) == (row.first, row.last, sum(row.places.values()))
    gates = sum(n * (2 * c * max(1, c // 16) + max(1, c // 16) + c) for c, n in row.places.items())
    assert _parameters(model) == row.parameters + gates + (2 * 49 + 2) * len(places)
    model(torch.zeros(3, 3, 41, 33, device="meta")).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    if len(places) < 20:
        assert _parameters(_on_meta(f"{row.name}_se", classes)) == row.parameters + gates


# The increments that were counted by hand from the paper's Table 4.
@pytest.mark.parametrize(
    ("name", "se", "cbam"),
    [
        ("paper_resnet18", 89_080, 89_880),
        ("paper_resnet50", 2_530_992, 2_532_592),
        ("paper_resnext50_32x4d", 2_530_992, 2_532_592),
    ],
)
def test_what_attention_adds(name, se, cbam):
    plain = _parameters(_on_meta(name, 1000))
    assert _parameters(_on_meta(f"{name}_se", 1000)) - plain == se
    assert _parameters(_on_meta(f"{name}_cbam", 1000)) - plain == cbam


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEEP])
def test_any_classes_channels_and_sizes(name):
    for channels, height, width in ((1, 33, 40), (4, 64, 65)):
        images = torch.zeros(3, channels, height, width, device="meta")
        assert _on_meta(name, 7, in_channels=channels)(images).shape == (3, 7)


@pytest.mark.parametrize("name", ["resnet20", "paper_resnet18_se", "mobilenet_v1_0.7", "resnet164"])
def test_gradients_on_real_images(name):
    torch.manual_seed(0)
    model = build_model(name, 3, in_channels=2)
    F.cross_entropy(model(torch.randn(4, 2, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        if ".spatial_attention.conv." not in key:  # behind a norm that starts at zero
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *((f"paper_resnet{depth}", f"resnet{depth}") for depth in (18, 34, 50, 101, 152)),
        ("paper_resnet200", "timm/resnet200"),
        ("paper_resnext50_32x4d", "resnext50_32x4d"),
    ],
)
def test_keys_and_shapes_are_torchvision_s(ours, theirs):
    a, b = (_on_meta(name, 5, in_channels=1).state_dict() for name in (ours, theirs))
    assert [(key, value.shape) for key, value in a.items()] == [
        (key, value.shape) for key, value in b.items()
    ]


@pytest.mark.parametrize("depth", [18, 50])
def test_the_same_seed_gives_torchvision_s_weights_and_its_outputs(depth):
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=5).eval()
    torch.manual_seed(3)
    ours = PaperResNet(depth, 5, stride_on="second").eval()
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", ["paper_resnet101", "paper_resnext50_32x4d"])
def test_bottlenecks_stride_on_their_first_convolution(name):
    model = _on_meta(name, 10)
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(model, f"layer{stage}")):
            halved = stage > 1 and number == 0
            assert block.conv1.stride == ((2, 2) if halved else (1, 1))
            assert block.conv2.stride == block.conv3.stride == (1, 1)
            assert block.conv2.groups == (32 if "resnext" in name else 1)


@pytest.mark.parametrize(("name", "factor"), [("wrn18_1.5", 1.5), ("wrn18_2.0", 2.0)])
def test_the_wide_resnet_keeps_its_first_convolution(name, factor):
    model = _on_meta(name, 10)
    assert model.conv1.out_channels == 64
    stages = [getattr(model, f"layer{stage}")[0].conv1.out_channels for stage in (1, 2, 3, 4)]
    assert stages == [64 * factor, 128 * factor, 256 * factor, 512 * factor]
    assert model.layer1[0].downsample is not None


# He et al. (2016), Table 4, counts the weights of convolutions and the classifier.
@pytest.mark.parametrize(("depth", "millions"), [(164, 1.7), (1001, 10.2)])
def test_pre_activation_weights_are_those_of_table_4(depth, millions):
    with torch.device("meta"):
        layers = [m for m in PreActivationResNet(depth).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert round(sum(map(_parameters, layers)) / 1e6, 1) == millions
    assert len(layers) - 3 == depth, "projections are not counted as layers"


def test_the_pre_activation_forward_is_the_written_one():
    torch.manual_seed(0)
    net = PreActivationResNet(11, num_classes=5, in_channels=1).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 1, 14, 12, dtype=torch.float64)
    weights = net.state_dict()

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def active(x, name):
        mean, var, weight, bias = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = conv(images, "conv1")
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        first = active(x, f"{block}.bn1")
        branch = conv(first, f"{block}.conv1", stride)
        branch = conv(active(branch, f"{block}.bn2"), f"{block}.conv2")
        branch = conv(active(branch, f"{block}.bn3"), f"{block}.conv3")
        x = branch + conv(first, f"{block}.downsample", stride)
    expected = active(x, "bn").mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(net(images), expected)


def test_vgg_and_torchvision_s_resnets_take_the_suffix_too():
    vgg = _on_meta("vgg16_se", 10)
    assert len(_places(vgg)) == 5, "the end of each of the five stages"
    assert len(_places(_on_meta("resnet50_cbam", 10))) == 16
    assert _parameters(_on_meta("torchvision/resnet50_cbam", 1000)) == 28_089_624
    assert (
        len(_places(_on_meta("resnet200_cbam", 10))) == len(_places(_on_meta("timm/resnet200_se", 10))) == 66
    )


def test_a_network_with_a_suffix_is_the_paper_s():
    torch.manual_seed(0)
    model = build_model("resnet20_cbam", 10)
    torch.manual_seed(0)
    other = build_model("resnet20", 10)
    attach(other, "cbam", input_size=(3, 32, 32), preset="official", init="paper")
    assert str(model) == str(other)
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_pretrained_weights_and_fresh_gates_do_not_go_together():
    with pytest.raises(CBAMError, match=r"Build 'resnet18' with pretrained .*cbam.attach\(model, 'cbam'\)"):
        build_model("resnet18_cbam", 10, pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paper_resnet51_cbam", "Did you mean 'paper_resnet50_cbam'"),
        ("paper_resnet50_cbma", "Did you mean 'paper_resnet50_cbam'"),
        ("timm/resnet49_se", "Did you mean 'timm/resnet.*_se'"),
        ("_cbam", "unknown model '_cbam'"),
    ],
)
def test_unknown_names_with_a_suffix(name, message):
    with pytest.raises(CBAMError, match=message):
        build_model(name, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PreActivationResNet(111), r"9n \+ 2 layers, given 111. Take 164"),
        (lambda: PaperResNet(51), "18, 34, 50, 101, 152, 200 layers, given 51"),
        (lambda: PaperResNet(50, stride_on="frist"), "Did you mean 'first'"),
        (lambda: PaperResNet(18, groups=32), "take no groups, given groups=32. Take 50"),
        (lambda: MobileNetV1(0.01), "at least 1 of the first layer's 32 channels, given 0.01"),
        (lambda: MobileNetV1(1.0, 0), "num_classes=0"),
    ],
)
def test_impossible_networks(build, message):
    with pytest.raises(CBAMError, match=message):
        build()


def test_the_classifier_can_be_exchanged():
    net = build_model("resnet20", 10).double()
    maps = net.forward_features(torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    assert net.forward_head(maps, pre_logits=True).shape == (2, net.num_features)
    net.reset_classifier(3, "avg")
    assert (net.num_classes, net.forward_head(maps).shape) == (3, (2, 3))
    net.reset_classifier(0)
    assert net(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 64)
    with pytest.raises(CBAMError, match="global_pool='avg', given 'max'"):
        net.reset_classifier(3, "max")
    with pytest.raises(CBAMError, match="at least 0, given -1"):
        net.reset_classifier(-1)


def test_timm_knows_our_parameters():
    assert _parameters(timm.create_model("resnet200")) == 64_673_832
