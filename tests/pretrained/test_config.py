"""config.json as strangers may write it: what it says is checked, and only `CBAMError` comes out."""

import contextlib
import copy
import json
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbam import CBAMError, attach, save_pretrained
from cbam.models import build_model
from cbam.pretrained import read_config
from cbam.pretrained.restore import restore

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(tree, path=()):
    """Every place in a tree of dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere(data, tmp_path_factory):
    said = copy.deepcopy(SAID)
    *way, last = data.draw(st.sampled_from(list(places(said))))
    inside = said
    for key in way:
        inside = inside[key]
    if data.draw(st.booleans()):
        inside[last] = data.draw(VALUES)
    else:
        del inside[last]
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_text(json.dumps(said))
    with contextlib.suppress(CBAMError):
        config = read_config(folder)
        with torch.device("meta"):
            restore(build_model("resnet20", 10), config.attention)


def test_the_valid_one_is_read_back(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SAID))
    config = read_config(tmp_path)
    assert json.loads(config.to_json()) == SAID
    assert len(config.attention[0].sites) == 9


def _saved():
    model = build_model("resnet20", 10)
    attach(model, input_size=(3, 32, 32), preset="official")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, "resnet20", class_names=list("abcdefghij"), mean=[0.5] * 3)
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))


SAID = _saved()
