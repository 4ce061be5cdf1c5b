"""Whole networks: peers' attention where peers put it, into attached models; and everything that must be refused."""

import copy

import pytest
import torch
from torch import nn

import cbam
from cbam import CBAM, CBAMError, SpatialAttention, attach, load_weights
from tests.checkpoints import networks, peers
from tests.checkpoints.networks import attached, image, with_peer


def parts(make, *names):
    """The children of a peer's module, for formats that put them into the block itself."""

    def build(channels):
        module = make(channels)
        return {name: getattr(module, name) for name in names}

    return build


NETWORKS = {
    "official": (lambda c: {"cbam": peers.Official(c)}, {"preset": "official"}),
    "timm": (lambda c: {"se": peers.timm_cbam(c)}, {"preset": "timm"}),
    "textbook": (lambda c: {"cbam": peers.Textbook(c)}, {}),
    "luuuyi": (parts(peers.Luuuyi, "ca", "sa"), {}),
    "changzy00": (parts(peers.Changzy00, "ca", "sa"), {}),
    "mmyolo": (lambda c: {"attention": peers.Mmyolo(c)}, {"preset": "timm", "mlp_bias": True}),
}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def untouched_by(model, action, match):
    """The action raises a CBAMError that says `match`, and not a bit of the model changes."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CBAMError, match=match):
        action()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("format", NETWORKS)
@pytest.mark.parametrize("form", ["bare", "authors", "ema"])
def test_a_peers_network_into_an_attached_one(format, form, tmp_path):
    make, options = NETWORKS[format]
    theirs, model = with_peer(make), attached(**options)
    state = theirs.state_dict()
    content = {
        "bare": state,
        "authors": {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": -1, "best_prec1": 0},
        "ema": {"state_dict_ema": state, "arch": "resnet"},
    }[form]
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=form != "authors")
    report = load_weights(model, tmp_path / "w.pth", format)
    close(model(image()), theirs(image()))
    assert [row.target for row in report.blocks] == [f"layer{i}.0.bn2.cbam" for i in (1, 2, 3, 4)]
    assert report.complete
    assert "layer4.0.bn2.cbam" in str(report)


def test_old_files_without_counters(tmp_path):
    make, options = NETWORKS["official"]
    theirs, model = with_peer(make), attached(**options)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches_tracked" not in k}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    close(model(image()), theirs(image()))


def test_pytorchcvs_names(tmp_path):
    from cbam.checkpoints.backbones import to_pytorchcv

    theirs = with_peer(lambda c: {"cbam": peers.Pytorchcv(c)})
    state = {to_pytorchcv(key): value for key, value in theirs.state_dict().items()}
    assert "features.stage2.unit1.cbam.ch_gate.mlp.fc1.weight" in state
    assert "features.stage2.unit1.identity_conv.bn.weight" in state
    assert "features.init_block.conv.conv.weight" in state
    model = attached(preset="official")
    load_weights(model, state)
    close(model(image()), theirs(image()))


def test_timms_real_network(tmp_path):
    import timm

    theirs = peers.shaken(timm.create_model("resnet18", block_args={"attn_layer": "cbam"}, num_classes=5))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = timm.create_model("resnet18", num_classes=5).eval()
    attach(model, preset="timm", input_size=networks.SIZE)
    load_weights(model, tmp_path / "w.pth")
    close(model(image()), theirs(image()))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plain_file_before_or_after_attaching(when):
    source, model = networks.plain(7), networks.plain(2)
    if when == "before":
        load_weights(model, source.state_dict())
    attach(model, input_size=networks.SIZE, preset="official")
    if when == "after":
        report = load_weights(model, source.state_dict())
        assert report.format is None
        assert len(report.kept) == 4 * 9
        assert not report.missing
    assert torch.equal(model.eval()(image()), source(image()))


def test_identity_gives_way_to_foreign_gates():
    """Doubled gates of an identity start, and their divided logits, are the file's plain ones afterwards."""
    model = attached()
    block = model.layer1[0].bn2.cbam
    assert (block.channel_attention.gate_scale, block.spatial_attention.variance) == (2, 32**2)
    load_weights(model, with_peer(NETWORKS["luuuyi"][0]).state_dict())
    assert (block.channel_attention.gate_scale, block.spatial_attention.variance) == (None, None)


def test_a_divisor_is_the_file_s_affair():
    """Of a network whose logits are divided, of one of before that, and strictly or not."""
    source, target = attached(), attached()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if ".cbam." in name:
                parameter.normal_(std=0.3)
    load_weights(target, source.state_dict())
    assert torch.equal(target.eval()(image()), source.eval()(image()))
    before = {key: value for key, value in source.state_dict().items() if not key.endswith("variance")}
    report = load_weights(target, before)
    assert not report.missing
    undivided = target(image())
    assert not torch.equal(undivided, source(image()))
    load_weights(target, source.state_dict())  # a gate that has none accepts one
    assert torch.equal(target(image()), source(image()))
    for module in source.modules():
        if isinstance(module, SpatialAttention):
            module.set_divisor(None)
    assert torch.equal(source(image()), undivided)


