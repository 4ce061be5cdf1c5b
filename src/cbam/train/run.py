"""One training from its settings to its weights, or on with one that was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cbam.attach import attach
from cbam.attach.sites.select import split_sites
from cbam.data import ImageData
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.models.registry import split_attention
from cbam.pretrained import save_pretrained
from cbam.runs.environment import describe_environment, now, with_session
from cbam.runs.folder import RunFolder
from cbam.runs.formatting import counted
from cbam.train.checkpoints import Checkpoints
from cbam.train.device import make_accelerator
from cbam.train.evaluation import Evaluation
from cbam.train.loop import OnEpoch, OnStep, Watchers, train_model
from cbam.train.seeding import derive_seed, forked_rng
from cbam.train.settings import TrainRun, differences, resolved
from cbam.train.state import whole_state
from cbam.train.stopping import Stop
from cbam.train.trackers import Metrics, Tracker, check_trackers, open_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

RESULT = "result.json"
_STEPS_BETWEEN_LOGS = 50


@dataclass(frozen=True)
class Told:
    """Who is told what happens.

    Attributes:
        line: A sentence.
        step: See `Watchers`.
        epoch: See `Watchers`.
    """

    line: Callable[[str], None] = lambda text: None
    step: OnStep = lambda epoch, step, steps, loss: None
    epoch: OnEpoch = lambda row: None


@dataclass
class Job:
    """A training whose every input was looked at: what can be refused has been, and nothing was written yet."""

    run: TrainRun
    command: list[str]
    folder: RunFolder
    data: ImageData
    accelerator: Accelerator
    told: Told
    trackers: list[Tracker] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its option's name."""
        return resolved(self.run)

    @cached_property
    def skeleton(self) -> nn.Module:
        """A second network of the same form, on the CPU, that carries weights into files."""
        return build(self.run, self.data)

    def write_network(self, name: str, weights: dict[str, Tensor]) -> None:
        """Save weights into a folder that `cbam.from_pretrained` and `cbam evaluate` read."""
        self.skeleton.load_state_dict(weights)
        save_pretrained(
            self.skeleton,
            self.folder.path / name,
            self.run.model,
            class_names=self.data.classes,
            input_size=self.data.input_size,
            mean=self.data.mean,
            std=self.data.std,
        )


def build(run: TrainRun, data: ImageData) -> nn.Module:
    """Return the network as it is before training; its first weights depend on the seed alone.

    Args:
        run: Model, weights and attention.
        data: Gives the number of classes and the image size.

    Raises:
        CBAMError: The model, its weights or the place for the attention do not exist.
    """
    with forked_rng(derive_seed(run.seed, "backbone")):
        model = build_model(
            run.model,
            len(data.classes),
            in_channels=data.input_size[0],
            pretrained=run.pretrained,
            weights=run.weights,
        )
    backbone, brought = split_attention(run.model)
    if brought and run.attention != "none":
        raise CBAMError(
            f"--model {run.model} brings its attention. Type --attention none, or "
            f"--model {backbone} --attention {brought}"
        )
    if run.attention != "none":
        only_cbam: dict[str, Any] = (
            {} if run.attention == "se" else {"preset": run.preset, "kernel_size": run.kernel_size}
        )
        with forked_rng(derive_seed(run.seed, "attention")):
            attach(
                model,
                run.attention,
                split_sites([run.sites]),
                init="identity" if run.fine_tuning else "paper",
                reduction_ratio=run.reduction_ratio,
                input_size=data.input_size,
                **only_cbam,
            )
    return model


def prepare(run: TrainRun, command: list[str], told: Told) -> Job:
    """Check everything that can be checked before training: folder, device, trackers, images, model.

    Args:
        run: What to do.
        command: What the user typed, for `env.json`.
        told: Is told what the images and the model are.

    Raises:
        CBAMError: Something that was asked for does not exist or does not fit; the message says what to type.
    """
    check_trackers(run.trackers)
    folder = RunFolder(run.folder)
    folder.check_settings(resolved(run), differences, ("seed", "model"))
    accelerator = make_accelerator(run.train)
    with (
        accelerator.main_process_first()
    ):  # it writes the index of shards, or what the doctor found; the others read
        data = run.load()
    folder.check_data(data)
    told.line(f"images: {data.source}")
    for notice in data.notices:
        told.line(f"note: {notice}")
    job = Job(run, command, folder, data, accelerator, told)
    count = sum(parameter.numel() for parameter in job.skeleton.parameters())
    told.line(f"{run.model}, attention {run.attention}: {count:,} parameters, {len(data.classes)} classes")
    return job


