"""What a model costs and how accurate it is; imports nothing heavier than torch."""

from cbam.evaluate.cost import Cost, ModuleCost, cost
from cbam.evaluate.latency import Latency, interleaved_latency
from cbam.evaluate.metrics import confusion_matrix

__all__ = [
    "Cost",
    "Latency",
    "ModuleCost",
    "confusion_matrix",
    "cost",
    "interleaved_latency",
]
