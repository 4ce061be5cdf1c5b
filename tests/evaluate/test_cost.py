"""`cbam.cost` against the paper's printed digits and against formulas written by hand."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from cbam import set_backend
from cbam.attach import attach
from cbam.errors import CBAMError
from cbam.evaluate import cost
from cbam.models import build_model
from cbam.nn import CBAM, SqueezeExcitation
from tests.ops.cases import WithResidual
from tests.ops.library import needs_operator, needs_same_bits

BACKENDS = ["eager", pytest.param("cpp", marks=needs_operator)]

# Table 4 of the paper: GFLOPs of the plain network and with CBAM, and exact parameter counts.
TABLE_4 = {
    18: ("1.814", "1.815", 11_689_512, 11_779_392),
    34: ("3.664", "3.665", 21_797_672, 21_960_468),
    50: ("3.858", "3.864", 25_557_032, 28_089_624),
    101: ("7.570", "7.581", 44_549_160, 49_330_172),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with set_backend(request.param):
        yield request.param


@pytest.mark.parametrize("depth", TABLE_4)
def test_the_paper_s_digits(depth, backend):
    plain_macs, cbam_macs, plain_parameters, cbam_parameters = TABLE_4[depth]
    model = build_model(f"paper_resnet{depth}", 1000)
    plain = cost(model)
    assert (f"{plain.macs / 1e9:.3f}", plain.parameters) == (plain_macs, plain_parameters)
    assert f"{plain_macs} G" in str(plain)
    assert f"{plain_parameters:,}" in str(plain)
    attach(model, preset="official")
    attended = cost(model)
    assert (f"{attended.macs / 1e9:.3f}", attended.parameters) == (cbam_macs, cbam_parameters)
    assert not attended.uncounted


def test_se_costs_what_table_4_says(backend):
    model = build_model("paper_resnet50", 1000)
    attach(model, "se")
    found = cost(model)
    assert f"{found.macs / 1e9:.4f}" == "3.8605"


def test_torchvision_s_resnet50_has_its_stride_elsewhere():
    assert f"{cost(build_model('resnet50', 1000)).macs / 1e9:.3f}" == "4.089"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cbam_module_in_a_network_against_hand_formulas(batch, backend):
    c, side, r, k = 64, 14, 16, 7
    p, h, n = side * side, c // r, batch
    net = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), CBAM(c, r, k, preset="paper"))
    found = cost(net, (c, side, side), batch_size=n)
    row = next(module for module in found.modules if module.name == "1")
    assert row.parameters == 2 * c * h + 2 * k * k
    # The shared MLP runs on two pooled vectors; the k x k convolution reads two maps.
    assert row.macs == n * (2 * 2 * c * h + 2 * k * k * p)
    # Mean, max and product over the map for each of the two gates; ReLU twice, the sum and two sigmoids.
    assert row.flops == 2 * row.macs + n * (6 * c * p + 2 * h + c + c + p)
    if backend == "cpp":
        # Three sweeps read the map, one writes it; every weight is read once.
        vectors, indices = n * (3 * c + 2 * h + 3 * p), n * (c + p)
        assert row.bytes_moved == 4 * (n * 4 * c * p + 2 * c * h + 2 * k * k + vectors + indices)
        assert row.bytes_saved == 4 * (n * c * p + vectors + indices)
        return
    channel_pooling = (c * p + c) + (c * p + c)
    mlp = 2 * ((c + h * c / n + h) + 2 * h + (h + h * c / n + c)) + 3 * c
    spatial_pooling = 2 * (c * p + p) + (2 * p + 2 * p)
    convolution = (
        (2 * p + 2 * p) + 2 * k * k / n + 2 * p + p
    )  # the descriptor is copied to channels_last first
    gates = (2 * c) + (2 * c * p + c) + (2 * p) + (2 * c * p + p)
    indices = 8 * (c + p)  # max also writes where the maximum was, as int64
    floats = channel_pooling + mlp + spatial_pooling + convolution + gates
    assert row.bytes_moved == n * (4 * floats + indices)
    # Saved: the map and the map after the first gate; pooled vectors, hidden vectors, both gates, the descriptor.
    assert row.bytes_saved == n * (4 * (2 * c * p + 2 * c + 2 * h + c + 2 * p + p) + indices)


def test_squeeze_and_excitation_against_hand_formulas(backend):
    c, side, r = 32, 8, 16
    p, h = side * side, c // r
    found = cost(SqueezeExcitation(c, r), (c, side, side))
    assert found.parameters == 2 * c * h + h + c
    assert found.macs == 2 * c * h
    assert found.flops == 2 * found.macs + 2 * c * p + h + c
    if backend == "cpp":
        weights, vectors = 2 * c * h + h + c, 3 * c + 2 * h + c
        assert found.bytes_moved == 4 * (3 * c * p + weights + vectors)


@pytest.mark.parametrize(
    "switches",
    [
        {"preset": "official"},
        {"preset": "timm", "gate_scale": 2.0},
        {"channel_pooling": "max"},
        {"spatial_descriptor": "avg", "kernel_size": 3},
        {"arrangement": "channel"},
        {"arrangement": "spatial"},
        {"arrangement": "spatial-channel", "gate": "hardsigmoid"},
        {"gate_scale": 2.0, "kernel_size": 5},
    ],
    ids=str,
)
@needs_operator
def test_the_operator_counts_what_its_parts_count(switches):
    found, block = {}, CBAM(24, 8, **switches)
    if switches.get("preset") == "timm":
        block.spatial_attention.norm = nn.BatchNorm2d(1, track_running_stats=False)  # the batch's statistics
    if switches.get("kernel_size") == 5:
        block.spatial_attention.set_divisor(98)
    for name in ("eager", "cpp"):
        with set_backend(name):
            found[name] = cost(block, (24, 10, 9), batch_size=2)
    assert found["cpp"].macs == found["eager"].macs
    assert found["cpp"].flops == found["eager"].flops
    assert not found["cpp"].uncounted
    assert found["cpp"].bytes_moved < found["eager"].bytes_moved


@needs_operator
@pytest.mark.parametrize("relu", [True, False])
def test_the_end_of_a_block_inside_the_operator_is_counted_with_it(relu):
    found, block = {}, WithResidual(CBAM(24, 8), torch.zeros(2, 24, 10, 9), relu)
    for name in ("eager", "cpp"):
        with set_backend(name):
            found[name] = cost(block, (24, 10, 9), batch_size=2)
    assert found["cpp"].flops == found["eager"].flops
    assert found["cpp"].macs == found["eager"].macs
    with set_backend("cpp"):
        alone = cost(block.attention, (24, 10, 9), batch_size=2)
    assert found["cpp"].bytes_moved == alone.bytes_moved + 4 * 2 * 24 * 90, "the shortcut is read once"


@needs_operator
@needs_same_bits
def test_a_norm_inside_the_operator_is_counted_with_it():
    """The attached block: the norm's own row is gone, its two operations per element are not."""
    model = build_model("resnet20", 10)
    plain = cost(model, (3, 32, 32))
    attach(model, preset="paper", init="paper")
    found = {}
    for name in ("eager", "cpp"):
        with set_backend(name):
            found[name] = cost(model, (3, 32, 32))
    assert found["cpp"].macs == found["eager"].macs
    assert found["cpp"].flops == found["eager"].flops
    rows = {row.name: row for row in found["cpp"].modules}
    row = rows["layer1.0.bn2.cbam"]
    assert (row.macs, row.output) == (2 * 2 * 16 * 1 + 98 * 32 * 32, (1, 16, 32, 32))
    assert "layer1.0.bn2.host" not in rows
    assert found["cpp"].bytes_saved < 1.06 * plain.bytes_saved < found["eager"].bytes_saved


