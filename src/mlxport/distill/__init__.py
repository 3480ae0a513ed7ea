"""Distillation: scales, biases and norms of a quantized output are trained to what the original computes.

Imports: errors, model_config, source, types, quant, transform, layouts, output, model.
"""

from mlxport.distill.distill_settings import DistillReport, DistillSettings

__all__ = ["DistillReport", "DistillSettings"]
