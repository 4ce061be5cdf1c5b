"""attach on networks of signals, volumes and video; and maps whose channels are not where a shape suggests."""

import pytest
import torch
from torch import nn

import cbam
from cbam.attach import WithAttention
from cbam.attach.graph.axes import channel_axis
from cbam.attach.graph.probe import default_inputs, run_probe
from cbam.errors import CBAMError
from tests.attach.networks import move_gates

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
SIZE = {1: (2, 48), 2: (2, 12, 10), 3: (2, 6, 8, 10)}
every_dims = pytest.mark.parametrize("dims", CONV)


class Block(nn.Module):
    def __init__(self, dims, channels):
        super().__init__()
        self.conv1 = CONV[dims](channels, channels, 3, padding=1, bias=False)
        self.bn1, self.relu = NORM[dims](channels), nn.ReLU()
        self.conv2 = CONV[dims](channels, channels, 3, padding=1, bias=False)
        self.bn2 = NORM[dims](channels)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class ResNet(nn.Module):
    def __init__(self, dims, channels=16):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = CONV[dims](2, channels, 3, padding=1), POOL[dims](2)
        self.blocks = nn.Sequential(Block(dims, channels), Block(dims, channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.pool(self.stem(x))).flatten(2).mean(-1))


def video(name):
    return getattr(pytest.importorskip("torchvision.models.video"), name)()


def monai(name, *arguments, **options):
    return getattr(pytest.importorskip("monai.networks.nets"), name)(*arguments, **options)


