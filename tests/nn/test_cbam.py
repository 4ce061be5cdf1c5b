"""The module in every dialect and ablation: values, ties, numerics, keys; tests/testing has what every kind must do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cbam
from cbam import CBAM
from cbam.errors import CBAMError
from cbam.ops import reference
from tests.nn import conformance
from tests.nn.oracle import Oracle

every_dialect = pytest.mark.parametrize("name", conformance.NAMES)


def oracle_of(name, block):
    return Oracle(block.state_dict(), **conformance.TABLE_BY_NAME[name][1])


def bits(x):
    return x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32)


class TestValues:
    @every_dialect
    @pytest.mark.parametrize("shape", conformance.SHAPES, ids=str)
    @pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
    def test_equals_the_equations(self, name, shape, channels_last):
        block = conformance.build(name, shape[1], dtype=torch.float64).eval()
        x = torch.randn(shape, dtype=torch.float64)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        np.testing.assert_allclose(block(x).detach().numpy(), oracle_of(name, block)(x.numpy()), atol=1e-12)

    @pytest.mark.parametrize("name", ["official", "timm", "parallel official"])
    def test_batch_norm_in_training_uses_the_batch(self, name):
        block = conformance.build(name, 12, dtype=torch.float64).train()
        oracle = oracle_of(name, block)
        x = torch.randn(4, 12, 5, 6, dtype=torch.float64)
        np.testing.assert_allclose(block(x).detach().numpy(), oracle(x.numpy(), training=True), atol=1e-12)

    @every_dialect
    def test_unbatched_map(self, name):
        block = conformance.build(name, 8).eval()
        x = torch.randn(3, 8, 5, 6)
        torch.testing.assert_close(block(x[1]), block(x)[1])

    @given(
        n=st.integers(1, 3), c=st.integers(1, 40), h=st.integers(1, 9), w=st.integers(1, 9), r=st.integers(1, 50),
        k=st.sampled_from([1, 3, 7]), seed=st.integers(0, 2**16),
    )  # fmt: skip
    @settings(max_examples=40, deadline=None)
    def test_any_shape_and_ratio(self, n, c, h, w, r, k, seed):
        torch.manual_seed(seed)
        block = CBAM(c, r, k, dtype=torch.float64)
        x = torch.randn(n, c, h, w, dtype=torch.float64)
        y = block(x)
        assert y.shape == x.shape
        np.testing.assert_allclose(
            y.detach().numpy(), Oracle(block.state_dict())(x.numpy()), atol=1e-11, rtol=1e-9
        )

    def test_hidden_width_is_never_zero(self):
        assert CBAM(8, 16).channel_attention.mlp[0].weight.shape == (1, 8, 1, 1)


class TestGradients:
    def test_gradient_of_a_tie_goes_to_the_first_index_of_the_map(self):
        block = CBAM(1, 1, arrangement="channel", channel_pooling="max", dtype=torch.float64)
        with torch.no_grad():
            block.channel_attention.mlp[0].weight.fill_(1.0)
            block.channel_attention.mlp[2].weight.fill_(1.0)
        x = torch.tensor([[[[1.0, 3.0], [3.0, 3.0]]]], dtype=torch.float64)
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = x.clone(memory_format=layout).requires_grad_()
            block(leaf).sum().backward()
            plain = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
            through_max = leaf.grad - plain
            assert through_max.flatten().nonzero().tolist() == [[1]]

    def test_gradient_of_a_tie_goes_to_the_lowest_channel(self):
        block = CBAM(3, arrangement="spatial", spatial_descriptor="max", kernel_size=1, dtype=torch.float64)
        with torch.no_grad():
            block.spatial_attention.conv.weight.fill_(1.0)
        x = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64).view(1, 3, 1, 1)
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = x.clone(memory_format=layout).requires_grad_()
            block(leaf).sum().backward()
            through_max = leaf.grad.flatten() - torch.sigmoid(torch.tensor(5.0, dtype=torch.float64))
            assert through_max.abs().gt(1e-6).tolist() == [False, True, False]


class TestIdentity:
    @every_dialect
    def test_gates_learn_at_once(self, name):
        block = conformance.build(name, 24)
        block.set_identity()
        (block(torch.randn(4, 24, 5, 7)) * torch.randn(24, 5, 7)).sum().backward()
        last = "mlp.2.weight" if block.channel_attention is not None else "spatial_attention.conv.weight"
        gradient = next(p.grad for key, p in block.named_parameters() if key.endswith(last))
        assert gradient.abs().max() > 0

    def test_doubled_gates_are_the_paper_form_on_a_map_four_times_as_large(self):
        block = conformance.build("doubled gates", 16)
        paper = CBAM(16, 4)
        paper.load_state_dict({k: v for k, v in block.state_dict().items() if "gate_scale" not in k})
        x = torch.randn(2, 16, 5, 5)
        # The channel gate reads the map, so only the product of the gates scales: 2 * 2 = 4, exactly.
        s = paper.channel_attention.gate(x)
        t = paper.spatial_attention.gate(x * (2 * s))
        torch.testing.assert_close(block(x), x * s * t * 4, rtol=1e-6, atol=1e-6)


class TestNumerics:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @every_dialect
    def test_low_precision_is_as_good_as_eager_code_in_that_precision(self, name, dtype):
        block = conformance.build(name, 64).eval()
        x = torch.randn(2, 64, 14, 14)
        truth = oracle_of(name, block)(x.to(dtype).double().numpy())
        got = block(x.to(dtype))
        assert got.dtype == dtype
        # Two roundings of gates and two of products: about four half-ulps of the largest value.
        ulp = torch.finfo(dtype).eps * np.abs(truth).max()
        assert np.abs(got.double().detach().numpy() - truth).max() <= 2 * ulp

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_pooling_and_logits_of_a_low_precision_map_are_float32(self, dtype):
        block, x = conformance.build("paper", 64), torch.randn(2, 64, 14, 14).to(dtype)
        for gate in block.gates:
            assert gate.logits(x).dtype == torch.float32
            torch.testing.assert_close(gate.logits(x), gate.logits(x.float()), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("backend", ["auto", "eager"])
    @pytest.mark.parametrize("arrangement", ["channel-spatial", "parallel", "spatial-channel"])
    def test_a_gradient_above_the_largest_half_number(self, backend, arrangement):
        """The gate's gradient is the sum of g * x over a map: 40 * 40 * 45 here, and float16 ends at 65,504."""
        torch.manual_seed(1)
        block = CBAM(16, 4, arrangement=arrangement)
        x = torch.rand(2, 16, 40, 40).add(1).mul(30).half()
        gradients = []
        for like in (x, x.float()):
            block.zero_grad()
            like = like.clone().requires_grad_()
            with cbam.set_backend(backend):
                y = block(like)
            y.backward(torch.ones_like(y))
            gradients.append([like.grad.float(), *(p.grad.clone() for p in block.parameters())])
        assert max(g.abs().max() for g in gradients[0]) > 65504
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=0.02, atol=0.002 * float(expected.abs().max()))

    def test_the_gate_of_a_half_map_is_rounded_as_without_gradients(self):
        """Gates of all sizes, down to the smallest numbers of float16."""
        x = torch.randn(64, 4, 8, 8).half()
        value = (torch.randn(64, 4, 1, 1) * 4).exp2().mul(torch.logspace(-9, 0.3, 64).view(-1, 1, 1, 1))
        expected = reference.apply_gate(x, value)
        assert torch.equal(reference.apply_gate(x, value.requires_grad_()), expected)

    def test_average_of_a_large_half_map_does_not_overflow(self):
        block = CBAM(4, arrangement="channel", channel_pooling="avg")
        assert block(torch.full((1, 4, 112, 112), 600.0, dtype=torch.float16)).isfinite().all()

    def test_autocast_changes_neither_dtype_nor_gates(self):
        block = conformance.build("paper", 16)
        x = torch.randn(2, 16, 6, 6)
        with torch.autocast("cpu", torch.bfloat16):
            inside = block(x)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, block(x))

    def test_nan_wins_both_maxima(self):
        x = torch.zeros(1, 4, 3, 3)
        x[0, 2, 1, 1] = float("nan")
        pooled = CBAM(4, 1, arrangement="channel", channel_pooling="max").channel_attention.logits(x)
        assert pooled.isnan().any()
        spatial = CBAM(4, 1, 1, arrangement="spatial", spatial_descriptor="max").spatial_attention.logits(x)
        assert spatial.isnan().squeeze().nonzero().tolist() == [[1, 1]]

    @pytest.mark.parametrize("name", ["paper", "official", "parallel"])
    def test_memory_format_is_kept(self, name):
        x = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
        block = conformance.build(name, 16).to(memory_format=torch.channels_last)
        assert block(x).is_contiguous(memory_format=torch.channels_last)
        assert block(x.contiguous()).is_contiguous()

    def test_sliced_input(self):
        block = conformance.build("paper", 8)
        x = torch.randn(4, 16, 10, 10)[::2, ::2, 1:8:2, :7]
        torch.testing.assert_close(block(x), block(x.contiguous()))

    def test_two_runs_give_the_same_bits(self):
        block, x = conformance.build("paper", 16), torch.randn(3, 16, 8, 8)
        grads = []
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            block(leaf).square().sum().backward()
            grads.append(leaf.grad)
        assert torch.equal(bits(grads[0]), bits(grads[1]))


