"""YOLO of `ultralytics`: sites at the ends of its bottlenecks, and attention that outlives its `fuse()`."""

import os
import tempfile

import pytest
import torch

import cbam
from cbam.attach import WithAttention
from tests.attach.networks import calibrate, move_gates

# Read when it is imported: no settings file in the home directory, no look at the network.
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
os.environ.setdefault("YOLO_OFFLINE", "True")
os.environ.setdefault("YOLO_VERBOSE", "False")
os.environ.setdefault("YOLO_AUTOINSTALL", "False")
ultralytics = pytest.importorskip("ultralytics")

NAMES = ["yolov8n", "yolo11n", "yolov5n"]
# In float64 what folding changes by rounding is far below what gates do.
IMAGE = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    return calibrate(ultralytics.YOLO(f"{request.param}.yaml").model.double(), IMAGE)


def output(model):
    with torch.no_grad():
        return model(IMAGE)[0].clone()


def distance(a, b):
    return float((a - b).abs().max())


def gates(model):
    return sum(isinstance(module, WithAttention) for module in model.modules())


def bottlenecks(model):
    """The ends of the branches, by ultralytics' own flag: independent of the tracer."""
    kind = ultralytics.nn.modules.block.Bottleneck
    return [
        f"{name}.cv2" for name, module in model.named_modules() if isinstance(module, kind) and module.add
    ]


def test_sites_are_the_ends_of_the_bottlenecks(model):
    plan = cbam.plan(model, input_size=128)
    expected = bottlenecks(model)
    others = [site.name for site in plan.sites if site.name not in expected]
    assert set(expected) <= {site.name for site in plan.sites}
    assert others in (
        [],
        ["model.10.m.0.attn.proj", "model.10.m.0.ffn.1"],
    )  # YOLO11's residual attention block
    assert "docs/yolo.md" in plan.notes[-1]
    assert all(note.startswith("narrow channel gates") for note in plan.notes[:-1])


def test_the_output_is_the_same_bit_for_bit(model):
    before = output(model)
    cbam.attach(model, input_size=128)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("sites", ["auto", "conv", "block", "head"])
def test_attention_outlives_fuse(model, sites):
    attachment = cbam.attach(model, sites=sites, input_size=128)
    before = output(move_gates(model))
    count = gates(model)
    model.fuse(verbose=False)
    assert model.is_fused()
    assert gates(model) == count == len(attachment.sites)
    changed = distance(output(model), before)
    for module in model.modules():
        if isinstance(module, WithAttention):
            module.cbam.enabled = False
    assert distance(output(model), before) > 1e6 * changed


def test_a_site_that_fuse_would_lose_stops_it(model):
    cbam.attach(model, sites="model.*.cv1.bn", input_size=128)
    with pytest.raises(cbam.CBAMError, match=r"lose the attention behind it\. Fold first and attach then"):
        model.fuse(verbose=False)


def test_what_makes_boxes_is_no_site(model):
    kinds = ("auto", "stage", "conv", "block", "head")
    sites = [site.name for kind in kinds for site in cbam.plan(model, sites=kind, input_size=128).sites]
    assert not [name for name in sites if ".dfl" in name]


@pytest.mark.parametrize("name", [*NAMES, "yolo11n-seg", "yolov10n"])
def test_stages_are_the_ends_of_the_modules_of_each_resolution(name):
    model = ultralytics.YOLO(f"{name}.yaml").model.eval()
    sites = [site.name.split(".")[1] for site in cbam.plan(model, sites="stage", input_size=128).sites]
    kinds = [type(model.model[int(number)]).__name__ for number in sites]
    assert set(kinds) - {"Conv", "Segment"} <= {"C3", "C2f", "C3k2", "C2fCIB", "SPPF", "PSA", "C2PSA"}
    assert kinds.count("Conv") == (
        3 if name == "yolov5n" else 1
    )  # the stem, and of YOLOv5 two before it enlarges
    neck = [site.name.split(".")[1] for site in cbam.plan(model, sites="neck", input_size=128).sites]
    assert neck == sites[5:]
    head = model.model[-1]
    assert [str(number) for number in head.f] == neck[1:4]


def test_only_the_model_of_a_yolo_object_is_warned_of(caplog):
    fresh = ultralytics.nn.tasks.DetectionModel("yolo11n.yaml", verbose=False)
    assert not [note for note in cbam.attach(fresh, input_size=128).notes if "yaml" in note]
    assert not caplog.records
    cbam.attach(ultralytics.YOLO("yolo11n.yaml").model, input_size=128)
    assert "builds the network again from its yaml" in caplog.text


def test_modules_by_class():
    model = ultralytics.YOLO("yolo11n.yaml").model
    assert [site.name for site in cbam.plan(model, sites=["SPPF", "C2PSA"], input_size=128).sites] == [
        "model.9",
        "model.10",
    ]


def test_gates_of_every_kind_get_a_gradient():
    model = ultralytics.YOLO("yolo11n.yaml").model
    cbam.attach(model, sites=["stage", "conv", "head"], input_size=64)
    found = model.train()(torch.rand(2, 3, 64, 64))
    tensors = [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
    sum(t.square().sum() for t in tensors).backward()
    assert not [name for name, p in model.named_parameters() if ".cbam." in name and p.grad is None]


def test_load_weights_says_what_to_pass_for_best_pt(tmp_path):
    trained, file = ultralytics.YOLO("yolov8n.yaml"), tmp_path / "best.pt"
    trained.save(file)
    model = ultralytics.YOLO("yolov8n.yaml").model
    cbam.attach(model, input_size=64)
    with pytest.raises(cbam.CBAMError, match=r"pass the state dict: ultralytics\.YOLO") as error:
        cbam.load_weights(model, file)
    report = cbam.load_weights(model, eval(str(error.value).rpartition("dict: ")[2].removesuffix(".")))
    assert not report.missing
    weight = "model.0.conv.weight"
    assert torch.allclose(model.get_parameter(weight), trained.model.get_parameter(weight), atol=1e-2)
