"""Maps (N, C, L), (N, C, H, W) and (N, C, D, H, W): every gate against its definition, in plain torch and float64."""

import itertools

import pytest
import torch

import cbam.functional as F
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, set_backend
from cbam.errors import CBAMError
from cbam.evaluate.counting import multiply_adds
from cbam.nn import ECA, PRESETS
from cbam.nn.presets import ARRANGEMENTS
from tests.nn.conformance import TABLE
from tests.nn.maps import SIZES, build, every_backend, every_dims, random


class Definition:
    """CBAM from the paper's equations: sums over positions, one at a time, and no convolution of torch's."""

    def __init__(self, block, options):
        preset = PRESETS[options.get("preset", "paper")]
        self.chosen = {**vars(preset), **{k: v for k, v in options.items() if k in vars(preset)}}
        self.w = {name: value.detach().double() for name, value in block.state_dict().items()}
        self.dims = block.dims
        self.scale = options.get("gate_scale", 1.0)

    def over(self, z):
        return z[(..., *[None] * self.dims)]

    def channel(self, x):
        first, last = (self.w[f"channel_attention.mlp.{i}.weight"].flatten(1) for i in (0, 2))
        b0, b1 = (self.w.get(f"channel_attention.mlp.{i}.bias", 0.0) for i in (0, 2))
        positions, z = x.flatten(2), 0.0
        read = {"avg": positions.sum(-1) / positions.shape[-1], "max": positions.amax(-1)}
        for name in ("avg", "max"):
            if self.chosen["channel_pooling"] in (name, "both"):
                z = z + (read[name] @ first.T + b0).clamp(min=0) @ last.T + b1
        return self.over(z)

    def spatial(self, x):
        kernel, kind = self.w["spatial_attention.conv.weight"], self.chosen["spatial_descriptor"]
        read = {"avg": x.sum(1) / x.shape[1], "max": x.amax(1)}
        if kind == "conv":
            weight = self.w["spatial_attention.descriptor.weight"].flatten()
            maps = [torch.einsum("nc...,c->n...", x, weight)]
        else:
            names = self.chosen["descriptor_order"].split("-") if kind == "both" else [kind]
            maps = [read[name] for name in names]
        k, z = kernel.shape[-1], torch.zeros_like(maps[0])
        for plane, map_ in enumerate(maps):
            padded = torch.nn.functional.pad(map_, [k // 2] * 2 * self.dims)
            for offset in itertools.product(range(k), repeat=self.dims):
                part = [slice(o, o + n) for o, n in zip(offset, map_.shape[1:], strict=True)]
                z = z + kernel[(0, plane, *offset)] * padded[(slice(None), *part)]
        if "spatial_attention.norm.weight" in self.w:
            weight, bias, mean, var = (
                self.w[f"spatial_attention.norm.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            z = (z - mean) / (var + 1e-5).sqrt() * weight + bias
        return z[:, None]

    def gate(self, z):
        hard = self.chosen["gate"] == "hardsigmoid"
        return self.scale * ((z / 6 + 0.5).clamp(0, 1) if hard else 1 / (1 + (-z).exp()))

    def __call__(self, x):
        x = x.double()
        arrangement = self.chosen["arrangement"]
        if arrangement == "parallel":
            return x * self.gate(self.channel(x) + self.spatial(x))
        for name in arrangement.split("-"):
            x = x * self.gate(getattr(self, name)(x))
        return x


# Every preset in every arrangement, and every ablation of the table for images.
ROWS = [{"preset": preset, "arrangement": arrangement} for preset in PRESETS for arrangement in ARRANGEMENTS]
ROWS += [options for _, options, _ in TABLE if options and options not in ROWS]
every_row = pytest.mark.parametrize("options", ROWS, ids=lambda row: "-".join(map(str, row.values())))


class TestValues:
    @every_dims
    @every_backend
    @every_row
    def test_equals_the_definition(self, dims, options, backend):
        block = build(dims, **options)
        definition, x = Definition(block, options), random(dims, dtype=torch.float64)
        with set_backend(backend):
            torch.testing.assert_close(block(x), definition(x), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(block(x[1]), definition(x)[1], rtol=1e-11, atol=1e-12)

    @every_dims
    @every_backend
    @pytest.mark.parametrize(
        "shape", [(3, 1), (1, 8), (0, 4)], ids=["one channel", "one sample", "no sample"]
    )
    def test_few(self, dims, backend, shape):
        block = build(dims, shape[1], kernel_size=7)
        for sizes in (SIZES[dims], (1,) * dims):
            x = torch.randn(*shape, *sizes, dtype=torch.float64)
            with set_backend(backend):
                torch.testing.assert_close(block(x), Definition(block, {})(x), rtol=1e-11, atol=1e-12)

    @every_dims
    def test_channels_last_and_slices(self, dims):
        block, x = build(dims, 8), random(dims, 4, 16, dtype=torch.float64)
        for given in (x.movedim(1, -1).contiguous().movedim(-1, 1)[:, :8], x[::2, ::2], x[:, 8:, 1:]):
            torch.testing.assert_close(block(given), Definition(block, {})(given), rtol=1e-11, atol=1e-12)
        last = x[:, :8].movedim(1, -1).contiguous().movedim(-1, 1)
        assert block(last).stride() == last.stride()

    @every_dims
    def test_norm_in_training(self, dims):
        blocks = [build(dims, preset="official").train() for _ in range(2)]
        x, found = random(dims, 4, dtype=torch.float64), []
        for block, backend in zip(blocks, ("eager", "auto"), strict=True):
            with set_backend(backend):
                found.append([block(x), *block.buffers()])
        torch.testing.assert_close(*found)
        assert int(blocks[0].spatial_attention.norm.num_batches_tracked) == 1

    @every_dims
    @every_backend
    @pytest.mark.parametrize("options", [{}, {"preset": "official", "arrangement": "parallel"}], ids=str)
    def test_gradients(self, dims, backend, options):
        block = build(dims, 4, **options)
        x = random(dims, 2, 4, dtype=torch.float64, requires_grad=True)
        names = [name for name, _ in block.named_parameters()]

        def run(x, *weights):
            return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x,))

        with set_backend(backend):
            assert torch.autograd.gradcheck(run, (x, *block.parameters()))

    @every_dims
    def test_low_precision(self, dims):
        block, x = build(dims, 32, dtype=torch.float32), random(dims, 2, 32)
        for dtype in (torch.bfloat16, torch.float16):
            truth = Definition(block, {})(x.to(dtype))
            got = block(x.to(dtype))
            assert got.dtype == dtype
            assert (got.double() - truth).abs().max() <= 2 * torch.finfo(dtype).eps * truth.abs().max()


class TestOtherGates:
    @every_dims
    @every_backend
    def test_squeeze_excitation(self, dims, backend):
        block, x = SqueezeExcitation(6, 2, dims=dims, dtype=torch.float64), random(dims, dtype=torch.float64)
        options = {"channel_pooling": "avg", "mlp_bias": True, "arrangement": "channel"}
        same = CBAM(6, 2, dims=dims, dtype=torch.float64, **options)
        same.channel_attention.load_state_dict(block.state_dict())
        with set_backend(backend):
            torch.testing.assert_close(block(x), Definition(same, options)(x))

    @every_dims
    def test_eca(self, dims):
        block, x = ECA(8, 3, dims=dims, dtype=torch.float64), random(dims, 2, 8, dtype=torch.float64)
        mean = torch.nn.functional.pad(x.flatten(2).mean(-1), (1, 1))
        gate = torch.sigmoid((mean.unfold(1, 3, 1) * block.conv.weight.flatten()).sum(-1))
        torch.testing.assert_close(block(x), x * gate[(..., *[None] * dims)])
        assert block.gate(x).shape == (2, 8, *[1] * dims)

    @every_dims
    @every_backend
    @pytest.mark.parametrize("arrangement", ["channel-spatial", "spatial-channel", "parallel"])
    def test_functions(self, dims, backend, arrangement):
        block, x = build(dims, arrangement=arrangement, mlp_bias=True), random(dims, dtype=torch.float64)
        first, last = block.channel_attention.layers
        kernel = block.spatial_attention.conv.weight
        layers = first.weight, last.weight, first.bias, last.bias
        with set_backend(backend):
            got = F.cbam(x, layers[0], layers[1], kernel, *layers[2:], arrangement=arrangement)
            torch.testing.assert_close(got, block(x))
            one = F.cbam(x[0], layers[0], layers[1], kernel, *layers[2:], arrangement=arrangement)
            torch.testing.assert_close(one, got[0])
            channel, spatial = block.channel_attention, block.spatial_attention
            torch.testing.assert_close(F.channel_attention(x, *layers, dims=dims), channel(x))
            torch.testing.assert_close(F.spatial_attention(x, kernel), spatial(x))
            se = F.squeeze_excitation(x, *layers, dims=dims, scale=2.0)
        assert F.channel_logits(x, *layers, dims=dims).shape == (2, 6, *[1] * dims)
        assert F.spatial_logits(x, kernel).shape == (2, 1, *SIZES[dims])
        assert not torch.equal(se, x)


class TestIdentity:
    @every_dims
    @every_row
    def test_bit_for_bit(self, dims, options):
        block = build(dims, dtype=torch.float32, **options)
        block.set_identity()
        for x in (random(dims) * 100, random(dims).bfloat16() * 100):
            assert torch.equal(block.to(x.dtype)(x), x)
            assert torch.equal(block.train()(x), x)

    @every_dims
    def test_gates_learn_at_once(self, dims):
        block = build(dims, dtype=torch.float32)
        block.set_identity()
        block(random(dims)).square().sum().backward()
        assert block.spatial_attention.conv.weight.grad.abs().max() > 0
        assert block.channel_attention.layers[1].weight.grad.abs().max() > 0


@every_backend
@pytest.mark.parametrize(("dims", "k"), [(1, 7), (2, 3), (3, 3)])
def test_multiply_adds(dims, k, backend):
    block, total = build(dims, 8, k, dtype=torch.float32), 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal total
            out = func(*args, **(kwargs or {}))
            total += multiply_adds(func, args, out)
            return out

    x = random(dims, 2, 8)
    with set_backend(backend), torch.no_grad(), Count():
        block(x)
    positions = x[0, 0].numel()
    assert total == 2 * (2 * 2 * 8 * 4 + positions * 2 * k**dims)


class TestRefused:
    """What was read wrongly, or refused with the wrong advice, while axes were counted from the end."""

    @pytest.mark.parametrize(
        ("module", "shape", "message"),
        [
            (SpatialAttention(), (8, 64, 100), r"one map \(C, H, W\) from many \(N, C, L\), given .*dims=1"),
            (SpatialAttention(dims=3), (8, 64, 9, 9), r"one map \(C, D, H, W\) from many \(N, C, H, W\).*dims=2"),
            (SpatialAttention(dims=1), (8, 64), r"one map \(C, L\) from many \(N, C\).*x\[None\]\.$"),
            (CBAM(64), (4, 64, 100), r"\(4, 64, 100\) has its 64 channels where \(N, C, L\) has them.*dims=1"),
            (CBAM(64), (64, 64, 100), r"may be one map \(C, H, W\) or many \(N, C, L\)"),
            (CBAM(64, dims=3), (64, 64, 9, 9), r"may be one map \(C, D, H, W\) or many \(N, C, H, W\)"),
            (ECA(64), (64, 64, 100), r"may be one map"),
            (CBAM(64), (4, 64, 5, 7, 7), r"got 5 dimensions.*For maps \(N, C, D, H, W\) build it with dims=3"),
            (CBAM(64, dims=3), (4, 64, 100), r"got 3 dimensions.*For maps \(N, C, L\) build it with dims=1"),
            (CBAM(16), (2, 7, 7, 16), r"the map has 7.*last axis has 16: pass channels first, x.movedim\(-1, 1\)"),
            (CBAM(16, dims=3), (2, 3, 16, 7, 7), r"built for 16 channels, but the map has 3.*as \(N, C, D, H, W\)"),
            (CBAM(16, dims=1), (2, 16, 0), "at least 1, got"),
        ],
    )  # fmt: skip
    def test_maps(self, module, shape, message):
        with pytest.raises(CBAMError, match=message):
            module(torch.rand(shape))

    def test_functions(self):
        x, kernel = torch.rand(8, 64, 100), torch.rand(1, 2, 7, 7)
        with pytest.raises(CBAMError, match=r"one map \(C, H, W\) from many \(N, C, L\)"):
            F.spatial_attention(x, kernel)
        with pytest.raises(CBAMError, match=r"has its 64 channels where \(N, C, L\)"):
            F.channel_attention(x, torch.rand(4, 64), torch.rand(64, 4))
        with pytest.raises(CBAMError, match=r"kernel expects the shape .* got \(2, 7\)"):
            F.spatial_attention(x, torch.rand(2, 7))

    @pytest.mark.parametrize("dims", [0, 4, True, "2", 2.5, None])
    @pytest.mark.parametrize("build", [lambda d: CBAM(8, dims=d), lambda d: SpatialAttention(dims=d),
                                       lambda d: ChannelAttention(8, dims=d), lambda d: ECA(8, dims=d)])  # fmt: skip
    def test_dims(self, build, dims):
        with pytest.raises(CBAMError, match=r"dims must be 1 for maps \(N, C, L\), 2 for"):
            build(dims)
