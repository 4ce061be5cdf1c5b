"""`cbam plan` and `cbam cost`: what they print."""

from __future__ import annotations

import pytest

from cbam.cli import cost, plan
from cbam.cli.main import main
from cbam.errors import CBAMError


def test_plan_prints_the_table(capsys):
    config = plan.PlanConfig("resnet20", preset="official", exclude=("layer1.*.bn2",), reduction_ratio=8)
    assert plan.run(config) == 0
    out = capsys.readouterr().out
    assert "cbam (preset official, r=8, k=7) in CifarResNet: 6 sites" in out
    assert "layer3.2.bn2" in out
    assert "8x8" in out, "the map of a 32 x 32 image"
    assert "269,722 ->" in out


def test_plan_of_squeeze_and_excitation_at_named_sites(capsys):
    config = plan.PlanConfig(
        "resnet18", attention="se", sites=("layer4",), input_size=(1, 64, 64), num_classes=7
    )
    assert plan.run(config) == 0
    out = capsys.readouterr().out
    assert "1 sites" in out or "1 site" in out
    assert "2x2" in out


def test_cost_of_the_plain_model(capsys):
    assert cost.run(cost.CostConfig("paper_resnet50")) == 0
    out = capsys.readouterr().out
    assert "25,557,032" in out
    assert "3.858 G" in out
    assert "added" not in out


def test_cost_with_attention_beside_it(capsys):
    assert cost.run(cost.CostConfig("paper_resnet50", attention="cbam", preset="official", depth=2)) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.rsplit("  ", 4)[0].strip(): line.split() for line in lines[-5:]}
    assert lines[-6].split() == ["plain", "cbam", "added"]
    assert table["parameters"][1:] == ["25,557,032", "28,089,624", "2,532,592", "+9.91%"]
    assert lines[-4].split() == ["MACs", "(G)", "3.858", "3.864", "0.006", "+0.17%"]
    assert any(line.startswith("layer1.0 ") for line in lines)


def test_wrong_names_come_through_as_errors():
    with pytest.raises(CBAMError, match="unknown model 'resnet5'"):
        plan.run(plan.PlanConfig("resnet5"))
    with pytest.raises(CBAMError, match=r"unknown attention 'cbma'. Did you mean 'cbam'"):
        cost.run(cost.CostConfig("resnet20", attention="cbma"))
    with pytest.raises(CBAMError, match="layer5"):
        plan.run(plan.PlanConfig("resnet20", sites=("layer5",)))


def test_the_verbs_from_the_command_line(capsys):
    assert main(["plan", "--model", "resnet20", "--sites", "layer2.*.bn2", "layer3.*.bn2"]) == 0
    assert "6 sites" in capsys.readouterr().out
    assert main(["cost", "--model", "resnet20", "--input-size", "1", "28", "28"]) == 0
    assert "1x1x28x28" in capsys.readouterr().out
    assert main(["plan", "--model", "resnet2O"]) == 2
    hint = capsys.readouterr().err.partition("Valid")[0]
    assert "Did you mean" in hint
    assert "'resnet20'" in hint


@pytest.mark.parametrize("command", ["plan", "cost"])
def test_wrong_options_name_the_nearest(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--model", "resnet20", "--reduction-ration", "8"])
    assert stopped.value.code == 2
    assert "--reduction-ratio" in capsys.readouterr().err


def test_no_model_is_an_error_that_says_what_to_type(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan"])
    assert stopped.value.code == 2
    assert "--model" in capsys.readouterr().err
    assert main(["cost"]) == 2
    assert "cost needs a model, such as cbam cost resnet50, or --table N" in capsys.readouterr().err


def test_a_table_of_the_paper(capsys):
    assert main(["cost", "--table", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Table 3 of the paper")
    assert "28,089,624" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "8"], "Tables 1 to 7, given 8"),
        (["--table", "4", "--model", "resnet20", "--batch-size", "2"], "Leave out --model, --batch-size"),
    ],
)
def test_tables_that_cannot_be_shown(arguments, message, capsys):
    assert main(["cost", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_networks_with_a_suffix(capsys):
    assert cost.run(cost.CostConfig("paper_resnet18_cbam", attention="none")) == 0
    assert "11,779,392" in capsys.readouterr().out
    assert plan.PlanConfig("resnet164_cbam").image_size == (3, 32, 32)


def test_options_of_attention_without_attention(capsys):
    options = ["--sites", "conv", "--preset", "official", "--kernel-size", "3", "--exclude", "layer1.*"]
    assert main(["cost", "--model", "resnet20", *options]) == 2
    told = capsys.readouterr().err
    assert "--sites, --exclude, --preset, --kernel-size have no effect with --attention none" in told
    assert "--attention cbam" in told
    assert main(["cost", "--model", "resnet20", "--sites", "auto", "--reduction-ratio", "16"]) == 0


@pytest.mark.parametrize("command", ["plan", "cost"])
def test_the_help_names_all_that_sites_auto_falls_back_on(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "in networks without stages, conv (after every convolution)" in text


class TestSignalsAndVolumes:
    """Networks for other maps than images: given as `my_net:build`, with their size."""

    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        name = f"dims_{tmp_path.name.replace('-', '_')}"
        lines = ["from torch import nn"]
        for dims in (1, 3):
            head = f"nn.Conv{dims}d(1, 8, 3, padding=1), nn.BatchNorm{dims}d(8), nn.ReLU()"
            lines.append(f"def net{dims}(): return nn.Sequential({head}, nn.AdaptiveAvgPool{dims}d(1))")
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
        return name

    @pytest.mark.parametrize(("dims", "size"), [(1, (1, 40)), (3, (1, 6, 8, 8))])
    def test_plan_and_cost(self, module, dims, size, capsys):
        given = ["--model", f"{module}:net{dims}", "--sites", "conv", "--input-size", *map(str, size)]
        assert main(["plan", *given]) == 0
        assert f"{'x'.join(map(str, size[1:]))} " in capsys.readouterr().out
        assert main(["cost", *given, "--attention", "cbam"]) == 0
        out = capsys.readouterr().out
        assert f"input 1x{'x'.join(map(str, size))}, eval mode" in out
        assert "bytes saved for backward (MB)" in out

    def test_a_size_of_other_dimensions(self, module, capsys):
        assert main(["plan", "--model", f"{module}:net1", "--input-size", "1", "8", "8"]) == 2
        assert "input_size expects (channels, length), or one side, got (1, 8, 8)" in capsys.readouterr().err
        assert main(["cost", "--model", "resnet20", "--input-size", "3", "32"]) == 2
        assert (
            "input_size expects (channels, height, width), or one side, got (3, 32)"
            in capsys.readouterr().err
        )
