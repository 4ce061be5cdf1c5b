"""Small pickles that would take for ever: refused in no time, in both forms of torch.save."""

import pickle
import time

import pytest
import torch
from torch import nn

from cbam import CBAMError, load_weights
from cbam.checkpoints import census
from cbam.checkpoints.converting import convert
from cbam.checkpoints.reading import look_at
from tests.checkpoints.test_safety import STATE, load, saved


@pytest.fixture(autouse=True)
def quick():
    """Each of these took minutes or for ever; a busy machine may take a few seconds."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30


def shared(levels, start=()):
    """A tuple of 2^levels parts, and few bytes."""
    for _ in range(levels):
        start = (start, start)
    return start


class Pickle:
    """What torch.save writes for this object is the given opcodes."""

    def __init__(self, *parts):
        self.parts = parts


class Opcodes(pickle._Pickler):
    """Writes `Pickle` as it is; Python itself would have to hash the key first."""

    def save(self, value, *rest, **options):
        if not isinstance(value, Pickle):
            return super().save(value, *rest, **options)
        for part in value.parts:
            self.write(part) if isinstance(part, bytes) else self.save(part)
        return None


class Module:
    """What torch.save takes as its pickle module."""

    Pickler = Opcodes
    dump, dumps = pickle.dump, pickle.dumps


def written(value, legacy, tmp_path, state=STATE):
    content = Pickle(b"}", b"(", *[part for item in state.items() for part in item], b"u", value)
    torch.save(content, tmp_path / "hostile", pickle_module=Module, _use_new_zipfile_serialization=not legacy)
    return (tmp_path / "hostile").read_bytes()


def item(key):
    """A further key, with None."""
    return Pickle(key, b"N", pickle.SETITEM)


def call(name, argument):
    """The call of a function that torch accepts; its result is dropped into a key."""
    module, _, function = name.rpartition(".")
    return Pickle("x", f"c{module}\n{function}\n".encode(), argument, b"\x85R", pickle.SETITEM)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (item(shared(40)), "would take more than 10,000,000 steps"),
        (call("collections.OrderedDict", [[shared(40), 1]]), "would take more than 10,000,000 steps"),
        (call("collections.Counter", [shared(40)]), "would take more than 10,000,000 steps"),
        (call("torch.serialization._get_layout", shared(40)), "would take more than 10,000,000 steps"),
        (call("builtins.bytearray", 10**11), "asks for 100,000,000,000 bytes"),
        (Pickle("x", shared(40), (), b"R", pickle.SETITEM), "it calls what is no function"),
    ],
    ids=["key", "pairs", "counter", "layout", "bytes", "printed"],
)
def test_a_small_pickle_that_takes_for_ever(value, message, legacy, tmp_path):
    assert message in str(load(tmp_path / "w.pth", written(value, legacy, tmp_path)))


def test_a_key_that_is_deep(tmp_path):
    """Hashing recurses in C: 200,000 levels would end the process."""
    deep = Pickle(b")" + b"\x85" * 200_000, b"N", pickle.SETITEM)
    assert "a tuple in a tuple, more than 100 deep" in str(
        load(tmp_path / "w.pth", written(deep, False, tmp_path))
    )


def test_a_long_list_that_is_copied_again_and_again(tmp_path):
    """A few bytes for each copy of 100,000 numbers."""
    first = b"]q\xfa(" + b"K\x01" * 100_000 + b"e"
    again = b"ctorch\nSize\nh\xfa\x85Ra"
    value = Pickle("x", b"]" + first + b"a" + again * 200, pickle.SETITEM)
    assert "would take more than" in str(load(tmp_path / "w.pth", written(value, False, tmp_path)))


@pytest.mark.parametrize("legacy", [False, True])
def test_ordinary_files_with_more_than_weights(legacy, tmp_path):
    """An optimizer, tuples of names, an old OrderedDict: nothing is refused that was read before."""
    optimizer = torch.optim.AdamW(nn.Linear(3, 3).parameters())
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 3)
    optimizer.step()
    content = {
        "state_dict": STATE,
        "optimizer": optimizer.state_dict(),
        "meta": {"CLASSES": tuple(map(str, range(21_000))), ("a", ("b", 1)): {1, 2}, "size": torch.Size([2])},
        "blob": bytearray(b"ab"),
        "bytes": b"xyz",
    }
    assert load(tmp_path / "w.pth", saved(content, legacy)) is None


def test_a_dictionary_in_itself(tmp_path):
    content = {"epoch": 1}
    content["state_dict"] = content
    path = tmp_path / "w.pth"
    assert "in itself" in str(load(path, saved(content)))
    with pytest.raises(CBAMError, match="in itself"):
        convert(path, tmp_path / "out.pth", to="luuuyi")
    with pytest.raises(CBAMError, match="in itself"):
        load_weights(nn.Linear(2, 2), content)
    content |= {
        f"k{number}": content for number in range(100)
    }  # paths through it: 100 to the power of their length
    del content["state_dict"]
    content["model"] = STATE
    assert load(path, saved(content)) is None


def test_many_tensors_take_a_time_that_grows_with_their_number(tmp_path):
    """A file of 100,000 is allowed; a hundredth of a second for each of them was too long."""
    weight = torch.zeros(())
    state = {f"{'module.' * 100}{number}.gate_scale": weight for number in range(20_000)}
    path = tmp_path / "w.pth"
    path.write_bytes(saved(state))
    model = nn.ModuleDict({str(number): nn.BatchNorm2d(1) for number in range(1000)})
    started = time.monotonic()
    with pytest.raises(CBAMError, match="unexpected"):
        load_weights(model, path)
    with pytest.raises(CBAMError, match=r"unknown entry 'x'\.") as raised:
        load_weights(model, {str(number): {} for number in range(20_000)}, entry="x")
    assert "and 19,900 more" in str(raised.value)
    assert time.monotonic() - started < 20


def test_first_pass_allocates_nothing(tmp_path):
    path = tmp_path / "w.pth"
    for legacy in (False, True):
        path.write_bytes(saved({"a": torch.zeros(3), "b": torch.zeros(2).to_sparse()}, legacy))
        assert all(value.is_meta for value in look_at(path).tree.values())


def test_the_census_knows_what_torch_knows():
    """An opcode that only torch's reader knows could hide something; one that only the census knows is no use."""
    assert set(census.Census.dispatch) <= set(pickle._Unpickler.dispatch)
    assert pickle.ADDITEMS[0] not in census.Census.dispatch
