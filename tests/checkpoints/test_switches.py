"""What a file says of its attention beside the tensors: from any way of saving, to other formats and back."""

import copy
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.optim.swa_utils import AveragedModel

from cbam import CBAM, CBAMError, load_weights
from cbam.attach import attach
from cbam.checkpoints.converting import convert, form_in
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.switches import HEADER, switches_of
from cbam.checkpoints.unpacking import unpack
from cbam.nn import SpatialAttention
from tests.checkpoints import networks, peers

MAP = torch.rand(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
TURNED = {"avg-max": "max-avg", "max-avg": "avg-max"}
SAVED = {
    "the state dict": lambda net: net.state_dict(),
    "a training checkpoint": lambda net: {"model": net.state_dict(), "epoch": 3, "best": 0.5},
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "an average": lambda net: AveragedModel(net).state_dict(),
    "a compiled model": lambda net: torch.compile(net).state_dict(),
    "a copy": lambda net: copy.deepcopy(net.state_dict()),
    "torch.distributed.checkpoint": lambda net: get_model_state_dict(net),
    "Lightning": lambda net: {"state_dict": nn.ModuleDict({"model": net}).state_dict(), "epoch": 3},
}


def trained(preset="official", seed=0, **options):
    torch.manual_seed(seed)
    return peers.shaken(nn.Sequential(CBAM(16, preset=preset, **options)), seed).eval()


def saved(tmp_path, state, old=False):
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    return tmp_path / "w.pth"


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("order", TURNED)
@pytest.mark.parametrize("preset", ["paper", "official", "timm"])
def test_every_way_of_saving_says_the_order(tmp_path, preset, order, how):
    """Before, these files "did not record in which order their kernels read"."""
    net = trained(preset, descriptor_order=order)
    file = saved(tmp_path, SAVED[how](net), old=how == "a copy")
    assert form_in(file)["descriptor_order"] == order
    other = trained(preset, 1, descriptor_order=TURNED[order])
    report = load_weights(other, file)
    assert report.blocks[0].changes == ("kernel planes swapped",)
    torch.testing.assert_close(other(MAP), net(MAP))


def test_a_network_to_the_authors_code_and_back(tmp_path):
    """With the option `--model`, and as a file of torch.save both times."""
    model = networks.attached(preset="official", init="paper")
    peers.shaken(model, 6)
    file = saved(tmp_path, {"model": nn.DataParallel(model).state_dict()})
    authors, ours = tmp_path / "authors.pth", tmp_path / "ours.pth"
    convert(file, authors, "official")
    target = networks.with_peer(lambda c: {"cbam": peers.Official(c)}, seed=5)
    target.load_state_dict(torch.load(authors, weights_only=True), strict=True)
    torch.testing.assert_close(target(networks.image()), model(networks.image()), rtol=1e-4, atol=1e-5)
    convert(authors, ours)
    assert form_in(ours)["preset"] == "official"
    again = networks.attached(preset="official", init="paper", descriptor_order="avg-max")
    load_weights(again, ours)
    torch.testing.assert_close(again(networks.image()), model(networks.image()), rtol=1e-4, atol=1e-5)


def test_no_name_is_added():
    """Files of the default form are still the textbook module's, and of every form those of earlier versions."""
    assert sorted(CBAM(16).state_dict()) == [
        "channel_attention.mlp.0.weight", "channel_attention.mlp.2.weight", "spatial_attention.conv.weight"
    ]  # fmt: skip
    assert not [name for name in trained().state_dict() if "avg" in name or "switch" in name]


def test_torch_refuses_the_other_order():
    state = trained("official").state_dict()
    for other in (trained("timm", mlp_bias=True), trained("official", descriptor_order="avg-max")):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(RuntimeError, match=r"reads max-avg, this one reads avg-max\. cbam\.load_weights"):
            other.load_state_dict(state)
        other.load_state_dict(before)
        other.load_state_dict(dict(state))  # says nothing: as it always was
    with pytest.raises(RuntimeError, match="reads avg-max"):
        SpatialAttention(descriptor_order="max-avg").load_state_dict(SpatialAttention().state_dict())
    SpatialAttention(spatial_descriptor="avg").load_state_dict(
        SpatialAttention(spatial_descriptor="avg").state_dict()
    )


@pytest.mark.parametrize("how", [dict, lambda state: {k: v.clone() for k, v in state.items()}])
@pytest.mark.parametrize("preset", ["official", "timm"])
def test_a_dictionary_made_by_hand_says_nothing_and_the_error_what_to_pass(tmp_path, how, preset):
    net = trained(preset)
    file = saved(tmp_path, how(net.state_dict()))
    with pytest.raises(CBAMError, match=r"--descriptor-order\) for official.*torch\.save\(model\.state_dict"):
        form_in(file)
    order = "max-avg" if preset == "official" else "avg-max"
    assert form_in(file, descriptor_order=order)["preset"] == preset
    again = trained(preset, 1)
    load_weights(again, file)  # its names and shapes are those of the model
    assert torch.equal(again(MAP), net(MAP))


def test_what_the_file_says_wins_nothing_over_what_is_said_against_it(tmp_path):
    file = saved(tmp_path, trained("official").state_dict())
    assert form_in(file, descriptor_order="max-avg")["preset"] == "official"
    with pytest.raises(CBAMError, match=r"says that its kernels read max-avg.*Leave out.*avg-max"):
        form_in(file, descriptor_order="avg-max")
    with pytest.raises(CBAMError, match=r"official reads max-avg.*Leave out"):
        form_in(peers.Official(16).state_dict(), descriptor_order="avg-max")


ODD = [{"gate": "hardsigmoid"}, {"arrangement": "spatial-channel"}, {"channel_pooling": "avg"}]


@pytest.mark.parametrize("options", ODD, ids=str)
def test_another_function_of_the_same_shapes_is_refused(tmp_path, options):
    """All of these files were read as the paper's block, and gave other outputs without a word."""
    net = trained("paper", **options)
    file = saved(tmp_path, net.state_dict())
    ((name, value),) = options.items()
    with pytest.raises(CBAMError, match=f"{name}='{value}': another function than luuuyi's"):
        convert(file, tmp_path / "out.pth", "luuuyi")
    with pytest.raises(CBAMError, match=f"{name}='{value}' in the file.*attach\\(model, .*{name}='{value}'"):
        load_weights(trained("paper", 1), file)
    convert(file, tmp_path / "ours.safetensors")
    assert form_in(tmp_path / "ours.safetensors")[name] == value
    again = trained("paper", 1, **options)
    load_weights(again, tmp_path / "ours.safetensors")
    assert torch.equal(again(MAP), net(MAP))


@pytest.mark.parametrize("descriptor", ["avg", "max", "conv"])
def test_kernels_of_one_plane(tmp_path, descriptor):
    """Their own files were refused for their shape."""
    net, again = (
        trained("paper", spatial_descriptor=descriptor),
        trained("paper", 1, spatial_descriptor=descriptor),
    )
    file = saved(tmp_path, net.state_dict())
    assert load_weights(again, file).complete
    assert torch.equal(again(MAP), net(MAP))
    with pytest.raises(CBAMError, match=rf"spatial_descriptor='{descriptor}', a kernel of one plane"):
        convert(file, tmp_path / "out.pth", "luuuyi")
    for state in (net.state_dict(), dict(net.state_dict())):
        for other in ({"avg": "conv", "max": "avg", "conv": "max"}[descriptor], "both"):
            alike = isinstance(state, dict) and type(state) is dict and {descriptor, other} == {"avg", "max"}
            if not alike:  # a dictionary made by hand does not say which of the two it is
                with pytest.raises(CBAMError):
                    load_weights(trained("paper", 1, spatial_descriptor=other), state)


def test_a_channel_gate_has_no_order():
    """The error was about the order of a kernel that the file does not have."""
    state = dict(trained("paper", arrangement="channel").state_dict())
    with pytest.raises(CBAMError, match="the file has no spatial gate"):
        load_weights(trained("official", mlp_bias=False), state)
    biased = trained("paper", arrangement="channel", mlp_bias=True)
    assert form_in(dict(biased.state_dict()))["arrangement"] == "channel"


def test_sites_of_different_orders(tmp_path):
    """No other format has that, and each block is converted by its own order."""
    net = nn.Sequential(trained("official")[0], trained("official", 1, descriptor_order="avg-max")[0]).eval()
    convert(saved(tmp_path, net.state_dict()), tmp_path / "authors.pth", "official")
    theirs = nn.Sequential(peers.Official(16), peers.Official(16)).eval()
    state = torch.load(tmp_path / "authors.pth", weights_only=True)
    theirs.load_state_dict({key.replace(".cbam.", "."): value for key, value in state.items()})
    torch.testing.assert_close(theirs(MAP), net(MAP))
    convert(saved(tmp_path, net.state_dict()), tmp_path / "ours.safetensors")
    again = nn.Sequential(trained("official", 2)[0], trained("official", 3)[0]).eval()
    load_weights(again, tmp_path / "ours.safetensors")
    torch.testing.assert_close(again(MAP), net(MAP))


def test_attention_inside_a_container_with_attention():
    """Among modules it is below `host`, among tensors it is not."""
    net = nn.Sequential(nn.Sequential(CBAM(16, preset="official"), nn.Conv2d(16, 16, 1)))
    attach(net, sites=["0"], input_size=(16, 5, 5), preset="timm")
    packed = unpack(look_at(net.state_dict()))
    assert "0.host.0.spatial_attention" in packed.switches
    assert packed.order_of("0.0.") == "max-avg"
    assert packed.order_of("0.cbam.") == "avg-max"
    assert switches_of(net)["0.0.spatial_attention"]["descriptor_order"] == "max-avg"


def damaged(entry):
    state = OrderedDict(CBAM(16).state_dict())
    state._metadata = OrderedDict({"spatial_attention": {"version": 1, "cbam": entry}})
    return state


@pytest.mark.parametrize(
    "entry", [3, {"descriptor_order": "max"}, {"descriptor_order": [1]}, {"order": "max-avg"}, {1: 2}, [[]]]
)
def test_what_is_said_wrongly_is_refused(tmp_path, entry):
    with pytest.raises(CBAMError, match="what it says of its attention is damaged"):
        form_in(saved(tmp_path, damaged(entry)))


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "3", '{"": 3}', '{"": {"gate": "tanh"}}', '{"": {"gate": {}}}']
)
def test_headers_that_say_it_wrongly_are_refused(tmp_path, text):
    save_file(CBAM(16).state_dict(), tmp_path / "w.safetensors", {HEADER: text})
    with pytest.raises(CBAMError, match="what it says of its attention is damaged"):
        form_in(tmp_path / "w.safetensors")


def test_metadata_of_other_kinds_is_none_of_ours():
    state = OrderedDict(CBAM(16).state_dict())
    for metadata in (None, [1], {"": None}, {"spatial_attention": {"version": 1}}, {3: {"version": 1}}):
        state._metadata = metadata
        assert unpack(look_at(state)).switches == {}
