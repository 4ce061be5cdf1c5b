"""The loop on real digits: exact resume, independence of workers, the schedule, and losses that are not finite."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from cbam.data import load_data
from cbam.data.augmentation import AUGMENTATIONS
from cbam.data.workers import WorkerLost
from cbam.models import build_model
from cbam.train.checkpoints import Checkpoints
from cbam.train.classification import Classification
from cbam.train.config import TrainConfig
from cbam.train.loop import Callbacks, train_model
from cbam.train.multilabel import MultiLabel
from cbam.train.nonfinite import NonFiniteLoss
from cbam.train.seeding import forked_rng
from cbam.train.stopping import Preempted, Stop

CONFIG = TrainConfig(epochs=3, batch_size=64, device="cpu")


class Killed(Exception):
    """Stands for the end of the process at some step."""


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit_train=200, limit_val=60)


@pytest.fixture(autouse=True)
def _new_process():
    """Let accelerate choose a precision anew: it keeps one for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def fresh():
    with forked_rng(0):
        model = build_model("resnet20", 10, in_channels=1)
        # Dropout makes the result depend on torch's generator, which a resumed run must not inherit.
        model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)
    return model


def train(
    data,
    folder,
    config=CONFIG,
    *,
    seed=0,
    kill_at=None,
    model=None,
    rows=None,
    save_every=None,
    stop=None,
    patience=None,
):
    def on_step(epoch, step, steps, loss):
        if kill_at == (epoch, step):
            raise Killed

    return train_model(
        model or fresh(),
        (MultiLabel if data.task == "multilabel" else Classification)(config, data),
        peak=config.peak_lr(fine_tuning=False),
        seed=seed,
        checkpoints=Checkpoints(folder),
        save_every=save_every,
        stop=stop,
        patience=patience,
        callbacks=Callbacks(step=on_step, epoch=(rows if rows is not None else []).append),
    )


def same(ours, theirs):
    theirs = theirs.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(("kill_at", "optimizer"), [((1, 0), "sgd"), ((2, 2), "adamw")])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_goes_on_bit_for_bit(data, tmp_path, kill_at, optimizer, precision):
    config = TrainConfig(
        epochs=3, batch_size=64, device="cpu", ema=0.9, optimizer=optimizer, precision=precision
    )
    straight_rows, rows = [], []
    straight = train(data, tmp_path / "straight", config, rows=straight_rows)
    with pytest.raises(Killed):
        train(data, tmp_path / "killed", config, kill_at=kill_at, rows=rows)
    torch.rand(17)  # the generator is somewhere else in the new process
    resumed = train(data, tmp_path / "killed", config, rows=rows)
    assert same(straight.model, resumed.model)
    assert same(straight.ema, resumed.ema)
    told = [(row["epoch"], row["train_loss"], row["val_loss"], row["val_accuracy_ema"]) for row in rows]
    assert told == [
        (r["epoch"], r["train_loss"], r["val_loss"], r["val_accuracy_ema"]) for r in straight_rows
    ]
    assert [row[0] for row in told] == [1, 2, 3]


@pytest.mark.parametrize("save_every", [1, 2])
def test_goes_on_in_the_middle_of_an_epoch(data, tmp_path, save_every):
    config = TrainConfig(epochs=2, batch_size=50, device="cpu", ema=0.9, mixup=0.5, accumulate=2)
    straight_rows, rows = [], []
    straight = train(data, tmp_path / "straight", config, rows=straight_rows)
    with pytest.raises(Killed):
        train(data, tmp_path / "killed", config, kill_at=(1, 2), save_every=save_every, rows=rows)
    (newest, _) = sorted((tmp_path / "killed").iterdir(), reverse=True)
    assert newest.name == "step-000000006", "four steps an epoch, and killed before the third was saved"
    resumed = train(data, tmp_path / "killed", config, rows=rows)
    assert same(straight.model, resumed.model)
    assert same(straight.ema, resumed.ema)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_top5"):
        assert [row[name] for row in rows] == [row[name] for row in straight_rows]


@pytest.mark.parametrize("policy", [policy for policy in AUGMENTATIONS if policy != "crop"])
def test_goes_on_bit_for_bit_with_every_augmentation(tmp_path, policy):
    config = TrainConfig(epochs=2, batch_size=16, device="cpu")
    data = load_data("digits", limit_train=48, limit_val=10, augment=policy)
    straight = train(data, tmp_path / "straight", config)
    with pytest.raises(Killed):
        train(data, tmp_path / "killed", config, kill_at=(1, 1), save_every=1)
    torch.rand(17)
    assert same(straight.model, train(data, tmp_path / "killed", config).model)


