"""Checkpoints of any CBAM: read them safely, recognise the format, load and convert."""

from cbam.checkpoints.formats import FORMATS, Format
from cbam.checkpoints.loading import load_weights
from cbam.checkpoints.report import WeightsReport

__all__ = ["FORMATS", "Format", "WeightsReport", "load_weights"]
