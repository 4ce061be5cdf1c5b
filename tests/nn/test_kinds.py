"""The kinds of attention that are not CBAM, row by row of `conformance.KINDS`, and what timm makes of the same."""

import pytest
import torch

from cbam.nn import ECA
from cbam.nn.registry import attention_kind, describe
from tests.nn import conformance

ROWS = pytest.mark.parametrize(
    ("name", "options", "gate"), conformance.KINDS, ids=lambda value: getattr(value, "__name__", str(value))
)


def build(name, options, channels=32, **factory):
    torch.manual_seed(0)
    block = attention_kind(name).build(channels, options, **factory)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return block


@ROWS
@pytest.mark.parametrize("shape", conformance.SHAPES)
def test_values(name, options, gate, shape):
    block, x = build(name, options, shape[1], dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x), x * gate(x, block)[..., None, None], rtol=1e-12, atol=1e-12)


@ROWS
def test_a_map_without_a_batch(name, options, gate):
    block, x = build(name, options), torch.randn(3, 32, 5, 6)
    torch.testing.assert_close(block(x[0]), block(x)[0])


@ROWS
def test_gates_are_in_float32_under_autocast(name, options, gate):
    block, x = build(name, options), torch.randn(2, 32, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert block.gate(x.bfloat16()).dtype == torch.float32
        assert torch.equal(block(x), x * block.gate(x))
    torch.testing.assert_close(block.gate(x).flatten(1), gate(x, block).float())


@ROWS
def test_is_described_as_it_was_built(name, options, gate):
    kind, said = describe(build(name, options))
    assert (kind.name, said) == (name, options)


@pytest.mark.parametrize("channels", [8, 16, 64, 100, 256, 512, 2048])
def test_eca_equals_timm(channels):
    theirs = pytest.importorskip("timm.layers").EcaModule(channels).double()
    ours = ECA(channels, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    a = torch.randn(2, channels, 5, 4, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    torch.testing.assert_close(ours(a), theirs(b), rtol=1e-12, atol=1e-12)
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.conv.weight.grad, theirs.conv.weight.grad)


@pytest.mark.parametrize(
    ("channels", "k"), [(1, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_ecas_kernel_grows_with_the_channels(channels, k):
    assert ECA(channels).conv.weight.shape == (1, 1, k)


def test_ecas_wrong_kernels():
    with pytest.raises(ValueError, match=r"kernel_size of ECA must be odd, given 4\. Nearest: 3 or 5"):
        ECA(64, 4)
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got -1"):
        ECA(64, -1)
