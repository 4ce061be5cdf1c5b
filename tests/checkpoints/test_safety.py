"""Files from strangers: an error and an untouched model, whatever is in them; never code, never a large allocation."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from cbam import CBAM, CBAMError, load_weights
from cbam.checkpoints.reading import MOST_TENSORS, look_at
from tests.checkpoints import peers

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RAN = []


def block():
    return peers.shaken(CBAM(32), seed=1)


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def saved(content, legacy=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


STATE = peers.shaken(CBAM(32), seed=2).state_dict()
FILES = {
    "safetensors": save(STATE),
    "pth": saved({"state_dict": STATE, "epoch": 3}),
    "legacy.pth": saved({"state_dict": STATE, "epoch": 3}, legacy=True),
}


def load(path, content):
    """Load a file's bytes; the error if there is one. Whatever happens, the model is what it was or the file's."""
    path.write_bytes(content)
    model = block()
    before = bits(model)
    try:
        load_weights(model, path)
    except CBAMError as error:
        after = bits(model)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        return error
    return None


@pytest.mark.parametrize("kind", FILES)
def test_the_files_themselves_load(kind, tmp_path):
    assert load(tmp_path / f"w.{kind}", FILES[kind]) is None


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@FUZZ
def test_truncated(kind, data, tmp_path):
    length = data.draw(st.integers(0, len(FILES[kind]) - 1))
    if (
        kind == "safetensors" or length < len(FILES[kind]) - 30
    ):  # a zip's last bytes may be its comment's length
        assert load(tmp_path / f"w.{kind}", FILES[kind][:length]) is not None


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
@FUZZ
def test_flipped_bytes(kind, data, tmp_path):
    content = bytearray(FILES[kind])
    structure = min(len(content), 1200)  # names, shapes and opcodes are here, and at the end of a zip
    places = st.one_of(st.integers(0, structure - 1), st.integers(len(content) - structure, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    load(tmp_path / f"w.{kind}", bytes(content))


@given(content=st.binary(max_size=300), suffix=st.sampled_from(["safetensors", "pth", "bin"]))
@example(content=b"", suffix="pth")
@example(content=b"PK\x03\x04", suffix="pth")
@FUZZ
def test_noise(content, suffix, tmp_path):
    assert load(tmp_path / f"w.{suffix}", content) is not None


HEADER_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=8)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    dtype=st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E4M3", "C64", "X"]) | HEADER_VALUES,
    shape=st.lists(st.integers(-2, 2**63), max_size=5) | HEADER_VALUES,
    offsets=st.lists(st.integers(-2, 2**63), min_size=2, max_size=2) | HEADER_VALUES,
    length=st.none() | st.integers(0, 2**64 - 1),
)
@example(dtype="F32", shape=[2**40], offsets=[0, 2**42], length=None)
@example(dtype="F32", shape=[2], offsets=[0, 8], length=2**63)
@FUZZ
def test_headers_of_safetensors(dtype, shape, offsets, length, tmp_path):
    text = json.dumps({"conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load(tmp_path / "w.safetensors", content) is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("kind", ["F64", "F16", "I64", "BOOL"])
def test_wrong_types(kind, tmp_path):
    dtype = {"F64": torch.float64, "F16": torch.float16, "I64": torch.int64, "BOOL": torch.bool}[kind]
    state = {key: value.to(dtype) for key, value in STATE.items()}
    error = load(tmp_path / "w.safetensors", save(state))
    assert (error is None) == dtype.is_floating_point
    if error is not None:
        assert "expected floating point" in str(error)


class Evil:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def note(text="ran"):
    RAN.append(text)
    return {}


EVIL = [note, exec, eval, print, __import__, open]


@pytest.mark.parametrize("function", EVIL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["alone", "a value", "a key", "in a list"])
def test_pickles_that_call(function, legacy, where, tmp_path):
    evil = Evil(function, "import tests.checkpoints.test_safety as t; t.RAN.append(1)")
    content = {
        "alone": evil,
        "a value": {**STATE, "x": evil},
        "a key": {(evil,): 1, **STATE},
        "in a list": {"model": STATE, "x": [evil]},
    }[where]
    error = load(tmp_path / "w.pth", saved(content, legacy))
    assert "nothing in it was executed" in str(error)
    assert "Weights only load failed" not in str(error)  # there torch says how to load it all the same
    assert "set to `False`" not in str(error)
    assert "add_safe_globals" not in str(error)
    assert RAN == []


def test_code_in_a_pickle_is_named_and_nothing_of_torchs_advice(tmp_path):
    """Blocked by torch by name (posix.system), unknown to it (ours), or a whole model: the same words."""
    for content, name in (
        (Evil(os.system, "true"), f"{os.system.__module__}.system"),
        (Evil(note), "test_safety.note"),
        (block(), "cbam.nn.cbam.CBAM"),
    ):
        error = str(load(tmp_path / "w.pth", saved({"a": content})))
        assert f"{name}; a file of weights holds data only" in error
        assert "nothing in it was executed" in error
        for word in ("False", "weights_only", "add_safe_globals", "PyTorch 2.6"):
            assert word not in error
    assert RAN == []


def test_a_bare_tensor_is_called_what_it_is(tmp_path):
    assert "(names to tensors), but Tensor." in str(load(tmp_path / "w.pth", saved(torch.zeros(3))))
    several = {"a": torch.zeros(2).to_sparse()}
    assert "it holds 'a': sparse Tensor" in str(load(tmp_path / "w.pth", saved(several)))


def test_the_evil_pickle_would_have_run(tmp_path):
    """The check can fail: plain unpickling does run it."""
    pickle.loads(pickle.dumps(Evil(note, "ran")))
    assert RAN.pop() == "ran"


def test_a_bare_pickle(tmp_path):
    assert "cannot read" in str(load(tmp_path / "w.pth", pickle.dumps({"a": 1})))
    assert "cannot read" in str(load(tmp_path / "w.pth", pickle.dumps(Evil(note))))
    assert RAN == []


def test_claims_of_more_than_there_is(tmp_path):
    """A storage of a petabyte in a file of a few bytes, in every form: refused before memory is taken."""
    wide = torch.zeros(1).expand(2**40)
    assert "more than the file's" in str(load(tmp_path / "w.pth", saved({"a": wide})))
    legacy = saved({"a": torch.zeros(7777)}, legacy=True)[:-7777]
    huge = legacy.replace(struct.pack("<H", 7777), struct.pack("<H", 65535))
    assert huge != legacy
    assert "claims storages of 65,535 bytes or more" in str(load(tmp_path / "w.pth", huge))


def test_archives_that_unpack_to_more(tmp_path):
    source, bomb = zipfile.ZipFile(io.BytesIO(FILES["pth"])), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in source.infolist():
            archive.writestr(record.filename, source.read(record))
    assert "compressed archive" in str(load(tmp_path / "w.pth", bomb.getvalue()))


def test_shapes_are_compared_before_the_data_is_read(tmp_path, monkeypatch):
    """Every misfit is found while tensors have no data."""
    state = {**STATE, "spatial_attention.conv.weight": torch.zeros(1, 2, 9, 9)}
    for kind, content in (
        ("safetensors", save({"surplus": torch.zeros(3)})),
        ("pth", saved({**state, "surplus": torch.zeros(3)})),
    ):
        path = tmp_path / f"w.{kind}"
        path.write_bytes(content)
        packed = look_at(path)
        assert all(value.is_meta or type(value).__name__ == "FakeTensor" for value in packed.tree.values())
        monkeypatch.setattr("torch.nn.Module.load_state_dict", None)
        with pytest.raises(CBAMError, match="surplus"):
            load_weights(block(), path)
        monkeypatch.undo()


def test_limits(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(FILES["safetensors"])
    with pytest.raises(CBAMError, match=r"bytes, more than the 100 that are allowed"):
        look_at(path, most_bytes=100)
    many = OrderedDict((str(i), torch.empty(0)) for i in range(MOST_TENSORS + 1))
    with pytest.raises(CBAMError, match="more than 100,000 are refused"):
        load_weights(block(), many)
    for name in ("a\x1b[2J", "a" * 1001, 7):
        with pytest.raises(CBAMError, match="whose name no model can have"):
            load_weights(block(), {name: torch.zeros(1)})


def test_no_file_and_no_weights(tmp_path):
    with pytest.raises(CBAMError, match=r"no weights file at .*absent\.pth"):
        load_weights(block(), tmp_path / "absent.pth")
    with pytest.raises(CBAMError, match=r"\(5,000 characters\)' cannot be read: File name too long"):
        load_weights(block(), "a" * 5000)
    with pytest.raises(CBAMError, match=r"holds no model\.safetensors"):
        load_weights(block(), tmp_path)
    with pytest.raises(CBAMError, match="expects a path to a file of weights or a state dict, got int"):
        load_weights(block(), 7)
    for content in ({}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(2).to_sparse()}}):
        with pytest.raises(CBAMError, match="holds no state dict of dense tensors"):
            load_weights(block(), content)
    assert "holds no state dict (names to tensors), but list" in str(load(tmp_path / "w.pth", saved([1])))


def test_a_pickled_model_and_a_script_are_refused(tmp_path):
    error = str(load(tmp_path / "w.pth", saved(block())))
    assert "not a pickled model" in error
    assert error.endswith("open it with the program that saved it, and pass model.state_dict().")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "TorchScript?" in str(load(tmp_path / "w.pt", (tmp_path / "script.pt").read_bytes()))
