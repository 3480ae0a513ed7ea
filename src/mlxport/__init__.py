"""mlxport: port PyTorch models to MLX, with bounded memory and numbers proven against the original.

Everything public is here; nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlxport import errors
from mlxport._version import __version__
from mlxport.errors import *

if TYPE_CHECKING:
    from mlxport.conversion import ConvertReport, convert, verify
    from mlxport.fit import FitReport, plan_for
    from mlxport.graph.registry import register_op
    from mlxport.inspection import Inspection, inspect
    from mlxport.parity import ParityReport
    from mlxport.porting import port
    from mlxport.porting_folder import load, port_folder
    from mlxport.quality.report import QualityReport
    from mlxport.reporting import quality_report
    from mlxport.run import AutoModelForCausalLM, AutoTokenizer, generate

# Public name -> the module that is imported when it is first used.
_LAZY = {
    "AutoModelForCausalLM": "mlxport.run",
    "AutoTokenizer": "mlxport.run",
    "ConvertReport": "mlxport.conversion",
    "FitReport": "mlxport.fit",
    "Inspection": "mlxport.inspection",
    "ParityReport": "mlxport.parity",
    "QualityReport": "mlxport.quality.report",
    "convert": "mlxport.conversion",
    "generate": "mlxport.run",
    "inspect": "mlxport.inspection",
    "load": "mlxport.porting_folder",
    "plan_for": "mlxport.fit",
    "port": "mlxport.porting",
    "port_folder": "mlxport.porting_folder",
    "quality_report": "mlxport.reporting",
    "register_op": "mlxport.graph.registry",
    "verify": "mlxport.conversion",
}

__all__ = sorted([*errors.__all__, *_LAZY, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
