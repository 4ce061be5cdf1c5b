"""Every format against an independent module with its names: loaded, the outputs are equal; written back, too."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from cbam import CBAM, CBAMError, load_weights
from cbam.checkpoints.converting import convert, converted
from tests.checkpoints import peers

CHANNELS = 32
X = torch.randn(3, CHANNELS, 9, 11, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

# name in this file -> the format, its module, and the CBAM that takes it as it is
CASES = {
    "official": ("official", peers.Official, {"preset": "official"}),
    "official, no spatial gate": (
        "official", partial(peers.Official, no_spatial=True), {"arrangement": "channel", "mlp_bias": True},
    ),
    "pytorchcv": ("pytorchcv", peers.Pytorchcv, {"preset": "official"}),
    "timm": ("timm", peers.timm_cbam, {"preset": "timm"}),
    "timm, biases": ("timm", partial(peers.timm_cbam, mlp_bias=True), {"preset": "timm", "mlp_bias": True}),
    "timm, kernel 3": ("timm", partial(peers.timm_cbam, spatial_kernel_size=3), {"preset": "timm", "kernel_size": 3}),
    "textbook": ("textbook", peers.Textbook, {}),
    "textbook, ratio 8": ("textbook", partial(peers.Textbook, ratio=8), {"reduction_ratio": 8}),
    "luuuyi": ("luuuyi", peers.Luuuyi, {}),
    "luuuyi, kernel 3": ("luuuyi", partial(peers.Luuuyi, size=3), {"kernel_size": 3}),
    "changzy00": ("changzy00", peers.Changzy00, {}),
    "mmyolo": ("mmyolo", peers.Mmyolo, {"preset": "timm", "mlp_bias": True}),
    "xmu": ("xmu", peers.Xmu, {"preset": "timm", "kernel_size": 49}),
}  # fmt: skip
PLAIN = [name for name in CASES if name != "xmu"]


def module(case, seed=0):
    return peers.shaken(CASES[case][1](CHANNELS).double(), seed)


def ours(case, **changes):
    return CBAM(CHANNELS, dtype=torch.float64, **{**CASES[case][2], **changes}).eval()


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", PLAIN)
def test_outputs_are_equal_after_loading(case):
    theirs, block = module(case), ours(case)
    report = load_weights(block, theirs.state_dict(), CASES[case][0])
    same(block(X), theirs(X))
    assert report.format == CASES[case][0]
    assert report.complete


@pytest.mark.parametrize("case", PLAIN)
def test_the_format_is_recognised(case):
    block = ours(case)
    assert load_weights(block, module(case).state_dict()).format == CASES[case][0].replace("textbook", "cbam")
    same(block(X), module(case)(X))


@pytest.mark.parametrize("case", PLAIN)
def test_the_other_order_of_the_kernel_swaps_its_planes(case):
    """The silent trap: the same shapes, another function."""
    other = {"timm": "max-avg"}.get(
        CASES[case][0], "avg-max" if CASES[case][0] in ("official", "pytorchcv") else "max-avg"
    )
    theirs, block = module(case), ours(case, **{**CASES[case][2], "descriptor_order": other})
    load_weights(block, theirs.state_dict(), CASES[case][0])
    same(block(X), theirs(X))


@pytest.mark.parametrize("case", ["official", "pytorchcv", "timm"])
def test_training_goes_on_as_there(case):
    """Batch statistics, running statistics and gradients are the format's as well."""
    theirs, block = module(case).train(), ours(case).train()
    load_weights(block, theirs.state_dict())
    a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
    mine, other = block(a), theirs(b)
    same(mine, other)
    mine.square().sum().backward()
    other.square().sum().backward()
    same(a.grad, b.grad)
    if case != "pytorchcv":  # whose momentum is not the authors'
        same(
            block.spatial_attention.norm.running_var, next(v for k, v in theirs.named_buffers() if "var" in k)
        )


def test_xmu_adds_its_input():
    theirs, block = module("xmu"), ours("xmu")
    with pytest.raises(CBAMError, match=r"does not add its input .*, this one adds it.*outer_residual=True"):
        load_weights(block, theirs.state_dict())
    load_weights(block, theirs.state_dict(), outer_residual=True)
    same(X + block(X), theirs(X))


