"""`cbam.export`: files that compute what eager mode does, on the sizes asked for; nothing else is written."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError
from cbam.export import export, load
from cbam.export.onnx_file import gate_nodes
from cbam.export.program import axes_of, capture, has_operator
from cbam.pretrained.config import Config
from tests.attach.networks import Block, Net, move_gates

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EVERY = ("batch", "height", "width")
SAVED = Config(
    "full", "", None, (), class_names=("cat", "dog"), input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3
)


def attached(**options):
    torch.manual_seed(0)
    model = Net(Block(8)).eval()
    cbam.attach(model, init="paper", input_size=16, **options)
    return move_gates(model)


def _before(graph, node):
    """Return the inputs of the node and of those in front of it."""
    return {name for each in graph.node if set(each.output) & set(node.input) for name in each.input} | set(
        node.input
    )


@pytest.fixture(scope="module")
def network():
    model = attached(preset="official")
    model.cbam_config = SAVED
    return model


@pytest.fixture(scope="module")
def onnx(network, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    return export(network, path, IMAGES[:1], dynamic=EVERY)


@pytest.fixture(scope="module")
def program(network, tmp_path_factory):
    return export(network, tmp_path_factory.mktemp("exported") / "net.pt2", IMAGES[:1], dynamic=EVERY)


class TestOnnx:
    def test_every_size_is_dynamic(self, onnx, network):
        loaded = onnx.load()
        for shape in ((1, 3, 16, 16), (5, 3, 21, 12)):
            images = torch.randn(shape)
            torch.testing.assert_close(loaded(images)[0], network(images).detach(), rtol=1e-4, atol=1e-5)

    def test_its_sizes_have_names(self, onnx):
        import onnxruntime

        session = onnxruntime.InferenceSession(onnx.path)
        assert [(each.name, each.shape) for each in session.get_inputs()] == [
            ("input", ["batch", 3, "height", "width"])
        ]
        assert session.get_outputs()[0].name == "output"

    def test_the_differences_are_of_every_shape(self, onnx):
        assert [each.shape for each in onnx.differences] == [
            (1, 3, 16, 16), (3, 3, 16, 16), (1, 3, 48, 80), (3, 3, 80, 48)
        ]  # fmt: skip
        assert all(each.largest < 1e-5 for each in onnx.differences)
        assert "1 x 3 x 48 x 80" in str(onnx)

    def test_what_is_needed_to_predict_is_in_the_file(self, onnx):
        found = onnx.load().metadata
        assert found["class_names"] == ["cat", "dog"]
        assert found["preprocessing"]["mean"] == [0.5] * 3
        assert found["preprocessing"]["size"] == [16, 16]
        assert found["preprocessing"]["resize"] == 18
        assert found["task"] == "multiclass"

    def test_no_path_of_this_machine_is_in_it(self, onnx):
        assert b".py" not in onnx.path.read_bytes()

    def test_the_gates_are_found(self, network):
        from cbam.export.onnx_file import to_onnx

        model = to_onnx(capture(network, IMAGES, plain=True), {})
        names = set(gate_nodes(model, network))
        kinds = [node.op_type for node in model.graph.node if node.name in names]
        assert kinds.count("Sigmoid") == kinds.count("Mul") == kinds.count("ReduceMax") == 2
        assert kinds.count("Conv") == 1
        assert "Sigmoid" not in {node.op_type for node in model.graph.node if node.name not in names}

    def test_latency_of_both(self, onnx):
        times = onnx.latency(batches=(1,), rounds=2)
        assert set(times) == {1}
        assert all(each.median_ms > 0 for each in times[1])


class TestProgram:
    def test_the_operator_is_in_it(self, program, network):
        assert program.operator
        images = torch.randn(5, 3, 21, 12)
        torch.testing.assert_close(program.load()(images)[0], network(images).detach())

    def test_plain_needs_no_cbam(self, network, tmp_path):
        found = export(network, tmp_path / "plain.pt2", IMAGES, plain=True)
        assert not found.operator
        torch.save((IMAGES, network(IMAGES).detach()), tmp_path / "expected.pt")
        code = (
            "import sys, torch\n"
            f"images, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"got = torch.export.load({str(found.path)!r}).module()(images)\n"
            "torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)\n"
            "assert 'cbam' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_the_operator_in_a_process_of_its_own(self, program, network, tmp_path):
        torch.save((IMAGES, network(IMAGES).detach()), tmp_path / "expected.pt")
        code = (
            "import torch\nfrom cbam.export import load\n"
            f"images, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
            f"torch.testing.assert_close(load({str(program.path)!r})(images)[0], expected)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_metadata(self, program):
        assert program.load().metadata["class_names"] == ["cat", "dog"]
        with zipfile.ZipFile(program.path) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith("cbam.json")]
            assert json.loads(json.loads(archive.read(name))["class_names"]) == ["cat", "dog"]

    def test_a_fixed_batch_is_filled_up(self, network, tmp_path):
        loaded = export(network, tmp_path / "two.pt2", IMAGES, check=False).load()
        images = torch.rand(3, 3, 16, 16)
        assert loaded.batch == 2
        torch.testing.assert_close(loaded(images)[0], network(images).detach())

    def test_training_stays_on(self, tmp_path):
        model = attached().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        export(model, tmp_path / "net.pt2", IMAGES)
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
class TestPrecision:
    def test_float16_keeps_the_gates(self, network, tmp_path):
        import onnx as library

        found = export(network, tmp_path / "half.onnx", IMAGES, precision="fp16")
        assert 1e-7 < found.differences[0].relative < 1e-2
        graph = library.load(found.path).graph
        half = {each.name for each in graph.initializer if each.data_type == library.TensorProto.FLOAT16}
        assert half
        assert not [name for name in half if "cbam" in name]

    @pytest.mark.parametrize("gates", ["float", "int8"])
    def test_int8(self, network, tmp_path, gates):
        import onnx as library

        found = export(
            network, tmp_path / "q.onnx", IMAGES[:1], precision="int8", gates=gates,
            calibration=torch.rand(8, 3, 16, 16),
        )  # fmt: skip
        assert found.differences[0].decibels > 15
        graph = library.load(found.path).graph
        makers = {name: node.op_type for node in graph.node for name in node.output}
        sigmoids = [node for node in graph.node if node.op_type == "Sigmoid"]
        quantized = [makers.get(node.input[0]) == "DequantizeLinear" for node in sigmoids]
        assert sigmoids
        assert all(quantized) == any(quantized) == (gates == "int8")

    def test_int8_has_a_scale_for_each_channel_and_the_range_of_the_pictures(self, network, tmp_path):
        import onnx as library

        pictures = torch.linspace(-1, 4, 8 * 3 * 16 * 16).reshape(8, 3, 16, 16)
        path = tmp_path / "q.onnx"
        export(network, path, IMAGES[:1], precision="int8", calibration=pictures, check=False)
        graph = library.load(path).graph
        values = {each.name: library.numpy_helper.to_array(each) for each in graph.initializer}
        (first,) = [node for node in graph.node if "input" in node.input]
        assert first.op_type == "QuantizeLinear"
        scale, zero = (values[name] for name in first.input[1:])
        assert (float(scale), int(zero), zero.dtype.name) == (pytest.approx(5 / 255, rel=1e-5), 51, "uint8")
        (stem,) = [
            node for node in graph.node if node.op_type == "Conv" and first.output[0] in _before(graph, node)
        ]
        weight = next(node for node in graph.node if node.output[0] == stem.input[1])
        assert values[weight.input[0]].dtype.name == "int8"
        assert values[weight.input[1]].shape == (network.stem.out_channels,)

    def test_the_opset_asked_for(self, network, tmp_path):
        found = export(network, tmp_path / "net.onnx", IMAGES, opset=18, check=False)
        assert found.opset == 18
        assert "opset 18" in str(found)

    def test_aot_inductor(self, network, tmp_path):
        found = export(network, tmp_path / "compiled.pt2", IMAGES, format="aoti", dynamic=["batch"])
        assert found.operator
        loaded = found.load()
        assert loaded.format == "aoti"
        assert loaded.metadata["class_names"] == ["cat", "dog"]
        images = torch.rand(5, 3, 16, 16)
        torch.testing.assert_close(loaded(images)[0], network(images).detach(), rtol=1e-4, atol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("net.bin", {}, r"ends in \.onnx or \.pt2"),
            ("net.onnx", {"format": "pt2"}, r"ends in \.pt2, given"),
            ("net.pt2", {"format": "onx"}, "Did you mean 'onnx'"),
            ("net.pt2", {"dynamic": ["heigth"]}, "Did you mean 'height'"),
            ("net.pt2", {"precision": "fp16"}, "'fp16' is of ONNX"),
            ("net.pt2", {"opset": 18}, "an opset is of ONNX"),
            ("net.onnx", {"precision": "int8"}, "needs calibration images"),
            ("net.onnx", {"calibration": IMAGES}, "are for precision 'int8'"),
            ("net.onnx", {"opset": 11}, "opset 18 and later, given 11"),
            ("net.pt2", {"class_names": "cat"}, "class_names expects a sequence"),
        ],
    )
    def test_before_any_work(self, network, tmp_path, name, options, message):
        pytest.importorskip("onnxscript")
        with pytest.raises(CBAMError, match=message):
            export(network, tmp_path / name, IMAGES, **options)
        assert not list(tmp_path.iterdir())

    def test_a_file_that_computes_something_else_is_not_written(self, network, tmp_path, monkeypatch):
        (tmp_path / "net.pt2").write_text("older")
        monkeypatch.setattr("cbam.export.check.BOUNDS", {"fp32": -1.0})
        with pytest.raises(CBAMError, match=r"differs from eager mode by .* No file was written"):
            export(network, tmp_path / "net.pt2", IMAGES)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("net.pt2", "older")]

    def test_a_network_that_torch_cannot_export(self, tmp_path):
        class Odd(nn.Module):
            def forward(self, x):
                return x if x.sum() > 0 else -x

        with pytest.raises(CBAMError, match=r"torch\.export cannot capture Odd"):
            export(Odd(), tmp_path / "net.pt2", IMAGES)

    def test_a_file_that_is_none_of_ours(self, tmp_path):
        (tmp_path / "net.pt2").write_text("text")
        with pytest.raises(CBAMError, match="neither"):
            load(tmp_path / "net.pt2")
        with pytest.raises(CBAMError, match="there is no file"):
            load(tmp_path / "absent.onnx")


def test_other_dimensions(tmp_path):
    net = nn.Sequential(nn.Conv1d(2, 8, 3), cbam.CBAM(8, dims=1)).eval()
    found = export(net, tmp_path / "signal.pt2", image_size=(2, 32), dynamic=["batch", "length"])
    assert [each.shape for each in found.differences] == [(1, 2, 32), (3, 2, 32), (1, 2, 64), (3, 2, 64)]
    assert axes_of(torch.zeros(1, 1, 4, 4, 4), ["depth"]) == {2: "depth"}


def test_sizes_that_become_one_inside(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), cbam.CBAM(8)).eval()
    with pytest.raises(CBAMError, match=r"becomes 1 inside of a network .*larger example"):
        export(net, tmp_path / "net.pt2", IMAGES[:1, :, :2, :2], dynamic=EVERY)
    pytest.importorskip("onnxscript")
    found = export(net, tmp_path / "net.onnx", IMAGES[:1, :, :2, :2], dynamic=EVERY)
    assert [each.shape for each in found.differences] == [
        (1, 3, 2, 2), (3, 3, 2, 2), (1, 3, 34, 66), (3, 3, 66, 34)
    ]  # fmt: skip


def test_a_size_that_the_file_does_not_take(tmp_path, monkeypatch):
    monkeypatch.setattr("cbam.export.exporting.capture", lambda model, example, *_: capture(model, example))
    with pytest.raises(CBAMError, match=r"takes no input of \(1, 3, 16, 48\): .*\s.*No file was written"):
        export(nn.Conv2d(3, 4, 3), tmp_path / "net.pt2", IMAGES[:1], dynamic=["width"])
    assert not list(tmp_path.iterdir())


def test_a_model_of_plain_operations_has_no_operator():
    assert not has_operator(capture(nn.Conv2d(3, 8, 3), IMAGES))


def test_the_package_can_be_called(tmp_path):
    assert cbam.export(nn.Conv2d(3, 4, 3), tmp_path / "net.pt2", IMAGES).path.is_file()
