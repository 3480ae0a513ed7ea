"""Bits for each module: the least predicted damage under a limit of memory, size or bits per weight.

``find`` is imported where it is needed, since it brings mlx-lm.

Imports: errors, types, model_config, progress, source, quant, transform, layouts, output, model, fit.
"""

from mlxport.allocate.allocation_report import AllocationReport, Choice
from mlxport.allocate.limits import Target, make_target

__all__ = ["AllocationReport", "Choice", "Target", "make_target"]