# name -> (network, input_size, sites)
NETWORKS = {
    "ResNet of signals": (lambda: ResNet(1), SIZE[1], 2),
    "ResNet of volumes": (lambda: ResNet(3), SIZE[3], 2),
    "VGG of signals": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 16, 5), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(3),
        ), (2, 40), 2,
    ),
    "r3d_18": (lambda: video("r3d_18"), (3, 4, 32, 32), 8),
    "mc3_18": (lambda: video("mc3_18"), (3, 4, 32, 32), 8),
    "r2plus1d_18": (lambda: video("r2plus1d_18"), (3, 4, 32, 32), 8),
    "monai UNet 3-D": (lambda: monai("UNet", 3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2), (1, 16, 16, 16), 4),
    "monai UNet 1-D": (lambda: monai("UNet", 1, 1, 2, (4, 8, 16), (2, 2), num_res_units=2), (1, 64), 4),
    "monai BasicUNet": (lambda: monai("BasicUNet", 3, 1, 2, features=(4, 4, 8, 8, 16, 4)), (1, 32, 32, 32), 0),
    "monai SegResNet": (lambda: monai("SegResNet", 3, 8, 1, 2), (1, 16, 16, 16), 12),
    "monai ResNet 3-D": (
        lambda: monai("resnet10", spatial_dims=3, n_input_channels=1, num_classes=2), (1, 16, 32, 32), 4,
    ),
    "monai ResNet 1-D": (lambda: monai("resnet10", spatial_dims=1, n_input_channels=1, num_classes=2), (1, 64), 4),
}  # fmt: skip


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_identity_learning_and_detach(self, name):
        build, size, count = NETWORKS[name]
        model, x = build().eval(), torch.rand(2, *size)
        model(x)
        keys = list(model.state_dict())
        expected = model(x)
        attachment = cbam.attach(model, input_size=size)
        assert count in (0, len(attachment.sites))  # 0: the finders of U-Nets decide
        assert {site.dims for site in attachment.sites} == {len(size) - 1}
        assert torch.equal(model(x), expected)
        gates = {n: p for n, p in model.named_parameters() if ".cbam." in n}
        model.train()(x).square().mean().backward()
        assert all(p.grad is not None for p in gates.values())
        assert any(p.grad.abs().max() > 0 for p in gates.values())
        move_gates(model.eval())
        assert not torch.equal(model(x), expected)
        with cbam.disabled(model), torch.no_grad():
            still = model(x)
        cbam.detach(model)
        assert list(model.state_dict()) == keys
        assert torch.equal(model(x), still)

    @every_dims
    @pytest.mark.parametrize("attention", ["cbam", "se", "channel", "spatial", "eca"])
    def test_every_kind(self, dims, attention):
        model, x = ResNet(dims).eval(), torch.rand(2, *SIZE[dims])
        expected = model(x)
        plan = cbam.attach(model, attention, input_size=SIZE[dims])
        assert torch.equal(model(x), expected)
        assert plan.added_parameters == sum(p.numel() for n, p in model.named_parameters() if ".cbam." in n)
        assert ["x".join(map(str, s.size)) in str(plan) for s in plan.sites] == [True, True]
        assert {s.epilogue for s in plan.sites} == (
            {"add, relu"} if dims == 2 and attention != "eca" else {""}
        )

    @every_dims
    def test_maps(self, dims):
        model, x = ResNet(dims).eval(), torch.rand(2, *SIZE[dims])
        cbam.attach(model, input_size=SIZE[dims])
        with cbam.attention_maps(move_gates(model)) as maps:
            model(x)
        assert maps["blocks.1.bn2"].channel.shape == (2, 16)
        assert maps["blocks.1.bn2"].spatial.shape == (2, 1, *(n // 2 for n in SIZE[dims][1:]))

    @every_dims
    def test_gates_of_a_kind_of_ones_own(self, dims):
        def build(channels, dims):
            module = CONV[dims](channels, channels, 1)
            module.forward = lambda x: x * 1.0
            return module

        name = f"dims_test_gate_{dims}"
        cbam.register_attention(name, build, gates=lambda module, x: x.mean(1, keepdim=True))
        model, x = ResNet(dims).eval(), torch.rand(2, *SIZE[dims])
        cbam.attach(model, name, input_size=SIZE[dims])
        with cbam.attention_maps(model) as maps:
            model(x)
        assert maps["blocks.1.bn2"].spatial.shape == (2, 1, *(n // 2 for n in SIZE[dims][1:]))

    @every_dims
    def test_fold_gate_scale(self, dims):
        model, x = ResNet(dims).eval(), torch.rand(2, *SIZE[dims])
        cbam.attach(model, input_size=SIZE[dims])
        expected = move_gates(model)(x)
        assert cbam.fold_gate_scale(model) == 2
        assert torch.equal(model(x), expected)

    def test_attention_of_images_only(self):
        pytest.importorskip("timm")
        with pytest.raises(CBAMError, match=r"attention 'timm:se' fails on a map of 16x3x4x5"):
            cbam.plan(ResNet(3), "timm:se", input_size=SIZE[3])


class TestInput:
    @pytest.mark.parametrize(
        ("dims", "given", "expected"),
        [
            (1, None, (1, 2, 1024)),
            (1, 100, (1, 2, 100)),
            (2, None, (1, 2, 224, 224)),
            (3, None, (1, 2, 64, 64, 64)),
            (3, 32, (1, 2, 32, 32, 32)),
            (3, (2, 4, 8, 8), (1, 2, 4, 8, 8)),
        ],
    )
    def test_follows_the_first_convolution(self, dims, given, expected):
        assert default_inputs(ResNet(dims), given)[0].shape == expected

    @pytest.mark.parametrize(
        ("dims", "given", "message"),
        [
            (3, (2, 64, 64), r"input_size expects \(channels, depth, height, width\).*begins with Conv3d"),
            (
                1,
                (2, 64, 64),
                r"input_size expects \(channels, length\), or one side, got .*begins with Conv1d",
            ),
            (2, (2, 4, 64, 64), r"input_size expects \(channels, height, width\), or one side, got"),
        ],
    )
    def test_other_sizes(self, dims, given, message):
        with pytest.raises(CBAMError, match=message):
            cbam.plan(ResNet(dims), input_size=given)

    def test_a_failed_probe_says_which_size_to_pass(self):
        with pytest.raises(CBAMError, match=r"failed: .*input_size=\(C, D, H, W\)"):
            cbam.plan(video("mvit_v2_s"))


class Tail(nn.Module):
    """A convolution, then `step`, whose result is the site."""

    def __init__(self, step, dims=2):
        super().__init__()
        self.conv, self.site, self.step = CONV[dims](3, 6, 3, padding=1), nn.Identity(), step

    def forward(self, x):
        return self.site(self.step(self.conv(x)))


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class TestAxes:
    """Where the channels are after steps that move, split and join axes."""

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (lambda x: x, 1),
            (torch.relu, 1),
            (lambda x: x.permute(0, 2, 3, 1), 3),
            (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
            (lambda x: x.flatten(2), 1),
            (lambda x: x.flatten(2).transpose(1, 2), 2),
            (lambda x: nn.functional.layer_norm(x.movedim(1, -1), (6,)), 3),
            (lambda x: nn.functional.linear(x.movedim(1, -1), torch.ones(4, 6)), 3),
            (lambda x: nn.functional.linear(x, torch.ones(8, 8)), 1),  # along the width: mixes positions
            (lambda x: nn.functional.linear(x.flatten(2), torch.ones(5, 64)).transpose(1, 2), 2),
            (shuffled, 1),
            (lambda x: torch.cat([x, x], 1), 1),
            (lambda x: x.chunk(2, 1)[0], 1),
            (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 1),
            (lambda x: x[:, :, ::2, ::2], 1),
            (lambda x: nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2), 1),
            (lambda x: nn.functional.instance_norm(x), 1),
            (lambda x: nn.functional.pixel_shuffle(torch.cat([x, x], 1), 2), 1),
            (lambda x: x.flatten(1), None),
            (lambda x: x[0], 0),
            (lambda x: x.mean(1), None),
            (lambda x: x.permute(0, 2, 3, 1) + x.permute(0, 2, 3, 1).sum(), 3),
            (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2), None),  # channels by channels
            (lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1) @ x.flatten(2).transpose(1, 2), 2),
            (lambda x: nn.functional.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3), 2),
        ],
    )  # fmt: skip
    def test_after(self, step, expected):
        model = Tail(step)
        for batch in (1, 2):
            probe = run_probe(model, (torch.rand(batch, 3, 8, 8),))
            assert probe.nodes[-1].channel_axis == expected

    def test_a_contradiction_is_unknown(self):
        probe = run_probe(Tail(lambda x: x + x.transpose(1, 3)), (torch.rand(1, 3, 6, 6),))
        assert probe.nodes[-1].channel_axis is None

    def test_a_later_step_tells(self):
        class Unfolded(nn.Module):  # pixels of 2 x 2 become channels, which only the convolution says
            def __init__(self):
                super().__init__()
                self.site, self.conv = nn.Identity(), nn.Conv2d(12, 4, 3)

            def forward(self, x):
                n, c, h, w = x.shape
                x = (
                    x.view(n, c, h // 2, 2, w // 2, 2)
                    .permute(0, 3, 5, 1, 2, 4)
                    .reshape(n, 4 * c, h // 2, w // 2)
                )
                return self.conv(self.site(x))

        assert [s.channels for s in cbam.plan(Unfolded(), sites="site", input_size=(3, 8, 8)).sites] == [12]

    def test_of_nothing(self):
        assert channel_axis(()) is None


class TestRefused:
    """Each was accepted with the wrong channels, or refused with the wrong advice, by rank alone."""

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (lambda x: x.permute(0, 2, 3, 1), r"\(1, 8, 8, 6\) with its 6 channels last, not .* \(N, C, H, W\)"),
            (lambda x: x.flatten(2).transpose(1, 2), r"\(1, 64, 6\) with its 6 channels last, not .* \(N, C, L\)"),
            (lambda x: x[0], r"\(6, 8, 8\) with its 6 channels first, without a batch"),
            (lambda x: x.permute(0, 2, 1, 3), r"with its 6 channels on axis 2"),
            (lambda x: x.mean(1), r"does not tell which axis holds the channels.*returns a map \(N, C, L\)"),
            (lambda x: x.flatten(1), r"\(1, 384\), not a feature map"),
        ],
    )  # fmt: skip
    def test_a_site(self, step, message):
        model = Tail(step)
        with pytest.raises(CBAMError, match=r"site 'site' \(Identity\) gives shape .*" + message):
            cbam.attach(model, sites="site", input_size=(3, 8, 8))
        assert not any(isinstance(module, WithAttention) for module in model.modules())

    def test_convnexts_linear_layers(self):
        model = pytest.importorskip("torchvision").models.convnext_tiny()
        with pytest.raises(CBAMError, match=r"gives shape \(1, 8, 8, 96\) with its 96 channels last"):
            cbam.plan(model, sites="features.1.0.block.5", input_size=32)

    @pytest.mark.parametrize("name", ["swin_t", "vit_b_16"])
    def test_transformers(self, name):
        model = getattr(pytest.importorskip("torchvision").models, name)()
        with pytest.raises(CBAMError, match=r"is no CNN: .* embeds patches, and what follows are tokens"):
            cbam.plan(model, input_size=224)
        if name == "swin_t":
            with pytest.raises(CBAMError, match=r"gives shape \(1, 8, 8, 96\) with its 96 channels last"):
                cbam.plan(model, sites="features.1", input_size=32)

    def test_video_transformers(self):
        mvit = pytest.importorskip("torchvision.models.video.mvit")
        blocks = [mvit.MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 1, 1])] * 2
        model = mvit.MViT((32, 32), 8, blocks, True, False, True, True)
        with pytest.raises(CBAMError, match=r"^MViT is no CNN: conv_proj embeds patches, and what follows"):
            cbam.plan(model, input_size=(3, 8, 32, 32))

    def test_mixers_and_maps_with_channels_last_of_timm(self):
        timm = pytest.importorskip("timm")
        mixer, out = timm.create_model("mixer_s32_224"), timm.create_model("mambaout_femto")
        with pytest.raises(CBAMError, match=r"gives shape \(1, 49, 512\) with its 512 channels last"):
            cbam.plan(mixer, sites="blocks.0")
        # Its blocks add maps (N, H, W, C): they had gates of 56 channels, the height.
        assert {s.channels for s in cbam.plan(out).sites} == {24, 48, 96, 192, 288}

    def test_a_volume_without_a_batch_is_no_image(self):
        """Conv3d takes (C, D, H, W); the result was read as a batch of images with the depth for channels."""
        model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
        with pytest.raises(CBAMError, match="'auto' finds no site"):
            cbam.plan(model, example_input=torch.rand(1, 3, 16, 16))
        with pytest.raises(CBAMError, match=r"its 8 channels first, without a batch"):
            cbam.plan(model, sites="1", example_input=torch.rand(1, 3, 16, 16))

    def test_a_module_that_runs_on_maps_of_several_dimensions(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.act = nn.Conv2d(3, 8, 3), nn.ReLU()

            def forward(self, x):
                x = self.act(self.conv(x))
                return self.act(x.flatten(2))

        with pytest.raises(CBAMError, match="site 'act' gives maps of different channels"):
            cbam.plan(Both(), sites="act", input_size=(3, 8, 8))

    def test_dims_is_no_option(self):
        with pytest.raises(CBAMError, match=r"dims of cbam follows from the map at each site. Leave it out"):
            cbam.plan(ResNet(3), dims=2, input_size=SIZE[3])


def test_sequences_inside_a_network_of_images_are_not_its_maps():
    pytest.importorskip("timm")
    from timm.layers import EcaModule

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.eca, self.last = nn.Conv2d(3, 8, 3), EcaModule(8), nn.Conv2d(8, 4, 3)
            self.gate = nn.Conv1d(4, 4, 1)

        def forward(self, x):
            x = self.last(self.eca(self.conv(x)))
            return x + self.gate(x.flatten(2)).view_as(x)

    plan = cbam.plan(Net(), sites="conv", input_size=(3, 12, 12))
    assert [s.name for s in plan.sites] == ["conv", "last"]
    assert [s.dims for s in cbam.plan(Net(), sites="gate", input_size=(3, 12, 12)).sites] == [1]