def test_a_wish_to_stop_is_granted_at_the_step_s_end(data, tmp_path):
    stop, rows = Stop(), []
    straight = train(data, tmp_path / "straight", rows=[])

    def ask(self, *_):
        stop.reason = "SIGTERM"

    original, Stop.agreed = Stop.agreed, lambda self, accelerator, step: (ask(self), True)[1]
    try:
        with pytest.raises(Preempted, match="stopped by SIGTERM after 0 of 3 epochs and 1 step") as told:
            train(data, tmp_path / "stopped", stop=stop, rows=rows)
    finally:
        Stop.agreed = original
    assert told.value.exit_code == 75
    assert same(straight.model, train(data, tmp_path / "stopped").model)


def test_parts_of_a_batch_give_its_gradient(data, tmp_path):
    """Without batch norm, which sees a part at a time."""
    first, parts = (
        train(
            data,
            tmp_path / str(count),
            replace(CONFIG, epochs=1, batch_size=40, accumulate=count),
            model=model(),
        )
        for count in (1, 4)
    )
    for ours, theirs in zip(first.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def test_bf16_is_another_arithmetic_that_learns_the_same(data, tmp_path):
    rows, low_rows = [], []
    plain = train(data, tmp_path / "a", rows=rows)
    AcceleratorState._reset_state(reset_partial_state=True)
    config = TrainConfig(epochs=3, batch_size=64, device="cpu", precision="bf16")
    low = train(data, tmp_path / "b", config, rows=low_rows)
    assert not same(plain.model, low.model)
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert low_rows[0]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=0.05)


def test_killed_after_the_last_epoch_only_evaluates(data, tmp_path):
    straight = train(data, tmp_path)
    rows = []
    again = train(data, tmp_path, rows=rows)
    assert rows == []
    assert same(straight.model, again.model)
    assert torch.equal(straight.evaluation.confusion, again.evaluation.confusion)
    assert again.seconds == pytest.approx(straight.seconds)


def test_a_damaged_state_starts_over_to_the_same_end(data, tmp_path, caplog):
    straight = train(data, tmp_path / "a")
    with pytest.raises(Killed):
        train(data, tmp_path / "b", kill_at=(1, 0))
    (only,) = (tmp_path / "b").iterdir()
    state = only / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert same(straight.model, train(data, tmp_path / "b").model)
    assert "going back" in caplog.text


def test_the_seed_decides(data, tmp_path):
    first = train(data, tmp_path / "a", seed=0)
    other = train(data, tmp_path / "b", seed=1)
    assert not same(first.model, other.model)


