"""Composite ops are listed once for a decomposition, and torch is afterwards as it was."""

from __future__ import annotations

import pytest
import torch
import torch._export.utils as export_utils
from torch._ops import OperatorBase

from mlxport.graph.capture.quick_tables import quick_tables

ATEN = torch.ops.aten
CPU = torch._C.DispatchKey.CPU


def test_torch_has_what_is_replaced_and_gets_it_back():
    lists, registers = export_utils._materialize_cpp_cia_ops, OperatorBase.py_impl
    with pytest.raises(KeyError), quick_tables():
        assert export_utils._materialize_cpp_cia_ops is not lists and OperatorBase.py_impl is not registers
        raise KeyError
    assert export_utils._materialize_cpp_cia_ops is lists and OperatorBase.py_impl is registers


def test_the_same_ops_are_composite():
    wanted = export_utils._collect_all_valid_cia_ops()
    with quick_tables():
        assert export_utils._collect_all_valid_cia_ops() == wanted


def test_a_kernel_is_registered_and_not_twice():
    operator = ATEN.hypot.default
    with quick_tables():
        try:
            assert operator.py_impl(CPU)(torch.add) is torch.add
            assert operator.py_kernels[CPU] is torch.add
            with pytest.raises(RuntimeError, match="override"):
                operator.py_impl(CPU)(torch.mul)
        finally:
            del operator.py_kernels[CPU]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own
def test_the_decomposed_graph_is_that_of_torch_alone():
    program = torch.export.export(torch.nn.TransformerEncoderLayer(8, 2, 16).train(), (torch.ones(3, 2, 8),))
    wanted = program.run_decompositions()
    with quick_tables():
        found = program.run_decompositions()
    assert found.graph_module.code == wanted.graph_module.code
