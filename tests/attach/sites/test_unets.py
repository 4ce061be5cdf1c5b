"""Networks with skip connections: stages of encoder and decoder, blocks, and class scores, which are no site."""

import functools

import pytest
import torch
from torch import nn

import cbam
from tests.attach.networks import Block
from tests.attach.unets import Context, DoubleConv, FunctionalUNet, Gate, SequenceUNet, double

PARTS = ["enc1", "enc2", "middle", "dec2", "dec1"]


def names(model, kind="auto", size=32):
    return [site.name for site in cbam.plan(model.eval(), sites=kind, input_size=size).sites]


def smp(name, encoder="vgg11_bn"):
    library = pytest.importorskip("segmentation_models_pytorch")
    return library.create_model(name, encoder_name=encoder, encoder_weights=None, classes=2)


def monai(name, *arguments, **options):
    return getattr(pytest.importorskip("monai.networks.nets"), name)(2, *arguments, **options)


class TestPlain:
    @pytest.mark.parametrize("mode", ["transposed", "nearest", "bilinear"])
    @pytest.mark.parametrize("block", [double, DoubleConv], ids=["sequences", "modules"])
    def test_every_stage_of_encoder_and_decoder(self, block, mode):
        model = SequenceUNet(block, mode=mode)
        inside = ".double_conv" if block is DoubleConv else ""
        stages = [f"{part}{inside}.5" for part in PARTS]
        assert names(model) == names(model, "stage") == stages
        assert names(model, "neck") == stages[3:]
        assert names(model, "head") == stages[-1:]
        assert names(model, "block") == PARTS
        assert "out" not in names(model, "conv")

    def test_nothing_changes_and_every_gate_learns(self):
        model, images = SequenceUNet().eval(), torch.rand(2, 3, 32, 32)
        before = model(images)
        cbam.attach(model, input_size=32)
        assert torch.equal(model(images), before)
        model.train()(images).square().sum().backward()
        still = [n for n, p in model.named_parameters() if "spatial" in n and not p.grad.abs().sum()]
        assert not still

    def test_functions_between_the_modules(self):
        assert names(FunctionalUNet()) == ["conv1", "conv3", "norm"]

    @pytest.mark.parametrize("part", [Gate, Context], ids=lambda part: part.__name__)
    def test_a_smaller_map_beside_the_way_is_no_stage(self, part):
        def block(inputs, outputs):
            ends = part(outputs) if part is Gate else Context(outputs // 2)
            return nn.Sequential(nn.Conv2d(inputs, outputs // (1 if part is Gate else 2), 1), nn.ReLU(), ends)

        assert names(SequenceUNet(block)) == [f"{name}.2" for name in PARTS]

    def test_a_sequence_at_several_resolutions_is_no_block(self):
        layers = [
            nn.Conv2d(3, 4, 3),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
        ]
        model = nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.LazyLinear(2)).eval()
        model(torch.rand(1, 3, 32, 32))
        with pytest.raises(cbam.CBAMError, match="sites='block' finds no site"):
            names(model, "block")


class TestScores:
    """What the network returns for every position is no site, whatever the kind."""

    @pytest.mark.parametrize(
        "last",
        [
            nn.Conv2d(4, 3, 1),
            nn.Sequential(nn.Conv2d(4, 3, 1), nn.Softmax(1)),
            nn.Sequential(nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2)),
            nn.Sequential(nn.Conv2d(4, 3, 1), nn.Dropout(), nn.Sigmoid()),
            nn.ConvTranspose2d(4, 3, 2, 2),
        ],
        ids=["scores", "softmax", "enlarged", "sigmoid", "transposed"],
    )
    def test_whatever_follows_them(self, last):
        model = SequenceUNet()
        model.out = last
        every = [
            name for kind in ("auto", "stage", "neck", "conv", "block", "head") for name in names(model, kind)
        ]
        assert every
        assert not [name for name in every if name.startswith("out")]

    def test_a_residual_block_that_makes_them(self):
        class Ends(SequenceUNet):
            def __init__(self):
                super().__init__()
                self.last = nn.Conv2d(2, 2, 3, padding=1)

            def forward(self, x):
                y = super().forward(x).relu()
                return y + self.last(y)

        assert "last" not in names(Ends())

    def test_a_residual_block_that_makes_features(self):
        class Last(Block):
            def forward(self, x):
                return x + self.conv2(self.relu(self.bn2(self.conv1(x))))

        model = nn.Sequential(nn.Conv2d(3, 8, 3), Last(8), Last(8))
        assert names(model) == ["1.conv2", "2.conv2"]

    def test_a_network_that_ends_with_an_activation_makes_features(self):
        assert names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())) == ["2"]


class TestLibraries:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["unet", "unetplusplus", "linknet", "deeplabv3plus", "fpn", "manet"])
    def test_decoders_of_smp(self, name):
        model = smp(name, "resnet18")
        stages = names(model, "stage", 128)
        decoder = [stage for stage in stages if stage.startswith("decoder.")]
        assert decoder
        assert names(model, "neck", 128) == [
            s for s in decoder if s not in ("decoder.p5", *_not_enlarged(name))
        ]
        for kind in ("auto", "stage", "conv", "block", "head"):
            assert not [site for site in names(model, kind, 128) if site.startswith("segmentation_head.")]

    def test_unet_of_smp(self):
        stages = names(smp("unet", "resnet18"), "stage", 64)
        encoder = ["encoder.relu", *(f"encoder.layer{i}.1" for i in (1, 2, 3, 4))]
        assert stages == [*encoder, *(f"decoder.blocks.{i}.conv2.2" for i in range(5))]

    def test_unet_of_monai(self):
        stages = names(monai("BasicUNet", 3, 2, (4, 4, 8, 16, 32, 4)))
        parts = [
            "conv_0",
            *(f"down_{i}.convs" for i in (1, 2, 3, 4)),
            *(f"upcat_{i}.convs" for i in (4, 3, 2, 1)),
        ]
        assert stages == [f"{part}.conv_1.adn.A" for part in parts]

    @pytest.mark.parametrize(
        ("build", "count", "residual"),
        [
            (functools.partial(monai, "UNet", 3, 2, (4, 8, 16), (2, 2)), 3, False),
            (functools.partial(monai, "UNet", 3, 2, (4, 8, 16), (2, 2), num_res_units=2), 4, True),
            (functools.partial(monai, "SegResNet", 8, 3, 2), 12, True),
            (
                functools.partial(monai, "DynUNet", 3, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16]),
                5,
                False,
            ),
            (functools.partial(monai, "AttentionUnet", 3, 2, (4, 8, 16), (2, 2)), 6, False),
        ],
        ids=["UNet", "UNet, residual", "SegResNet", "DynUNet", "AttentionUnet"],
    )
    def test_networks_of_monai(self, build, count, residual):
        plan = cbam.plan(build().eval(), input_size=32)
        assert len(plan.sites) == count
        assert any("residual" in note for note in plan.notes) is not residual
        assert plan.sites[-1].name not in ("model.2.conv", "conv_final.2.conv", "output_block.conv.conv")


def _not_enlarged(name):
    return {"deeplabv3plus": ("decoder.aspp.3",), "manet": ("decoder.center.out_conv",)}.get(name, ())
