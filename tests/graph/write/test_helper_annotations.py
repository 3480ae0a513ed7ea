"""Helpers that are copied into a port need no names but those that its file imports."""

from __future__ import annotations

import torch

from mlxport.port.in_memory import port


class Overwritten(torch.nn.Module):
    """Its helper's arguments have annotations."""

    def forward(self, x, rows, values):
        x = x.clone()
        x[rows] = values
        return x


def test_a_file_defines_what_its_helpers_are_annotated_with():
    ported = port(Overwritten(), (torch.randn(5, 3), torch.tensor([1, 3]), torch.ones(2, 3)))
    assert "indices: Any" in ported.source
    code = compile(ported.source, "model.py", "exec", dont_inherit=True)  # as a file of its own is
    exec(code, {"__name__": "model", "__file__": "model.py"})
