"""docs/yolo.md runs from top to bottom on generated images; its table of sites is what `cbam.plan` says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cbam
from cbam.data.detection import write_generated

PAGE = (Path(__file__).parents[2] / "docs" / "yolo.md").read_text(encoding="utf-8")
MODELS = ("yolov5n", "yolov8n", "yolo11n")
# Runs behind the page's code: weights of a plain network arrive key by key, gates of a trained one too, the exported
# network computes the same, and training that goes on keeps its gates.
AND_THEN = """
import copy, onnxruntime, torch

trainer = AttentionTrainer(overrides={**small, "model": "yolo11n.yaml", "name": "keys"})
plain = YOLO("yolo11n.yaml").model
built = trainer.get_model("yolo11n.yaml", copy.deepcopy(plain), verbose=False).state_dict()
theirs = plain.state_dict()
assert {k for k in built if ".cbam." not in k} == set(theirs)
same = [k for k in theirs if built[k].shape == theirs[k].shape]
assert len(theirs) - len(same) <= 12 and all(torch.equal(built[k], theirs[k]) for k in same), "pretrained weights"

trained = YOLO(yolo.trainer.best).model.float()
with torch.no_grad():
    for name, parameter in trained.named_parameters():
        if ".cbam." in name:
            parameter.add_(0.1)
again = trainer.get_model("yolo11n.yaml", copy.deepcopy(trained), verbose=False).state_dict()
assert all(torch.equal(again[k], v) for k, v in trained.state_dict().items()), "gates of a trained network"

image = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    expected = best.model.float().eval()(image)[0]
session = onnxruntime.InferenceSession(str(yolo.trainer.best.with_suffix(".onnx")))
(exported,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
assert torch.allclose(torch.from_numpy(exported), expected, rtol=1e-3, atol=1e-2), "the exported network"

on = YOLO(yolo.trainer.last)
on.train(trainer=AttentionTrainer, epochs=1, name="on", **small)
assert sum(isinstance(module, cbam.CBAM) for module in on.model.modules()) == 4

lost = YOLO("yolo11n.yaml")
attachment = cbam.attach(lost.model, input_size=64)
lost.train(epochs=1, name="lost", val=False, **small)
try:
    attachment.check(lost.model)
except cbam.CBAMError as error:
    print("lost:", error)
"""


def quiet(folder):
    return {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False", "YOLO_AUTOINSTALL": "False",
    }  # fmt: skip


@pytest.mark.slow
def test_the_page(tmp_path):
    pytest.importorskip("ultralytics")
    pytest.importorskip("onnxruntime")
    write_generated(tmp_path / "generated", ("yolo",), images=8, validation=4, size=64)
    code, printed = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", PAGE, re.S).groups()
    done = subprocess.run(
        [sys.executable, "-c", code + AND_THEN],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=quiet(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert printed.splitlines() == [line for line in done.stdout.splitlines() if line in printed.splitlines()]
    assert "13 of 13 sites have lost their attention" in done.stdout
    assert done.stderr.count("builds the network again") == 1, (
        "a warning for the model that is lost, no other"
    )


@pytest.mark.parametrize("number", range(len(MODELS)), ids=MODELS)
def test_the_table(number, tmp_path, monkeypatch):
    for name, value in quiet(tmp_path).items():
        monkeypatch.setenv(name, value)
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO(f"{MODELS[number]}.yaml").model.eval()
    rows = re.findall(r'^\| `"(\w+)".*?\|.*?\| (\d+) \| (\d+) \| (\d+) \|$', PAGE, re.M)
    assert len(rows) == 7
    found = {kind: len(cbam.plan(model, sites=kind, input_size=128).sites) for kind, *_ in rows}
    assert found == {kind: int(counts[number]) for kind, *counts in rows}