def test_every_epoch_has_its_own_order(data, tmp_path, monkeypatch):
    """accelerate counts epochs by itself; ours must reach the sampler, after a resume too."""
    seen = []
    original = type(data.train).__getitems__

    def spy(self, addresses):
        if len(self) == len(data.train):
            seen.extend(addresses)
        return original(self, addresses)

    monkeypatch.setattr(type(data.train), "__getitems__", spy)
    with pytest.raises(Killed):
        train(data, tmp_path, kill_at=(2, 0))
    before, seen[:] = seen[:], []
    train(data, tmp_path)
    assert {epoch for epoch, _ in before} == {0, 1, 2}
    assert {epoch for epoch, _ in seen} == {2}
    orders = [[index for epoch, index in before if epoch == wanted] for wanted in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(data, tmp_path):
    alone = train(data, tmp_path / "0")
    helped = train(data, tmp_path / "2", TrainConfig(epochs=3, batch_size=64, device="cpu", workers=2))
    assert same(alone.model, helped.model)


def test_it_learns(tmp_path):
    full = load_data("digits")
    rows = []
    trained = train(full, tmp_path, TrainConfig(epochs=3, device="cpu"), rows=rows)
    assert trained.evaluation.accuracy > 0.8
    assert int(trained.evaluation.confusion.sum()) == len(full.val)
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["val_accuracy"] == trained.evaluation.accuracy


def test_the_schedule_warms_up_and_falls(data, tmp_path, monkeypatch):
    rates = []
    original = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(data, tmp_path, TrainConfig(epochs=10, batch_size=32, device="cpu"))
    steps = 200 // 32
    assert len(rates) == 10 * steps
    assert max(rates) == rates[steps] == 0.1, "the peak follows one epoch of warm-up"
    assert all(a < b for a, b in pairwise(rates[: steps + 1]))
    assert all(a > b for a, b in pairwise(rates[steps:]))
    assert 0 < rates[-1] < 0.001


def test_norms_and_biases_do_not_decay(data, tmp_path, monkeypatch):
    groups = []
    original = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        groups[:] = [
            (group["weight_decay"], {p.ndim for p in group["params"]}, group["nesterov"])
            for group in self.param_groups
        ]
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(data, tmp_path, TrainConfig(epochs=1, device="cpu"))
    assert {decay: dimensions for decay, dimensions, _ in groups} == {0.0: {1}, 5e-4: {2, 4}}
    assert all(nesterov for _, _, nesterov in groups)


def test_label_smoothing_raises_the_training_loss_only(data, tmp_path):
    plain, smooth = [], []
    train(data, tmp_path / "a", TrainConfig(epochs=1, device="cpu", lr=1e-9), rows=plain)
    train(
        data, tmp_path / "b", TrainConfig(epochs=1, device="cpu", lr=1e-9, label_smoothing=0.5), rows=smooth
    )
    assert smooth[0]["train_loss"] != pytest.approx(plain[0]["train_loss"], rel=1e-3)
    assert smooth[0]["val_loss"] == pytest.approx(plain[0]["val_loss"], rel=1e-3)


def test_the_moving_average_is_one(data, tmp_path):
    """timm's warm-up makes the decay 0 on the very first step, and on that of no later epoch."""
    model = fresh()
    start = copy.deepcopy(model)
    trained = train(data, tmp_path, TrainConfig(epochs=3, batch_size=200, device="cpu", ema=0.5), model=model)
    ema, last = trained.ema.conv1.weight, trained.model.conv1.weight
    assert not torch.equal(ema, last)
    assert not torch.equal(ema, start.conv1.weight)
    assert (ema - last).norm() < (start.conv1.weight - last).norm()
    assert trained.ema_evaluation is not None


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_loss_that_is_not_finite_names_the_module(data, tmp_path, where):
    model = fresh()
    if where == "training":
        model.layer2[0].conv1.weight.data[0, 0, 0, 0] = math.inf
    else:
        model.layer2[0].bn1.running_mean.fill_(math.nan)  # used in evaluation only
    with pytest.raises(NonFiniteLoss) as told:
        train(data, tmp_path, model=model)
    message = str(told.value)
    assert "'layer2.0.conv1' (Conv2d); its own weight" in message or "'layer2.0.bn1' (BatchNorm2d)" in message
    assert "--lr" in message
    assert ("epoch 1, step 1 of 3" in message) == (where == "training")
    assert not list(tmp_path.iterdir()), "a broken model is not kept as a state to go on from"


def test_a_validation_loss_is_explained_with_the_batch_that_gave_it(data, tmp_path):
    """The first batch is clean: one image of the second makes the module overflow."""

    class Overflows(nn.Module):
        def forward(self, x):
            return x / (x.amax((1, 2, 3), keepdim=True) < limit) if not self.training else x

    last = data.val[(0, len(data.val) - 1)][0].amax()
    limit = float(last) - 1e-6
    clean = [i for i in range(len(data.val)) if data.val[(0, i)][0].amax() < limit][:16]
    assert clean
    model = nn.Sequential(Overflows(), fresh())
    images = replace(data, val=data.val.subset([*clean, len(data.val) - 1]))
    with pytest.raises(NonFiniteLoss, match=r"'0' \(Overflows\)"):
        train(images, tmp_path, TrainConfig(epochs=1, batch_size=len(clean), device="cpu"), model=model)


def test_a_set_smaller_than_a_batch(tmp_path):
    tiny = load_data("digits", limit_train=20, limit_val=20)
    rows = []
    train(tiny, tmp_path, TrainConfig(epochs=1, batch_size=128, device="cpu"), rows=rows)
    assert math.isfinite(rows[0]["train_loss"])


def test_a_worker_that_is_lost_between_two_batches(data, tmp_path, monkeypatch):
    """torch raises its error wherever the process is when the system says so."""
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    monkeypatch.setitem(globals(), "Killed", error)
    with pytest.raises(WorkerLost, match=r"was killed or has crashed.*type the same again"):
        train(data, tmp_path, kill_at=(0, 1))