def test_conv_norm_relu_against_hand_formulas():
    conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8)
    found = cost(nn.Sequential(conv, norm, nn.ReLU()), (3, 10, 10), batch_size=2)
    image, maps = 2 * 3 * 100, 2 * 8 * 100
    assert found.parameters == 8 * 27 + 8 + 16
    assert found.macs == maps * 27
    assert found.flops == 2 * found.macs + 2 * maps + maps
    assert found.bytes_moved == 4 * ((image + 8 * 27 + 8 + maps) + (2 * maps + 4 * 8) + 2 * maps)
    # The convolution keeps its input, the norm its own, the ReLU its result; weights and statistics do not count.
    assert found.bytes_saved == 4 * (image + maps + maps)
    assert [(row.name, row.type, row.output) for row in found.modules] == [
        ("", "Sequential", (2, 8, 10, 10)),
        ("0", "Conv2d", (2, 8, 10, 10)),
        ("1", "BatchNorm2d", (2, 8, 10, 10)),
        ("2", "ReLU", (2, 8, 10, 10)),
    ]


def test_a_module_used_twice_is_one_row():
    relu, conv = nn.ReLU(), nn.Conv2d(4, 4, 1)
    found = cost(nn.Sequential(conv, relu, conv, relu), (4, 6, 6))
    calls = {row.name: (row.calls, row.parameters) for row in found.modules}
    assert calls == {"": (1, 20), "0": (2, 20), "1": (2, 0)}
    assert found.parameters == 20
    assert found.macs == 2 * 4 * 4 * 36


def test_frozen_layers_save_less():
    model = build_model("resnet20", 10)
    free = cost(model, (3, 32, 32)).bytes_saved
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    assert cost(model, (3, 32, 32)).bytes_saved == 4 * 64 < free


def test_rows_of_children_add_up():
    found = cost(build_model("resnet20", 10), (3, 32, 32))
    children = [row for row in found.modules[1:] if "." not in row.name]
    pooled = 64 * 8 * 8  # the model itself takes the mean
    assert sum(row.macs for row in children) == found.macs
    assert sum(row.flops for row in children) + pooled == found.flops
    assert sum(row.parameters for row in children) == found.parameters
    assert [row.name for row in children] == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "fc"]


class _Meddler(nn.Module):
    """Changes everything that a forward pass can change, in eval mode too, and fails when told."""

    def __init__(self, fails=False):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.5)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("none", None)
        self.fails = fails

    def forward(self, x):
        self.seen += 1
        self.kept = torch.ones(2)
        x = nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        x = self.drop(x + torch.rand_like(x))
        if self.fails:
            raise RuntimeError("told to fail")
        return x


