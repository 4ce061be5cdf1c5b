"""How to train one classifier; the defaults suit small images from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbam.errors import CBAMError, unknown_name
from cbam.runs.options import check_ranges

# Peak learning rates at batch 128: (from scratch, fine-tuning).
PEAK_LR = {"sgd": (0.1, 0.01), "momentum": (0.1, 0.01), "adamw": (1e-3, 1e-4)}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training recipe: SGD with Nesterov momentum 0.9, one short warm-up, then a cosine to zero, step by step.

    Each field is an option of `cbam train` and `cbam compare`; the text below it is the option's help.

    >>> TrainConfig(epochs=2).peak_lr(fine_tuning=False)
    0.1
    """

    epochs: int = 10
    """Passes over the training images for every model."""
    batch_size: int = 128
    """Images per step, over all processes together."""
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    """sgd is with Nesterov momentum 0.9; momentum is SGD with plain momentum 0.9, as in the paper's time."""
    lr: float | None = None
    """Peak learning rate. None: 0.1 from scratch, 0.01 with --pretrained or --weights (adamw: 1e-3, 1e-4)."""
    schedule: Literal["cosine", "step"] = "cosine"
    """cosine falls to zero; step divides the rate by 10 every --step-epochs."""
    step_epochs: int = 30
    """Epochs between two drops of the step schedule."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises. None: cosine 1, or a tenth of all epochs where that is less; step 0."""
    weight_decay: float = 5e-4
    """Weight decay, on all weights but biases and norms."""
    decay_norms: bool = False
    """Weight decay on biases and norms too, as in the authors' code."""
    gate_lr_scale: float = 1.0
    """Learning rate of the attention's own weights, times that of the others; see docs/adding-attention.md."""
    gate_weight_decay: float | None = None
    """Weight decay of the attention's own weights. None: that of the others."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Blend images in pairs, with shares from Beta(X, X); 0 is off, 0.2 is usual."""
    cutmix: float = 0.0
    """Paste a piece of another image, of an area from Beta(X, X); 0 is off, 1 is usual. With mixup: one of the two."""
    ema: float = 0.0
    """Decay of a moving average of the weights, e.g. 0.999, reported beside the plain accuracy; 0 is off."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast: bf16 on most devices, fp16 (with gradient scaling) on GPUs only, no = float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the accelerator if there is one."""
    accumulate: int = 1
    """Parts in which a process computes its share of a batch, to save memory; batch norm sees a part at a time."""
    sync_bn: bool = False
    """Batch norm over the images of all processes (on GPUs)."""
    shard: bool = False
    """Divide weights, gradients and optimizer over the processes (FSDP2) instead of copying them (DDP)."""
    compile: bool = False
    """Compile the network with torch.compile."""
    workers: int = 0
    """Processes that load images; any number gives the same bits. Folders of photographs gain from a few."""

    def __post_init__(self) -> None:
        check_ranges(
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("batch-size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("lr", self.lr, self.lr is None or 0 < self.lr < float("inf"), "above 0"),
            ("step-epochs", self.step_epochs, self.step_epochs >= 1, "at least 1"),
            (
                "warmup-epochs",
                self.warmup_epochs,
                self.warmup_epochs is None or 0 <= self.warmup_epochs < self.epochs,
                f"from 0 to below --epochs {self.epochs}",
            ),
            ("mixup", self.mixup, 0 <= self.mixup < float("inf"), "at least 0, e.g. 0.2"),
            ("cutmix", self.cutmix, 0 <= self.cutmix < float("inf"), "at least 0, e.g. 1"),
            (
                "accumulate",
                self.accumulate,
                self.accumulate >= 1 and self.batch_size % self.accumulate == 0,
                f"at least 1 and divide --batch-size {self.batch_size}",
            ),
            ("weight-decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "at least 0"),
            ("gate-lr-scale", self.gate_lr_scale, 0 < self.gate_lr_scale < float("inf"), "above 0"),
            (
                "gate-weight-decay",
                self.gate_weight_decay,
                self.gate_weight_decay is None or 0 <= self.gate_weight_decay < float("inf"),
                "at least 0",
            ),
            ("label-smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1"),
            ("ema", self.ema, 0 <= self.ema < 1, "from 0 (off) to below 1, e.g. 0.999"),
            ("workers", self.workers, self.workers >= 0, "at least 0"),
        )
        if self.shard and (self.ema or self.compile):
            raise CBAMError("--shard goes with neither --ema nor --compile: leave one out")
        for name, choice, choices in (
            ("--optimizer", self.optimizer, tuple(PEAK_LR)),
            ("--schedule", self.schedule, ("cosine", "step")),
            ("--precision", self.precision, ("no", "bf16", "fp16")),
            ("--device", self.device, ("auto", "cpu", "cuda", "mps")),
        ):
            if choice not in choices:
                raise unknown_name(name, choice, choices)

    def peak_lr(self, *, fine_tuning: bool) -> float:
        """Return the learning rate at the end of the warm-up.

        Args:
            fine_tuning: whether the weights come from an earlier training.
        """
        if self.lr is not None:
            return self.lr
        return PEAK_LR[self.optimizer][fine_tuning]
