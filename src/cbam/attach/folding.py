"""Tools that fold a batch norm into its convolution, or several branches into one convolution.

They read the weights of a module and put another one in its place. `WithAttention` answers for its host, so they would
take it for the host and throw the attention away. It therefore does not hand on what they ask for.
"""

from __future__ import annotations

from torch import nn

# Of ultralytics, RepVGG and timm: methods that replace the parts of a module, or the module itself.
METHODS = (
    "forward_fuse",
    "fuse",
    "fuse_convs",
    "get_equivalent_kernel_bias",
    "reparameterize",
    "switch_to_deploy",
)

WITHOUT_LOSS = (
    "Fold first and attach then, or take the attention out: cbam.detach(model). Where the code is yours, fold m.host,"
    " where m is the module with its attention, and keep the rest: m.host = torch.nn.Identity() for a folded norm."
)


def folds(module: nn.Module) -> bool:
    """Return whether there is a tool that folds the parts of a module into one another.

    >>> class Block(nn.Sequential):
    ...     def switch_to_deploy(self): ...
    >>> folds(Block()), folds(nn.Sequential())
    (True, False)
    """
    classes = type(module).__mro__
    # torch.ao.nn.intrinsic's convolutions with their norm, which prepare_qat makes one module of
    return any(c.__name__ == "_FusedModule" for c in classes) or any(hasattr(classes[0], m) for m in METHODS)
