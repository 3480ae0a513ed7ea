"""What torch does about its composite ops for every decomposition: listed once, registered without annotations.

Each run of decompositions asks the dispatcher for all composite ops once for every namespace, and registers some twenty
kernels for each op by a function that evaluates its annotations: two thirds of the time of a small module's capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._export.utils as export_utils
from torch._ops import OperatorBase

__all__ = ["quick_tables"]

_registers = OperatorBase.py_impl


def _register(self: Any, key: Any) -> Callable[[Any], Any]:
    """``OperatorBase.py_impl`` for a dispatch key that the operator has no kernel for; torch's own for all else."""
    if not isinstance(key, torch._C.DispatchKey) or key == torch._C.DispatchKey.Python or key in self.py_kernels:
        return _registers(self, key)  # type: ignore[no-any-return]

    def register(kernel):  # type: ignore[no-untyped-def]
        self.py_kernels[key] = kernel
        self._dispatch_cache.clear()
        return kernel

    return register


@contextmanager
def quick_tables() -> Iterator[None]:
    """While it lasts, composite ops are those that are known when it begins."""
    lists = export_utils._materialize_cpp_cia_ops
    lists()
    export_utils._materialize_cpp_cia_ops = lambda: None
    OperatorBase.py_impl = _register
    try:
        yield
    finally:
        OperatorBase.py_impl = _registers
        export_utils._materialize_cpp_cia_ops = lists
