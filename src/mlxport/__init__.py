"""mlxport: port PyTorch models to MLX, with bounded memory and numbers proven against the original.

Everything public is here; nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlxport import errors
from mlxport._version import __version__
from mlxport.errors import *

if TYPE_CHECKING:
    from mlxport.convert.convert import convert
    from mlxport.convert.convert_report import ConvertReport
    from mlxport.convert.verify import verify
    from mlxport.fit import FitReport, TaskPlan, plan_for
    from mlxport.graph.lower.registry import register_op
    from mlxport.inspect.inspection import Inspection, inspect
    from mlxport.parity import ParityReport
    from mlxport.port.in_memory import port
    from mlxport.port.into_folder import load, port_folder
    from mlxport.quality.make_report import quality_report
    from mlxport.quality.quality_report import QualityReport
    from mlxport.run import AutoModelForCausalLM, AutoTokenizer, generate
    from mlxport.run.tasks.opened_task import pipeline

# Public name -> the module that is imported when it is first used.
_LAZY = {
    "AutoModelForCausalLM": "mlxport.run",
    "AutoTokenizer": "mlxport.run",
    "ConvertReport": "mlxport.convert.convert_report",
    "FitReport": "mlxport.fit",
    "Inspection": "mlxport.inspect.inspection",
    "ParityReport": "mlxport.parity",
    "QualityReport": "mlxport.quality.quality_report",
    "TaskPlan": "mlxport.fit",
    "convert": "mlxport.convert.convert",
    "generate": "mlxport.run",
    "inspect": "mlxport.inspect.inspection",
    "load": "mlxport.port.into_folder",
    "pipeline": "mlxport.run.tasks.opened_task",
    "plan_for": "mlxport.fit",
    "port": "mlxport.port.in_memory",
    "port_folder": "mlxport.port.into_folder",
    "quality_report": "mlxport.quality.make_report",
    "register_op": "mlxport.graph.lower.registry",
    "verify": "mlxport.convert.verify",
}

__all__ = sorted([*errors.__all__, *_LAZY, "__version__"])


# Packages with functions of their own that the documentation names in full: `mlxport.quality.compare`.
_PACKAGES = frozenset({"quality"})


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")  # which also sets the attribute
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _Public(ModuleType):
    """Keeps ``mlxport.convert`` the function: importing the package of that name would put itself in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Public
