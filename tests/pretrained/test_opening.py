"""Every saved form of a network opens, from every command, and what does not says which neighbour to name."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cbam import CBAMError, attach, from_pretrained, save_pretrained
from cbam.models import build_model, match_parameters
from cbam.pretrained import open_network, read_config
from cbam.pretrained.saving import describe_network, write_network
from tests.legacy import tiny  # noqa: F401 - makes `timm/legacy_tiny` known

LEGACY = Path(__file__).parent.parent / "legacy"
NAME = "timm/legacy_tiny"


def networks(*sources, **options):
    return [open_network(source, **options).model for source in sources]


def states(*models):
    return [dict(model.state_dict()) for model in models]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network of this version with everything that can be said of it."""
    torch.manual_seed(0)
    network = build_model(NAME, 3)
    attach(network, reduction_ratio=4, preset="official", input_size=(3, 32, 32))
    folder = tmp_path_factory.mktemp("saved") / "net"
    said = {
        "class_names": ["cat", "dog", "cow"],
        "input_size": (3, 24, 24),
        "mean": (0.4,) * 3,
        "std": (0.2,) * 3,
    }
    return save_pretrained(
        network, folder, NAME, **said, resize=25, interpolation="bicubic", task="multilabel"
    )


def test_what_a_saved_folder_says_of_use(saved):
    opened = open_network(saved)
    assert (opened.task, opened.class_names, opened.title) == ("multilabel", ("cat", "dog", "cow"), "net")
    form = opened.preprocessing
    assert (form.channels, form.size, form.resize, form.interpolation) == (3, 24, 25, "bicubic")
    assert (form.mean, form.std) == ((0.4,) * 3, (0.2,) * 3)
    assert not opened.model.training
    scores = torch.tensor([[0.0, 2.0, -2.0]])
    assert torch.equal(opened.probabilities(scores), scores.sigmoid())
    with_others = open_network(saved, class_names=["a", "b", "c"], image_size=48)
    assert with_others.class_names == ("a", "b", "c")
    assert (with_others.preprocessing.size, with_others.preprocessing.resize) == (48, 50)


def test_a_folder_of_before_says_less(saved, tmp_path):
    """Format 1 knew neither the task nor how pictures are resized."""
    folder = shutil.copytree(saved, tmp_path / "net")
    said = json.loads((folder / "config.json").read_text())
    for name in ("task", "resize", "interpolation"):
        del said[name]
    (folder / "config.json").write_text(json.dumps({**said, "format": 1}))
    opened = open_network(folder)
    assert opened.task == "multiclass"
    assert opened.preprocessing.resize == round(24 * 8 / 7)
    scores = torch.tensor([[0.0, 2.0, -2.0]])
    assert torch.equal(opened.probabilities(scores), scores.softmax(1))


@pytest.mark.parametrize("field", [{"task": "regression"}, {"resize": 0}, {"interpolation": "nearby"}])
def test_damaged_use_is_refused(saved, tmp_path, field):
    folder = shutil.copytree(saved, tmp_path / "net")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **field}))
    with pytest.raises(CBAMError, match=f"{next(iter(field))} expects"):
        open_network(folder)


def test_a_run_is_its_best_network():
    run, best, final = networks(*(LEGACY / "train" / name for name in ("", "best", "final_ema")))
    assert same(*states(run, best))
    assert not same(*states(run, final))
    assert open_network(LEGACY / "train").title == "train"
    bare = open_network(LEGACY / "train" / "final_ema" / "model.safetensors")
    assert same(*states(bare.model, final))
    assert bare.run == LEGACY / "train"
    assert open_network(LEGACY / "train" / "best" / "config.json").title == "train"


STOPPED = LEGACY / "train-stopped" / "checkpoints" / "step-000000014"


def test_checkpoints_and_cells_of_before_are_built_by_their_run():
    """They have no config.json: the run's settings say model, attention and classes."""
    step, ema = open_network(STOPPED), open_network(STOPPED / "ema.safetensors")
    assert same(step.model.state_dict(), from_file(STOPPED / "model.safetensors"))
    assert same(ema.model.state_dict(), from_file(STOPPED / "ema.safetensors"))
    assert (step.class_names[:2], step.preprocessing.mean) == (("0", "1"), (0.3053,))
    assert step.title == "train-stopped step-000000014"
    for cell in ("none-seed0", "se-seed1", "cbam-seed0", "control-seed1"):
        opened = open_network(LEGACY / "compare" / "cells" / cell)
        assert same(
            opened.model.state_dict(), from_file(LEGACY / "compare" / "cells" / cell / "model.safetensors")
        )
        assert opened.preprocessing.resize == opened.preprocessing.size == 8  # as its validation images were
    kernel = open_network(LEGACY / "ablate", variant="cbam:official:k3").model
    assert kernel.layer1[0].bn2.cbam.spatial_attention.conv.kernel_size == (3, 3)


