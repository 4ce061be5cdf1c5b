"""Options that change what a step sees or learns, with two processes: the same network as with one, and no hang.

All trainings run in one pair of processes, one after the other: starting the pair costs more than a training.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cbam.models import build_model
from tests.cli.test_train import environment
from tests.data.pictures_on_disk import photo_folder

# Without batch norm, which would see half a batch in each process; no mixup, for the same reason.
SMALL = [*("--model", "timm/test_convnext", "--preset", "paper", "--image-size", "32", "--device", "cpu")]
RECIPE = [*("--epochs", "2", "--batch-size", "8", "--augment", "flip", "--lr", "0.05")]
TABLE = {
    "freeze-backbone": ["--weights", "{root}/weights.pth", "--freeze-backbone", "1"],
    "several labels": ["--labels", "{root}/tags.csv", "--class-weights", "balanced"],
    "class weights": ["--labels", "{root}/kinds.csv", "--class-weights", "balanced"],
    "balanced sampler": ["--labels", "{root}/kinds.csv", "--sampler", "balanced"],
}
PAIR = """
import json, sys, torch
torch.set_num_threads(1)
from cbam.cli.main import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    paths = sorted(photo_folder(root / "photos", 12).glob("*/*.jpg"))
    uneven = [path for path in paths if path.parent.name != "cup" or path.stem < "006"]
    for name, chosen, more in (("tags.csv", paths, ";c"), ("kinds.csv", uneven, "")):
        rows = [
            f"{path.relative_to(root / 'photos')},{path.parent.name}{more * path.parent.name.startswith('c')}"
            for path in chosen
        ]
        (root / name).write_text("\n".join(["image,tags", *rows]) + "\n")
    torch.manual_seed(0)
    torch.save(build_model("timm/test_convnext", 3).state_dict(), root / "weights.pth")
    return root


def words(root, case, folder):
    options = [word.format(root=root) for word in TABLE[case]]
    return ["train", "--data", str(root / "photos"), *SMALL, *RECIPE, *options, "--output", str(folder)]


@pytest.fixture(scope="module")
def pair(root):
    """The folder of each training by two processes."""
    script = root / "pair.py"
    script.write_text(PAIR)
    folders = {case: root / "two" / case for case in TABLE}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    told = json.dumps([words(root, case, folder) for case, folder in folders.items()])
    done = subprocess.run(
        [sys.executable, *launch, told], env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE)
def test_two_processes_give_what_one_gives(root, pair, server, tmp_path, case):
    done = server.run(*words(root, case, tmp_path / "one"))
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(folder / "final" / "model.safetensors") for folder in (tmp_path / "one", pair[case])
    )
    start = build_model("timm/test_convnext", 3).state_dict()
    assert any(not torch.equal(ours[name], value) for name, value in start.items() if name in ours)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4, msg=name)
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "one", pair[case]))
    assert one["images"] == two["images"], "no image is counted twice"
    assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-4)