@pytest.mark.parametrize("options", [{}, {"preset": "official"}, {"attention": "se"}, {"attention": "channel"},
                                     {"attention": "spatial"}, {"arrangement": "parallel"}])  # fmt: skip
def test_our_own_state_dict(options):
    source, model = attached(**options), attached(init="paper", **options)
    peers.shaken(source, 5)
    load_weights(model, source.state_dict())
    assert torch.equal(model(image()), source(image()))


def test_wrapped_models():
    source, model = networks.plain(7), networks.plain(2)
    load_weights(nn.DataParallel(model), nn.DataParallel(source).state_dict())
    assert torch.equal(model(image()), source(image()))


def test_half_a_file_is_an_error_unless_asked_for():
    source, model = networks.plain(7), attached()
    state = source.state_dict()
    del state["layer3.0.conv1.weight"]
    state["surplus"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(9, 512)
    untouched_by(
        model, lambda: load_weights(model, state),
        r"1 missing \(layer3\.0\.conv1\.weight\); 1 unexpected \(surplus\); 1 of another shape .*\(fc\.weight is "
        r"\(9, 512\), needs \(5, 512\)\).*partial=True",
    )  # fmt: skip
    report = load_weights(model, state, partial=True)
    assert report.unexpected == ("surplus",)
    assert set(report.missing) == {"layer3.0.conv1.weight", "fc.weight"}
    assert not report.complete
    assert "not loaded: fc.weight is (9, 512), needs (5, 512)" in str(report)
    assert torch.equal(model.conv1.weight, source.conv1.weight)


REFUSED_FORMS = [
    ("official", {}, r"biases in the channel gate only in the file.*cbam\.attach\(model, preset='official'\)"),
    ("official", {"preset": "official", "reduction_ratio": 8}, r"hidden width 4 in the file, 8 in the model"),
    ("official", {"preset": "official", "kernel_size": 3}, "kernel 7 in the file, 3 in the model"),
    ("official", {"preset": "official", "gate": "hardsigmoid"}, "the module has gate='hardsigmoid', which no format"),
    ("official", {"preset": "official", "arrangement": "parallel"}, "the module has arrangement='parallel'"),
    ("official", {"preset": "official", "channel_pooling": "avg"}, "the module has channel_pooling='avg'"),
    ("official", {"attention": "se"}, "a CBAM block does not fit SqueezeExcitation"),
    ("luuuyi", {"preset": "official"}, r"only in the model.*preset='paper'"),
    ("timm", {}, r"a spatial norm only in the file\. Attach with cbam\.attach\(model, preset='timm'\)"),
    ("mmyolo", {"preset": "official", "mlp_bias": False}, r"biases .* only in the file.*preset='timm', mlp_bias=True"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "options", "message"), REFUSED_FORMS, ids=lambda v: str(v)[:40])
def test_another_form_is_refused_with_the_call_that_fits(format, options, message):
    model, theirs = attached(**options), with_peer(NETWORKS[format][0])
    untouched_by(model, lambda: load_weights(model, theirs.state_dict()), message)


def test_the_call_that_fits_does_fit():
    theirs = with_peer(lambda c: {"cbam": peers.Mmyolo(c, ratio=8, size=3)})
    with pytest.raises(CBAMError, match="Attach it first: ") as caught:
        load_weights(networks.plain(), theirs.state_dict())
    call = str(caught.value).partition("Attach it first: ")[2]
    model = networks.plain()
    eval(call.replace(")", f", input_size={networks.SIZE})"), {"cbam": cbam, "model": model})
    load_weights(model, theirs.state_dict())
    close(model.eval()(image()), theirs(image()))


def test_the_textbooks_names_with_kernels_that_read_the_maximum_first():
    """This library's paper form with the planes swapped has the textbook's names: a guess would be silent."""
    theirs, model = with_peer(NETWORKS["textbook"][0]), attached(descriptor_order="max-avg")
    untouched_by(
        model, lambda: load_weights(model, theirs.state_dict()), "names of the textbook .*format='textbook'"
    )
    load_weights(model, theirs.state_dict(), "textbook")
    close(model(image()), theirs(image()))


class UltralyticsChannel(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)


class Ultralytics(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channel_attention = UltralyticsChannel(channels)
        self.spatial_attention = nn.Module()
        self.spatial_attention.cv1 = nn.Conv2d(2, 1, 7, bias=False)


def light(channels):
    from timm.layers.cbam import LightCbamModule

    return LightCbamModule(channels)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (Ultralytics(32).state_dict(), "ultralytics' CBAM .* one C x C layer on the average alone"),
        ({"bam1.channel_att.gate_c.gate_c_fc_0.weight": torch.zeros(4, 64)}, r"BAM .*1 \+ sigmoid"),
        ({f"layer1.0.se.{k}": v for k, v in light(32).state_dict().items()}, "light CBAM .* one pass"),
    ],
    ids=["ultralytics", "BAM", "lcbam"],
)
def test_what_is_not_cbam(state, why):
    model = CBAM(32)
    untouched_by(model, lambda: load_weights(model, state), f"{why}")