@pytest.mark.parametrize("case", list(CASES))
def test_there_and_back(case, tmp_path):
    """Into this library's file and back: the very tensors that it began with, or their equals in eval mode."""
    format, _, _ = CASES[case]
    theirs = module(case)
    convert(theirs.state_dict(), tmp_path / "ours.safetensors", format=format, outer_residual=case == "xmu")
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", to=format, outer_residual=case == "xmu")
    back = module(case, seed=9)
    back.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    same(back(X), theirs(X))


BARE = ["textbook", "luuuyi", "changzy00"]  # neither norm nor biases
FULL = ["official", "pytorchcv", "timm", "timm, biases", "mmyolo"]


@pytest.mark.parametrize("case", FULL + BARE)
@pytest.mark.parametrize("to", ["official", "pytorchcv", "timm", "mmyolo", *BARE])
def test_every_pair(case, to, tmp_path):
    """From each format to each: equal outputs, or a reason; never another function."""
    source, out = module(case), tmp_path / "out.safetensors"
    if to in BARE and case not in BARE:
        with pytest.raises(CBAMError, match=r"has biases, and|would need a bias of"):
            convert(source.state_dict(), out, to, CASES[case][0])
        assert not out.exists()
        return
    convert(source.state_dict(), out, to, CASES[case][0])
    state = load_file(out)
    biased = any("fc1.bias" in key for key in state)
    target = module("timm, biases" if to == "timm" and biased else to, seed=5)
    target.load_state_dict(state, strict=True)
    same(target(X), source(X))


def test_xmu_without_its_sum_is_timms():
    theirs = module("xmu")
    with pytest.raises(CBAMError, match="a timm block does not add its input"):
        converted(theirs.state_dict(), "timm")
    state, _, _ = converted(theirs.state_dict(), "timm", outer_residual=True)
    target = peers.timm_cbam(CHANNELS, spatial_kernel_size=49).double().eval()
    target.load_state_dict(state)
    same(X + target(X), theirs(X))


def test_the_authors_norm_folds_into_a_bias():
    theirs = module("official")
    state, _, report = converted(theirs.state_dict(), "mmyolo")
    target = peers.Mmyolo(CHANNELS).double().eval()
    target.load_state_dict(state)
    same(target(X), theirs(X))
    assert any("equal outputs in eval mode only" in note for note in report.notes)


def test_what_a_format_cannot_express_is_refused():
    with pytest.raises(
        CBAMError, match=r"spatial convolution would need a bias of .* luuuyi's has none\. mmyolo has"
    ):
        converted(module("official").state_dict(), "luuuyi")
    with pytest.raises(CBAMError, match="the channel gate has biases, and textbook's has none"):
        converted(without_shift(module("timm, biases")), "textbook")
    with pytest.raises(CBAMError, match="kernel 3; official has 7 only"):
        converted(module("luuuyi, kernel 3").state_dict(), "official")
    with pytest.raises(CBAMError, match="has no spatial gate, and every timm block has one"):
        converted(module("official, no spatial gate").state_dict(), "timm")


def without_shift(block):
    """The state dict of a timm block whose norm moves nothing."""
    state = block.state_dict()
    for key in ("bias", "running_mean"):
        state[f"spatial.conv.bn.{key}"].zero_()
    return state


@pytest.mark.parametrize("case", ["timm, biases", "mmyolo"])
def test_adapted_forms_are_equal_in_eval_mode(case):
    """A module without a norm takes the file's, folded, as far as that needs no bias."""
    theirs = module(case)
    if case == "mmyolo":
        theirs.spatial_attention.conv.conv.bias.data.zero_()
    else:
        theirs.load_state_dict(without_shift(theirs))
    block = CBAM(CHANNELS, mlp_bias=True, dtype=torch.float64).eval()
    with pytest.raises(
        CBAMError, match=r"spatial (norm|bias) only in the file.*preset='timm', mlp_bias=True\).*adapt=True"
    ):
        load_weights(block, theirs.state_dict())
    report = load_weights(block, theirs.state_dict(), adapt=True)
    same(block(X), theirs(X))
    assert report.blocks[0].changes


def test_a_norm_and_biases_in_excess_are_made_neutral_when_asked_for():
    theirs, block = module("luuuyi"), ours("official")
    with pytest.raises(
        CBAMError, match=r"biases in the channel gate only in the model; a spatial norm only in the model"
    ):
        load_weights(block, theirs.state_dict())
    load_weights(block, theirs.state_dict(), adapt=True)
    same(block(X), theirs(X))
