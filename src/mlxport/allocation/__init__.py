"""Bits for each module: the least predicted damage under a limit of memory, size or bits per weight.

``find`` is imported where it is needed, since it brings mlx-lm.
"""

from mlxport.allocation.report import AllocationReport, Choice
from mlxport.allocation.target import Target, make_target

__all__ = ["AllocationReport", "Choice", "Target", "make_target"]