def test_two_formats_in_one_file():
    state = {f"a.{k}": v for k, v in peers.Official(32).state_dict().items()}
    state |= {f"b.{k}": v for k, v in peers.Luuuyi(32).state_dict().items()}
    with pytest.raises(CBAMError, match=r"2 formats: official \(1\), luuuyi \(1\)\. Pass the one"):
        load_weights(CBAM(32), state)


def test_formats_that_are_not_there():
    with pytest.raises(CBAMError, match=r"no block of the format 'timm'\. It holds luuuyi"):
        load_weights(CBAM(32), peers.Luuuyi(32).state_dict(), "timm")
    with pytest.raises(CBAMError, match=r"unknown format 'tim'\. Did you mean 'timm'"):
        load_weights(CBAM(32), peers.Luuuyi(32).state_dict(), "tim")


class TwoInOne(nn.Module):
    """A block with two places for attention."""

    def __init__(self):
        super().__init__()
        self.block = nn.Module()
        self.block.first, self.block.second = CBAM(32), CBAM(32)


def test_ambiguous_places_are_an_error_until_they_are_named():
    model = TwoInOne()
    one = {f"block.cbam.{k}": v for k, v in peers.shaken(peers.Textbook(32)).state_dict().items()}
    untouched_by(
        model, lambda: load_weights(model, one),
        r"block 'block\.cbam' .* could go to 2 sites: 'block\.first', 'block\.second'\. Pass the right one: sites=",
    )  # fmt: skip
    load_weights(model, one, sites={"block.cbam": "block.second"}, partial=True)
    assert torch.equal(
        model.block.second.state_dict()["spatial_attention.conv.weight"],
        one["block.cbam.spatial_attention.conv.weight"],
    )
    with pytest.raises(CBAMError, match=r"no attention at 'block\.secnd'\. Closest: 'block\.second'"):
        load_weights(model, one, sites={"block.cbam": "block.secnd"})
    two = {f"block.{n}.{k}": v for n in ("x", "y") for k, v in peers.Textbook(32).state_dict().items()}
    with pytest.raises(CBAMError, match="could go to 2 sites"):
        load_weights(model, two)
    with pytest.raises(CBAMError, match=r"blocks 'block\.x' and 'block\.y' of the file both fit the site"):
        load_weights(model, two, sites={"block.x": "block.first", "block.y": "block.first"})
    with pytest.raises(CBAMError, match=r"the file has no block 'block\.z\.'"):
        load_weights(model, two, sites={"block.z": "block.first"})


def test_a_block_far_from_any_site():
    state = {f"neck.cbam.{k}": v for k, v in peers.Textbook(32).state_dict().items()}
    with pytest.raises(CBAMError, match=r"block 'neck\.cbam' .* matches no site"):
        load_weights(TwoInOne(), state)


def test_containers_as_hosts():
    """A stage that carries attention, with attached blocks inside: the wrapper's own names are not in the file."""
    model, other = networks.plain(2), networks.plain(2)
    for net in (model, other):
        attach(net, sites=["layer1", "layer1.0.bn2"], input_size=networks.SIZE, init="paper")
    peers.shaken(other, 8)
    load_weights(model, other.state_dict())
    assert torch.equal(model.eval()(image()), other.eval()(image()))


def test_other_types_of_numbers():
    source = networks.plain(7)
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    model = networks.plain(2)
    assert "cast from float16 to float32" in str(load_weights(model, state))
    close(model.half().float()(image()), copy.deepcopy(source).half().float()(image()))
    state["fc.bias"] = torch.zeros(5, dtype=torch.int64)
    untouched_by(model, lambda: load_weights(model, state), "fc.bias is int64, needs float32")


class Moody(nn.Linear):
    """Refuses what it is given, after others have taken theirs."""

    def _load_from_state_dict(self, *args):
        raise RuntimeError("not today")


def test_a_module_that_refuses_midway():
    source, model = networks.plain(7), attached()
    moody = Moody(512, 5)
    model.fc = moody
    state = source.state_dict() | {
        k: v for k, v in attached(init="paper").state_dict().items() if "cbam" in k
    }
    untouched_by(model, lambda: load_weights(model, state), "refused the weights and is unchanged: not today")


def test_a_model_without_memory():
    """Loading into it would do nothing, and say nothing."""
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(CBAMError, match=r"parameters without memory.*to_empty"):
        load_weights(model, nn.Linear(2, 2).state_dict())