def _everything(model):
    hooks = [
        (name, len(hooks))
        for module in model.modules()
        for name, hooks in vars(module).items()
        if "hooks" in name
    ]
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": [id(value) for value in [*model.parameters(), *model.buffers()]],
        "versions": [value._version for value in model.parameters()],
        "training": [module.training for module in model.modules()],
        "needs": [parameter.requires_grad for parameter in model.parameters()],
        "grads": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "hooks": dict(enumerate(count for _, count in hooks)),
        "rng": torch.get_rng_state(),
    }


def _same(before, after):
    assert before.keys() == after.keys()
    for key in before:
        torch.testing.assert_close(
            after[key], before[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), _Meddler(fails), nn.Conv2d(3, 3, 1).requires_grad_(False))
    model[0].weight.grad = torch.rand_like(model[0].weight)
    model.train()
    model[1].norm.eval()
    model[0].register_forward_hook(lambda *_: None)
    before = _everything(model)
    if fails:
        with pytest.raises(CBAMError, match="told to fail"):
            cost(model, (3, 8, 8))
    else:
        cost(model, (3, 8, 8))
    _same(before, _everything(model))


def test_the_check_above_can_fail():
    model = nn.Sequential(_Meddler())
    before = _everything(model)
    model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(AssertionError):
        _same(before, _everything(model))


def test_a_graph_from_before_still_runs_backward():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    loss = model(torch.rand(2, 3, 5, 5)).sum()
    cost(model, (3, 5, 5))
    loss.backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_saved_bytes_are_found_without_grad_mode_around(context):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    outside = cost(model, (3, 5, 5))
    with context():
        inside = cost(model, (3, 5, 5))
    assert inside.bytes_saved == outside.bytes_saved > 0
    assert inside.flops == outside.flops


def test_double_precision_moves_twice_the_bytes():
    model = build_model("resnet20", 10)
    single, double = cost(model, (3, 32, 32)), cost(copy.deepcopy(model).double(), (3, 32, 32))
    assert (double.bytes_moved, double.macs) == (2 * single.bytes_moved, single.macs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 224}, r"input_size is \(C, H, W\), such as \(3, 224, 224\), given 224"),
        ({"input_size": (224, 224)}, r"given \(224, 224\)"),
        ({"input_size": (3, 0, 4)}, r"given \(3, 0, 4\)"),
        ({"input_size": (3, 8, 8), "batch_size": 0}, "batch_size .* given 0"),
        ({"input_size": (5, 8, 8)}, "Conv2d on zeros of shape 1x5x8x8 failed: .*inputs of input_size"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(CBAMError, match=message):
        cost(nn.Conv2d(3, 4, 1), **arguments)


def test_a_function_is_not_a_model():
    with pytest.raises(CBAMError, match=r"takes an nn\.Module, given builtin_function"):
        cost(torch.relu, (3, 8, 8))


def test_the_table_goes_as_deep_as_asked():
    found = cost(build_model("resnet20", 10), (3, 32, 32))
    assert "layer1.0.conv1" not in found.table(1)
    assert "layer1.0.conv1" in found.table(3)
    assert "uncounted" not in str(found)


HEAVY = ("torchvision", "timm", "PIL", "scipy", "matplotlib", "safetensors", "sklearn")
LOADED = "import sys; print([m for m in {heavy!r} if m in sys.modules])"


def _loaded_by(statement):
    code = f"{statement}; {LOADED.format(heavy=HEAVY)}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_evaluate_and_models_import_nothing_heavy():
    assert _loaded_by("import cbam.evaluate, cbam.models") == "[]"


def test_the_import_test_can_fail():
    assert _loaded_by("import cbam.evaluate, safetensors") != "[]"


@pytest.mark.parametrize(("dims", "size"), [(1, (3, 40)), (2, (3, 8, 9)), (3, (3, 4, 8, 6))])
@pytest.mark.parametrize("name", ["eager", pytest.param("auto", marks=needs_operator)])
def test_networks_of_any_dimensions(dims, size, name):
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    pool = getattr(nn, f"MaxPool{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
    k, c, positions = 3, 8, torch.Size(size[1:]).numel()
    attention = CBAM(c, 4, k, dims=dims)
    net = nn.Sequential(
        conv(3, c, k, padding=1, bias=False), norm(c), attention, pool[0](2), pool[1](1), nn.Flatten()
    )
    with set_backend(name):
        found = cost(net, size)
    rows = {row.name: row for row in found.modules}
    assert rows["0"].macs == 3 * c * k**dims * positions
    assert rows["2"].macs == 2 * 2 * c * (c // 4) + 2 * k**dims * positions
    assert rows["2"].parameters == 2 * c * (c // 4) + 2 * k**dims
    assert rows["2"].flops == 2 * rows["2"].macs + 6 * c * positions + 2 * (c // 4) + c + c + positions
    assert rows["2"].output == (1, c, *size[1:])
    assert not found.uncounted
