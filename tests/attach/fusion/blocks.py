"""Networks whose blocks end inside the operator, and the same ones where they end apart."""

import torch

import cbam
from tests.attach.networks import resnet

SIZE = {"input_size": (3, 64, 64)}
IMAGE = torch.rand(2, 3, 64, 64)


def attached(model=None, **options):
    model = model or resnet()
    cbam.attach(model, **{**SIZE, **options})
    return model


def with_gates(**options):
    """Two networks whose gates are somewhere, one with the block's end in the operator."""
    together = attached(preset="official", init="paper", **options)
    with torch.no_grad():
        for name, parameter in together.named_parameters():
            if ".cbam." in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    apart = attached(preset="official", init="paper", fuse_epilogue=False)
    apart.load_state_dict(together.state_dict())
    return together.eval(), apart.eval()
