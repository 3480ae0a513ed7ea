"""Distillation: scales, biases and norms of a quantized output are trained to what the original computes."""

from mlxport.distill.settings import DistillReport, DistillSettings

__all__ = ["DistillReport", "DistillSettings"]
