"""Fit a model to a machine: what fits, with what context, how fast, before anything is downloaded or written.

Imports: errors, types, progress, model_config, source, quant, transform, layouts, run, calibrate, model,
graph.write.
"""

from mlxport.fit.fit_report import FitReport, FitRow
from mlxport.fit.hardware import Machine, known_machines, named_machine, this_machine
from mlxport.fit.planning import chosen_context, plan_for, planned_dtype
from mlxport.fit.task_plan_report import TaskPlan

__all__ = [
    "FitReport",
    "FitRow",
    "Machine",
    "TaskPlan",
    "chosen_context",
    "known_machines",
    "named_machine",
    "plan_for",
    "planned_dtype",
    "this_machine",
]
