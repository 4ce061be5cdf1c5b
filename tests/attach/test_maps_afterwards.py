"""Recording gates leaves nothing behind, in a network, in another thread, in compiled code."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

from cbam import CBAM, attention_maps
from cbam.ops import cpp
from cbam.ops.direct import DirectForm
from tests.attach.networks import a_map


class TestNothingIsLeft:
    def network(self):
        return nn.Sequential(nn.Conv2d(3, 8, 3), CBAM(8), nn.BatchNorm2d(8))

    def state(self, network):
        return [
            (sorted(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in network.modules()
        ]

    def test_after_the_block_and_after_an_exception(self):
        network, x = self.network(), torch.rand(1, 3, 9, 9)
        with attention_maps(network):  # plans are made, and stay
            network(x)
        before = self.state(network)
        with attention_maps(network) as maps:
            network(x)
        with pytest.raises(RuntimeError, match="channels"), attention_maps(network):
            network(x[:, :2])
        assert self.state(network) == before
        network(x)
        assert len(maps.calls("1")) == 1

    def test_when_off_the_operator_keeps_nothing(self, monkeypatch):
        kept = []
        forward = DirectForm.forward
        monkeypatch.setattr(DirectForm, "forward", lambda *a: (kept.append(a[-1]), forward(*a))[1])
        block, x = CBAM(8), a_map()
        if not cpp.available():
            pytest.skip("not compiled")
        with torch.no_grad():
            block(x)
            with attention_maps(block):
                block(x)
            block(x)
        assert kept == [False, True, False]

    def test_blocks_may_be_nested(self):
        network, x = self.network(), torch.rand(1, 3, 9, 9)
        with attention_maps(network) as outer:
            network(x)
            with attention_maps(network[1]) as inner:
                network(x)
            network(x)
        assert (len(outer.calls("1")), len(inner.calls(""))) == (3, 1)
        assert not network[1].listeners

    def test_other_threads_do_not_count(self):
        network = self.network().eval()
        found = {}

        def work(number):
            x = torch.full((number + 1, 3, 9, 9), 0.5)
            for _ in range(5):
                with torch.no_grad(), attention_maps(network) as maps:
                    for _ in range(3):
                        network(x)
                found.setdefault(number, []).append([tuple(gates.channel.shape) for gates in maps.calls("1")])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {n: [[(n + 1, 8)] * 3] * 5 for n in range(4)}
        assert not network[1].listeners

    def test_copies_and_pickles_made_meanwhile_are_not_recorded(self):
        network, x = self.network(), torch.rand(1, 3, 9, 9)
        with attention_maps(network) as maps:
            copied = copy.deepcopy(network)
            pickled = pickle.loads(pickle.dumps(network))
            stream = io.BytesIO()
            torch.save(network, stream)
            stream.seek(0)
            saved = torch.load(stream, weights_only=False)
            for other in (copied, pickled, saved):
                assert torch.equal(other(x), network(x))
        assert len(maps.calls("1")) == 3
        assert not any(other[1].listeners for other in (copied, pickled, saved))

    def test_transforms_are_left_alone(self):
        block, x = CBAM(8), a_map()
        with attention_maps(block) as maps:
            torch.func.vmap(block)(x[:, None])
            torch.fx.symbolic_trace(nn.Sequential(block))
        assert len(maps) == 0
        assert repr(maps).endswith("nothing recorded")

    def test_what_is_switched_off_is_not_there(self):
        network = nn.Sequential(CBAM(8), CBAM(8), CBAM(8))
        network[0].enabled = False
        network[2].spatial_attention.enabled = False
        with attention_maps(network) as maps:
            network(a_map())
        assert list(maps) == ["1", "2"]
        assert maps["2"].spatial is None
        with pytest.raises(KeyError, match=r"no gates of '0' were recorded.*1, 2"):
            maps["0"]


class TestCompiled:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("how", ["function", "method", "a part"])
    def test_it_runs_eagerly_and_says_so(self, how):
        network, x = nn.Sequential(CBAM(8), nn.ReLU()), a_map()
        frames = []

        def backend(graph, _):
            frames.append(graph)
            return graph.forward

        called = network
        if how == "method":
            network.compile(backend=backend)
        elif how == "function":
            called = torch.compile(network, backend=backend)
        else:
            network[0] = torch.compile(network[0], backend=backend)
        expected = called(x)
        before = len(frames)
        with attention_maps(called) as maps:
            with pytest.warns(UserWarning, match="runs eagerly"):
                found = called(x)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # once is enough
                called(x[:1])
        torch.testing.assert_close(found, expected)
        (site,) = maps
        assert site in ("0", "0._orig_mod")
        assert [len(gates.channel) for gates in maps.calls(site)] == [2, 1]
        called(x)
        assert len(frames) == before  # nothing is compiled anew

    def test_without_compiled_code_there_is_no_notice(self):
        block = CBAM(8)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with attention_maps(block) as maps:
                torch.utils.checkpoint.checkpoint(block, a_map(), use_reentrant=False)
        assert len(maps) == 1

    def test_the_compiler_compiles_again_after_overlapping_blocks(self):
        block = CBAM(8)
        compiled = torch.compile(block, backend="eager")
        with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
            one.enter_context(attention_maps(block))
            other.enter_context(attention_maps(block))
            one.close()
            with pytest.warns(UserWarning, match="runs eagerly"):
                compiled(a_map())
        torch._dynamo.utils.counters.clear()
        compiled(a_map())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
