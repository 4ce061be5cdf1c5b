"""Gates for maps of one, two and three sizes: by which code they run, copied, exported, compiled, described."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cbam import CBAM, SpatialAttention, set_backend
from cbam.attach import attention_maps
from cbam.errors import CBAMError
from cbam.nn.registry import attention_kind, describe
from cbam.nn.route import route
from tests.nn.maps import SIZES, build, every_backend, every_dims, random
from tests.ops.library import needs_operator


@needs_operator
class TestOperator:
    @pytest.mark.parametrize(
        ("dims", "options", "expected"),
        [
            (1, {}, "operator"),
            (1, {"preset": "official"}, "operator"),
            (1, {"arrangement": "spatial-channel"}, "operator"),
            (3, {"arrangement": "channel"}, "operator"),
            (3, {}, "both"),
            (3, {"arrangement": "spatial"}, "eager"),
        ],
    )
    def test_where_it_runs(self, dims, options, expected):
        from tests.attach.networks import Seen

        block = CBAM(8, dims=dims, **options)
        assert route(block)[0] == expected
        with Seen() as seen, torch.no_grad():
            block(random(dims, 2, 8))
        calls = {"operator": 1 + (options == {"arrangement": "spatial-channel"}), "both": 1, "eager": 0}
        assert seen.calls == calls[expected]

    def test_forced_it_says_why_it_cannot(self):
        with (
            set_backend("cpp"),
            pytest.raises(CBAMError, match="convolution of 3 dimensions runs in plain torch"),
        ):
            CBAM(8, dims=3)(random(3, 2, 8))

    def test_nothing_but_the_map_is_kept(self):
        block, x, kept = CBAM(8, dims=1), random(1, 2, 8).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            block(x)
        assert sum(t.numel() == x.numel() for t in kept) == 1


class TestTools:
    @every_dims
    @pytest.mark.parametrize("options", [{}, {"preset": "official"}, {"arrangement": "parallel"}], ids=str)
    def test_copies_fx_and_state(self, dims, options):
        block, x = build(dims, **options), random(dims, dtype=torch.float64)
        for other in (
            copy.deepcopy(block),
            pickle.loads(pickle.dumps(block)),
            torch.fx.symbolic_trace(block),
        ):
            torch.testing.assert_close(other(x), block(x), rtol=0, atol=0)
        torch.testing.assert_close(torch.vmap(block)(x[:, None])[:, 0], block(x))

    @every_dims
    @pytest.mark.parametrize("options", [{}, {"preset": "official"}], ids=str)
    def test_export_with_dynamic_shapes(self, dims, options):
        block, x = build(dims, dtype=torch.float32, **options), random(dims)
        auto = torch.export.Dim.AUTO
        shapes = ({0: auto, **{i + 2: auto for i in range(dims)}},)
        exported = torch.export.export(block, (x,), dynamic_shapes=shapes)
        other = torch.randn(3, 6, *(n + 1 for n in SIZES[dims]))
        torch.testing.assert_close(exported.module()(other), block(other))
        if dims != 2:
            names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
            assert f"aten.conv{dims}d.default" in names
            assert not any(name.startswith("cbam") for name in names)

    @pytest.mark.slow
    @pytest.mark.parametrize("dims", [1, 3])
    def test_onnx(self, dims, tmp_path):
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        block, x = build(dims, dtype=torch.float32), random(dims)
        path = str(tmp_path / "block.onnx")
        torch.onnx.export(block, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},))
        session, other = runtime.InferenceSession(path), random(dims, 3)
        (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), block(other).detach(), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("dims", [1, 3])
    def test_compile(self, dims):
        torch._dynamo.reset()
        block = build(dims, dtype=torch.float32)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        results = []
        for run in (block, compiled):
            x = random(dims, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = run(x)
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
        torch.testing.assert_close(*results)

    @every_dims
    @every_backend
    @pytest.mark.parametrize("arrangement", ["channel-spatial", "spatial-channel", "parallel", "spatial"])
    def test_maps(self, dims, backend, arrangement):
        block, x = build(dims, arrangement=arrangement), random(dims, dtype=torch.float64)
        net = nn.Sequential(block)
        with set_backend(backend), attention_maps(net) as maps:
            net(x)
        gates = maps["0"]
        assert gates.spatial.shape == (2, 1, *SIZES[dims])
        if arrangement == "channel-spatial":
            assert gates.channel.shape == (2, 6)
            product = gates.channel[(..., *[None] * dims)] * gates.spatial
            torch.testing.assert_close(x * product, block(x))

    @every_dims
    @pytest.mark.parametrize("attention", ["cbam", "channel", "spatial", "se", "eca"])
    def test_described_and_built_again(self, dims, attention):
        block = attention_kind(attention).build(8, {"dims": dims} if dims != 2 else {})
        kind, options = describe(block)
        assert options.get("dims", 2) == block.dims == dims
        again = kind.build_again(8, options)
        again.load_state_dict(block.state_dict(), strict=True)
        x = random(dims, 2, 8)
        assert torch.equal(again(x), block(x))

    def test_weights_of_another_number_of_dimensions(self):
        message = r"channel_attention.mlp.0.weight is of a gate for maps \(N, C, H, W\) \(dims=2\), this one has dims=3"
        with pytest.raises(RuntimeError, match=message):
            CBAM(8, dims=3).load_state_dict(CBAM(8).state_dict())
        with pytest.raises(RuntimeError, match=r"conv.weight is of a gate for maps \(N, C, L\)"):
            SpatialAttention().load_state_dict(SpatialAttention(dims=1).state_dict())
