"""Lowerings, one module per family; importing this package fills the table.

Imports: graph.lower.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
