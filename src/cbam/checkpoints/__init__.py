"""Checkpoints of any CBAM: read them safely, recognise the dialect, load and convert."""

from cbam.checkpoints.dialects import DIALECTS, Dialect
from cbam.checkpoints.loading import load_weights
from cbam.checkpoints.report import WeightsReport

__all__ = ["DIALECTS", "Dialect", "WeightsReport", "load_weights"]
