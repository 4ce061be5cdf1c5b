"""The operator under torch.vmap: each map as it would be alone."""

import warnings

import pytest
import torch

from cbam import set_backend
from cbam.ops import registered
from cbam.ops.signature import ForwardArguments, NormBefore, Weights, flat
from tests.ops import cases
from tests.ops.library import needs_operator

pytestmark = needs_operator


def call(name, training, keep):
    """A module, three maps for it, and the function map, weights -> what the operator returns."""
    block, maps = cases.block_of(name, 8, training=training), torch.randn(3, 2, 8, 5, 4)
    weights = block.operator_weights(maps[0])

    def run(x, *learned):
        given = iter(learned)
        own = Weights(*(next(given) if w is not None and learned else w for w in weights))
        arguments = ForwardArguments(x, own, NormBefore(), x + 1, block.operator_config(), keep)
        return registered.forward(*flat(arguments))

    return run, maps, [w.detach() for w in weights if w is not None]


@pytest.mark.parametrize("name", ["paper", "official", "max pooling", "channel only", "spatial only"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dim", [0, 2])
def test_every_map_as_alone(name, training, keep, dim):
    run, maps, _ = call(name, training, keep)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's loop without a rule warns
        found = torch.vmap(run, in_dims=dim)(maps.movedim(0, dim).contiguous())
        for i, x in enumerate(maps):
            for got, expected in zip(found, run(x), strict=True):
                torch.testing.assert_close(got[i], expected)


def test_weights_of_their_own():
    run, maps, weights = call("official", False, False)
    several = [torch.stack([w, 2 * w, w / 2]) for w in weights]
    with torch.no_grad():
        y = torch.vmap(run, in_dims=(None, *[0] * len(several)))(maps[0], *several)[0]
        for i in range(3):
            torch.testing.assert_close(y[i], run(maps[0], *[w[i] for w in several])[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "official"])
def test_compiled_code_uses_it(name):
    """Maps and gradients for each image, by the operator as one node."""
    torch._dynamo.reset()
    block, images = cases.block_of(name, 8), torch.randn(3, 8, 5, 4)
    weights = {key: p.detach() for key, p in block.named_parameters()}

    def loss(weights, image):
        return torch.func.functional_call(block, weights, (image[None],)).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))
    maps = torch.vmap(
        lambda image: block(image)
    )  # of a module torch would print the name, and not compile that
    with set_backend("cpp"):
        compiled = torch.compile(maps, backend="aot_eager", fullgraph=True)(images[:, None])
    torch.testing.assert_close(compiled[:, 0], block(images))
    got = torch.compile(each, backend="aot_eager")(weights, images)
    for key, expected in each(weights, images).items():
        torch.testing.assert_close(got[key], expected, atol=1e-4, rtol=1e-3)
    torch._dynamo.reset()
