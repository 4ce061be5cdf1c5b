from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cbam.cli.compare import parse
from cbam.compare.config import CompareConfig, merged
from cbam.errors import CBAMError
from cbam.train.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention": "none,cbma"}, "unknown attention 'cbma'. Did you mean 'cbam'"),
        ({"attention": ""}, "names no variant"),
        ({"attention": "none,se,none"}, "'none' twice"),
        ({"attention": "none,control"}, "none,cbam,control"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"val_fraction": 1.0}, "--val-fraction must be between 0 and 1"),
        ({"limit_train": 0}, "--limit-train must be at least 1"),
        ({"limit_val": -5}, "--limit-val must be at least 1"),
        ({"reduction_ratio": 0}, "--reduction-ratio must be at least 1"),
        ({"pretrained": True, "weights": "w.pth"}, "give one of them"),
        ({"model_gpus": 3}, "--model-gpus 3 has no effect without --ray or --slurm"),
        ({"model_cpus": 2}, "--model-cpus 2 has no effect without --ray or --slurm"),
    ],
)
def test_refuses_what_cannot_work(settings, expected):
    with pytest.raises(CBAMError, match=expected):
        CompareConfig(data="digits", **settings)


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("fashion-mnist", "runs/fashion-mnist-resnet20"),
        ("/data/my pets/", "runs/my pets-resnet20"),
        ("fashion-mnist:/data/fm", "runs/fm-resnet20"),
    ],
)
def test_the_default_folder(data, folder):
    assert str(CompareConfig(data=data).folder) == folder


def test_a_model_with_a_slash_stays_one_folder():
    assert str(CompareConfig(data="digits", model="timm/resnet18").folder) == "runs/digits-timm-resnet18"


def test_resolved_holds_every_option_and_real_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    settings = CompareConfig(data="pets", weights=tmp_path / "w.pth", attention="none, cbam").resolved()
    assert settings["data"] == str(tmp_path / "pets")
    assert settings["lr"] == 0.01, "fine-tuning"
    assert settings["attention"] == "none,cbam"
    assert {"model", "seeds", "epochs", "precision", "reduction_ratio", "limit_train"} <= set(settings)
    assert "config" not in settings
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings


def test_the_saved_configuration_gives_the_same_run(tmp_path):
    config = CompareConfig(
        data="digits", attention="none,cbam:official", train=TrainConfig(precision="no", ema=0.99)
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.resolved()))
    assert parse(["--config", str(file)]).resolved() == config.resolved()


def test_what_does_not_change_the_numbers_is_not_compared():
    before = CompareConfig(data="digits").resolved()
    now = CompareConfig(
        data="digits",
        seeds=5,
        output=Path("elsewhere"),
        train=TrainConfig(workers=4, device="cpu", compile=True),
    ).resolved()
    assert CompareConfig.differences(before, now) == []
    other = CompareConfig(data="digits", train=TrainConfig(epochs=3)).resolved()
    assert CompareConfig.differences(before, other) == ["epochs: 10 there, 3 now"]


def test_networks_that_are_compared_share_the_images_of_a_batch_norm():
    """A training may be divided into other parts half-way; see `accumulate` in train/config.py."""
    before, now = (
        CompareConfig(data="digits", train=TrainConfig(accumulate=parts)).resolved() for parts in (1, 2)
    )
    assert CompareConfig.differences(before, now) == ["accumulate: 1 there, 2 now"]


def test_a_file_gives_defaults_and_the_command_line_wins(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "data: digits\nattention: [none, se]\nbatch-size: 32\nprecision: no\n"
        "pretrained: true\nlr: 5e-4\nlimit_train: null\n"
    )
    config = parse(["--config", str(file), "--batch-size", "16"])
    assert config.variants == ("none", "se")
    assert config.train.batch_size == 16
    assert config.train.precision == "no", "YAML reads a bare no as False"
    assert config.train.lr == 5e-4
    assert config.pretrained
    assert not parse([f"--config={file}", "--no-pretrained"]).pretrained


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "no option 'epoch'. Did you mean 'epochs'"),
        ("- a\n- b", "one `name: value` per line"),
        ("a: [", "cannot be used"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "repeats parts by"),
        ("epochs: 2001-99-99", "cannot be used: month must be in"),
        ("epochs: !!int abc", "cannot be used: invalid literal"),
        ("pretrained: !!bool x", "cannot be used"),
        (f"epochs: {'9' * 5000}", "cannot be used"),
        ("epochs: " + "[" * 20_000, "brackets inside each other"),
        ("config: other.yaml", "no option 'config'"),
        ("train: {}", "no option 'train'"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, expected):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(CBAMError, match=expected):
        parse(["--config", str(file)])


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(CBAMError, match=r"none.yaml cannot be read: No such file"):
        parse(["--config", str(tmp_path / "none.yaml")])


def test_a_path_that_is_none_is_explained():
    with pytest.raises(
        CBAMError, match=r"--config 'a+\.\.\. \(5,000 characters\)' cannot be read: File name too long"
    ):
        parse(["--config", "a" * 5000])


def test_an_option_that_an_older_run_does_not_name_had_todays_default():
    before = CompareConfig(data="digits").resolved()
    del before["mean"], before["gate_lr_scale"]
    assert CompareConfig.differences(before, CompareConfig(data="digits").resolved()) == []
    tuned = CompareConfig(data="digits", mean="0.5", train=TrainConfig(gate_lr_scale=10))
    assert sorted(CompareConfig.differences(before, tuned.resolved())) == [
        "gate_lr_scale: 1.0 there, 10 now",
        "mean: None there, 0.5 now",
    ]


def test_a_run_may_get_more_variants_unless_the_control_would_be_another():
    before = CompareConfig(data="digits", attention="none,se,control").resolved()
    now = CompareConfig(data="digits", attention="none,channel").resolved()
    assert CompareConfig.differences(before, now) == []
    assert merged(before["attention"], ("none", "channel")) == ("none", "se", "control", "channel")
    now = CompareConfig(data="digits", attention="none,cbam").resolved()
    assert CompareConfig.differences(before, now) == ["control: as large as se there, as cbam now"]


def test_sites_with_spaces_and_with_commas_are_the_same():
    spaced, joined = (
        parse(["--data", "digits", *words]) for words in (["--sites", "a", "b"], ["--sites", "a,b"])
    )
    assert spaced.resolved()["sites"] == joined.resolved()["sites"] == "a,b"


def test_a_comparison_is_not_sharded():
    with pytest.raises(CBAMError, match="cbam train --shard"):
        CompareConfig(data="digits", train=TrainConfig(shard=True))


@pytest.mark.parametrize("where", ["ray", "slurm"])
def test_a_cluster_knows_processors_for_each_model(where):
    CompareConfig(data="digits", model_cpus=2, model_gpus=1, **{where: "cluster=local"})


def test_one_place_only():
    with pytest.raises(CBAMError, match="give one of them"):
        CompareConfig(data="digits", ray="local", slurm="cluster=local")