def execute(job: Job) -> dict[str, Any] | None:
    """Train to the end and write the weights, or go on with a training that was stopped.

    Args:
        job: Of `prepare`.

    Returns:
        The content of `result.json`; None on the processes that only help.

    Raises:
        FolderInUse: Another process works in the folder.
        NonFiniteLoss: The training broke down.
        Preempted: A signal said to stop; the state is saved.
    """
    if not job.accelerator.is_main_process:
        job.accelerator.wait_for_everyone()
        return _train(job) if job.folder.read_json(RESULT) is None else None
    with job.folder.locked():
        done = job.folder.read_json(RESULT, "val_accuracy")
        if done is None:
            _open_folder(job)
        job.accelerator.wait_for_everyone()
        return done or _train(job)


def _open_folder(job: Job) -> None:
    folder = job.folder
    folder.check_settings(
        job.settings, differences
    )  # again: another process may have written since `prepare`
    environment = describe_environment(
        job.command, job.accelerator.device.type, job.accelerator.num_processes
    )
    folder.write_config(job.settings)
    folder.write_json("env.json", with_session(folder.read_json("env.json"), environment))
    folder.write_json("data.json", {**job.data.identity, "source": job.data.source})
    folder.mend_metrics()


def _train(job: Job) -> dict[str, Any] | None:
    main, metrics = job.accelerator.is_main_process, Metrics(job.folder)
    model = build(job.run, job.data)
    checkpoints = Checkpoints(job.folder.path / "checkpoints", job.run.keep)
    try:
        with Stop().listening() as stop:
            if main and checkpoints.newest_good() is None:
                metrics.go_on_after(0)
            trained = train_model(
                model,
                job.data,
                job.run.train,
                seed=job.run.seed,
                checkpoints=checkpoints,
                save_every=job.run.save_every,
                fine_tuning=job.run.fine_tuning,
                accelerator=job.accelerator,
                stop=stop,
                watchers=_watchers(job, metrics),
            )
            weights = whole_state(trained.model)
            averaged = whole_state(trained.ema) if trained.ema is not None else None
    finally:
        for tracker in job.trackers:
            tracker.close()
    if not main:
        return None
    job.write_network("final", weights)
    if averaged is not None:
        job.write_network("final_ema", averaged)
    result = _result(job, trained.evaluation, trained.ema_evaluation, trained.seconds)
    job.folder.write_json(RESULT, result)
    return result


def _watchers(job: Job, metrics: Metrics) -> Watchers:
    main, log = job.accelerator.is_main_process, job.trackers

    def open_trackers_at(step: int) -> None:
        if main and not log:
            log.extend(open_trackers(job.run.trackers, job.folder, job.settings, step))

    def on_resume(epochs: int, steps: int) -> None:
        job.told.line(
            f"goes on after {counted(epochs, 'epoch')}" + (f" and {counted(steps, 'step')}" if steps else "")
        )
        if main:
            metrics.go_on_after(epochs)

    def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
        job.told.step(epoch, step, steps, loss)
        done = epoch * steps + step
        open_trackers_at(done)
        if done % _STEPS_BETWEEN_LOGS == 0:
            for tracker in log:
                tracker.log({"step/loss": loss}, done)

    def on_epoch(row: dict[str, Any]) -> None:
        row = {**row, "images": len(job.data.val)}
        job.told.epoch(row)
        if main:
            metrics.add(row)
        for tracker in log:
            numbers = {f"epoch/{name}": float(value) for name, value in row.items() if name != "epoch"}
            tracker.log(numbers, row["epoch"] * _steps_of(job))

    def on_best(model: nn.Module, evaluation: Evaluation) -> None:
        weights = whole_state(model)
        if main:
            job.write_network("best", weights)

    return Watchers(step=on_step, epoch=on_epoch, resume=on_resume, best=on_best)


def _steps_of(job: Job) -> int:
    return max(1, len(job.data.train) // job.run.train.batch_size)


def _result(job: Job, scores: Evaluation, ema: Evaluation | None, seconds: float) -> dict[str, Any]:
    rows = job.folder.rows()
    best = max(rows, key=lambda row: row["val_accuracy"])
    averaged = {"val_accuracy_ema": ema.accuracy, "val_top5_ema": ema.top5_accuracy} if ema else {}
    return {
        "val_accuracy": scores.accuracy,
        "val_top5": scores.top5_accuracy,
        "val_loss": scores.loss,
        "images": scores.images,
        **averaged,
        "best_epoch": best["epoch"],
        "best_val_accuracy": best["val_accuracy"],
        "epochs": job.run.train.epochs,
        "parameters": sum(parameter.numel() for parameter in job.skeleton.parameters()),
        "per_class_accuracy": scores.per_class_accuracy,
        "recipe": dataclasses.asdict(job.run.train),
        "seconds": seconds,
        "finished": now(),
    }