def from_file(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_a_comparison_needs_a_variant():
    by_variant = open_network(LEGACY / "compare", variant="cbam")
    assert by_variant.title == "cbam-seed0"
    by_cell = open_network(LEGACY / "compare", variant="cbam-seed1")
    assert same(*states(by_cell.model, open_network(LEGACY / "compare" / "cells" / "cbam-seed1").model))
    assert same(*states(by_variant.model, from_pretrained(LEGACY / "compare", variant="cbam")))


def test_the_control_is_widened_again(tmp_path):
    torch.manual_seed(0)
    network = build_model("resnet20", 3)
    target = sum(p.numel() for p in network.parameters()) + 3000
    match_parameters(network, target)
    before = torch.random.get_rng_state()
    config = describe_network(network, "resnet20", widened_to=target)
    assert torch.equal(before, torch.random.get_rng_state())
    write_network(tmp_path, network, config)
    assert read_config(tmp_path).backbone.widened_to == target
    assert same(*states(network, from_pretrained(tmp_path)))


def test_a_file_with_the_name_of_its_network(tmp_path):
    torch.manual_seed(0)
    network = build_model("resnet20_cbam", 3, in_channels=1)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    opened = open_network(tmp_path / "w.pth", "resnet20_cbam")  # classes and channels as in the file
    assert same(*states(opened.model, network))
    assert opened.class_names == ("class 0", "class 1", "class 2")
    assert (opened.preprocessing.channels, opened.preprocessing.size) == (1, 32)
    given = build_model("resnet20_cbam", 3, in_channels=1)
    assert open_network(tmp_path / "w.pth", given).model is given
    assert same(*states(given, network))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("compare", {}, "Name one: --variant cbam .* or a cell: .*compare/cells/cbam-seed0"),
        ("compare", {"variant": "cbm"}, "unknown variant in .*compare: 'cbm'. Did you mean 'cbam'"),
        ("compare/cells", {}, "Name one: --variant cbam"),
        ("train", {"variant": "cbam"}, "is no run of cbam compare"),
        ("train/metrics.csv", {}, r"is no network.* Give .*/train\."),
        ("train-stopped/checkpoints", {}, "holds one checkpoint. Give it: .*step-000000014"),
        ("saved", {}, "holds no network.* Did you mean .*saved/attention-only"),
        ("saved/no-backbone", {}, "Pass the network.*--model NAME"),
        ("trian", {}, "there is nothing at .*Did you mean .*/train"),
        ("checkpoints/attached.pth", {}, "Name it: --model NAME"),
    ],
)
def test_what_does_not_open_names_what_does(source, options, message):
    with pytest.raises(CBAMError, match=message):
        open_network(LEGACY / source, **options)


def test_one_network_and_several_are_told_apart(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for step in ("step-000000014", "step-000000020"):
        shutil.copytree(STOPPED, checkpoints / step)
    with pytest.raises(
        CBAMError, match=r"holds 2 checkpoints. Give one, such as the newest: .*step-000000020"
    ):
        open_network(checkpoints)
    run = Path(shutil.copytree(LEGACY / "compare", tmp_path / "compare"))
    for cell in (run / "cells").iterdir():
        if cell.name != "cbam-seed1":
            shutil.rmtree(cell)
    named = r"is a comparison; its trained networks: cbam\. Name one: --variant cbam .*cells/cbam-seed1$"
    with pytest.raises(CBAMError, match=named):
        open_network(run)
    shutil.rmtree(run / "cells" / "cbam-seed1")
    for options in ({}, {"variant": "cbam"}):
        with pytest.raises(CBAMError, match=r"no network is finished yet\. The same command resumes it"):
            open_network(run, **options)


def test_folders_inside_a_run_and_runs_without_a_network(tmp_path):
    run = Path(shutil.copytree(LEGACY / "train-stopped", tmp_path / "run"))
    (run / "logs").mkdir()
    with pytest.raises(CBAMError, match=r"run/logs holds no network. Give .*/run\."):
        open_network(run / "logs")
    shutil.rmtree(run / "best")
    with pytest.raises(CBAMError, match=r"has no best/ yet.*newest checkpoint: .*step-000000014"):
        open_network(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CBAMError, match="no epoch is finished"):
        open_network(run)
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "detector.json").touch()
    (tmp_path / "detector" / "model.safetensors").touch()
    for source in (tmp_path / "detector", tmp_path / "detector" / "model.safetensors"):
        with pytest.raises(CBAMError, match=r"cbam detect predict .*detector IMAGES"):
            open_network(source)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_cbam", "resnet50_cbam", "mine:Net"])
def test_a_name_without_published_weights(name):
    with pytest.raises(
        CBAMError, match=rf"{name} is a network without published weights.*FILE --model {name}"
    ):
        open_network(name)


def test_published_weights_come_with_their_images(monkeypatch):
    from cbam.pretrained import published

    monkeypatch.setattr(published, "build_model", lambda name, classes, **_: build_model(name, classes))
    opened = open_network("torchvision/mobilenet_v2")
    form = opened.preprocessing
    assert (form.size, form.resize, form.interpolation) == (224, 232, "bilinear")
    assert opened.class_names[285] == "Egyptian cat"
    theirs = open_network("timm/tf_efficientnet_lite0").preprocessing
    assert (theirs.size, theirs.resize, theirs.interpolation) == (224, 256, "bicubic")
    assert theirs.mean == (0.5,) * 3