class TestStateDict:
    def test_textbook_weights_load_as_they_are(self):
        state = {
            "channel_attention.mlp.0.weight": torch.randn(4, 64, 1, 1),
            "channel_attention.mlp.2.weight": torch.randn(64, 4, 1, 1),
            "spatial_attention.conv.weight": torch.randn(1, 2, 7, 7),
        }
        block = CBAM(64)
        assert str(block.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
        assert list(block.state_dict()) == list(state)
        x = torch.randn(2, 64, 8, 8)
        expected = Oracle(state)(x.double().numpy())
        np.testing.assert_allclose(block(x).detach().numpy(), expected, atol=1e-5)

    def test_official_keys(self):
        assert list(CBAM(32, preset="official").state_dict()) == [
            "channel_attention.mlp.0.weight", "channel_attention.mlp.0.bias",
            "channel_attention.mlp.2.weight", "channel_attention.mlp.2.bias",
            "spatial_attention.conv.weight", "spatial_attention.norm.weight", "spatial_attention.norm.bias",
            "spatial_attention.norm.running_mean", "spatial_attention.norm.running_var",
            "spatial_attention.norm.num_batches_tracked",
        ]  # fmt: skip

    def test_weights_without_a_scale_are_in_the_paper_form(self):
        block = CBAM(16)
        block.set_identity()
        block.load_state_dict(CBAM(16).state_dict(), strict=True)
        assert block.channel_attention.gate_scale is None

    def test_a_state_dict_of_something_else_leaves_the_scale(self):
        block = CBAM(16)
        block.set_identity()
        block.load_state_dict({}, strict=False)
        assert block.channel_attention.gate_scale == 2.0


class TestPresets:
    def test_official_starts_with_a_spatial_gate_of_one_half(self):
        block = CBAM(16, preset="official").eval()
        assert torch.equal(
            block.spatial_attention.gate(torch.randn(1, 16, 4, 4)), torch.full((1, 1, 4, 4), 0.5)
        )
        assert block.spatial_attention.norm.momentum == 0.01
        assert not block.channel_attention.mlp[0].bias.any()

    @pytest.mark.parametrize("channels", [64, 256, 2048])
    @pytest.mark.parametrize(("preset", "extra"), [("paper", 0), ("timm", 2), ("official", None)])
    def test_parameters(self, preset, extra, channels):
        count = 2 * channels * channels // 16 + 2 * 49
        count += channels + channels // 16 + 2 if extra is None else extra
        assert sum(p.numel() for p in CBAM(channels, preset=preset).parameters()) == count


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0,), "in_channels must be at least 1, got 0"),
            ((-3,), "in_channels must be at least 1"),
            ((8.0,), r"in_channels expects an integer, got 8.0 \(float\)"),
            ((8, 0), "reduction_ratio must be at least 1"),
            ((8, 4, 6), "kernel_size must be odd.*got 6.*nearest: 5 or 7"),
            ((8, 4, 0), "kernel_size must be at least 1"),
        ],
    )
    def test_numbers(self, arguments, message):
        with pytest.raises(CBAMError, match=message):
            CBAM(*arguments)

    @pytest.mark.parametrize(
        ("switches", "message"),
        [
            ({"preset": "offical"}, "unknown preset 'offical'. Did you mean 'official'"),
            ({"preset": 3}, "preset expects a name"),
            (
                {"chanel_pooling": "avg"},
                "unknown option of CBAM 'chanel_pooling'. Did you mean 'channel_pooling'",
            ),
            ({"channel_pooling": "mean"}, "unknown channel_pooling 'mean'.*Valid: 'both', 'avg', 'max'"),
            ({"arrangement": "paralel"}, "Did you mean 'parallel'"),
            ({"spatial_descriptor": "conv1x1"}, "Did you mean 'conv'"),
            ({"descriptor_order": "max,avg"}, "Did you mean 'max-avg'"),
            ({"gate": "tanh"}, "unknown gate 'tanh'"),
            ({"mlp_bias": "yes"}, "mlp_bias expects True or False"),
        ],
    )
    def test_names(self, switches, message):
        with pytest.raises(CBAMError, match=message):
            CBAM(16, **switches)

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.rand(2, 16), r"got 2 dimensions: \(2, 16\)"),
            (torch.rand(2, 7, 7, 16), r"built for 16 channels, but the map has 7.*last axis has 16.*movedim"),
            (torch.rand(2, 7, 7, 9), "built for 16 channels, but the map has 7.*in_channels=7"),
            (torch.ones(1, 16, 4, 4, dtype=torch.int64), "floating-point map, got torch.int64"),
            (torch.rand(1, 16, 0, 4), "at least 1 x 1"),
            ([1.0], "expects a tensor.*got list"),
        ],
    )
    def test_maps(self, x, message):
        with pytest.raises(CBAMError, match=message):
            CBAM(16)(x)

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
    def test_a_quantised_map(self):
        x = torch.quantize_per_tensor(torch.ones(1, 16, 4, 4), 0.1, 0, torch.quint8)
        with pytest.raises(CBAMError, match=r"got torch\.quint8\. Quantise in graph mode.*prepare_fx"):
            CBAM(16)(x)
