"""Diffusion, vision, audio, recurrent and graph models: values at the example's and at other sizes, and the source."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from comparing import compared, randomised
from mlx.utils import tree_flatten
from zoo import ZOO

import mlxport


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ZOO)
def test_values_paths_and_source(name):
    make, example, other = ZOO[name]
    module = randomised(make())
    ported = mlxport.port(module, example)
    compared(module, ported, other)
    ours = {path for path, _ in tree_flatten(ported.parameters())}
    if name not in ("vocoder", "tagger", "transformer"):  # weight norm and torch's own compound layers are rewritten
        unused = ("num_batches_tracked", "residual.3.weight", "residual.3.bias")
        assert ours == {path for path in module.state_dict() if not path.endswith(unused)}
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,I,B,UP", "-"]
    found = subprocess.run(lint, input=ported.source, text=True, capture_output=True)
    assert found.returncode == 0, found.stdout


def test_an_image_model_has_no_transposes_inside():
    make, example, _ = ZOO["efficientnet"]
    source = mlxport.port(randomised(make()), example).source
    assert source.count("transpose") + source.count("moveaxis") <= 1


@pytest.mark.parametrize("name", ["code", "graph", "meta", "recompile", "_guards_fn"])
def test_members_that_torch_export_hides(name):
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, torch.nn.Linear(4, 4))
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x, *, scale=None, **options):
            return self._modules[name](x) * scale + self.count + options["more"]

    x = torch.randn(2, 4)
    port = mlxport.port(Named(), (x,), {"scale": torch.tensor(2.0), "more": torch.randn(2, 4)})
    paths = {path for path, _ in tree_flatten(port.parameters())}
    assert paths == {f"{name.lstrip('_')}.weight", f"{name.lstrip('_')}.bias", "count"}


@pytest.fixture(scope="module")
def dit():
    make, example, _ = ZOO["dit"]
    return mlxport.port(randomised(make()), example)


def test_lists_are_lists_and_equal_blocks_share_a_class(dit):
    assert isinstance(dit.blocks, list) and len(dit.blocks) == 3
    assert dit.source.count("class DiTBlock") == 1
    assert "for block in self.blocks:" in dit.source


def test_a_sequential_is_the_originals_list_and_is_looped_over(dit):
    assert [type(layer).__name__ for layer in dit.blocks[0].mlp] == ["Linear", "GELU", "Linear"]
    assert "for layer in self.mlp:" in dit.source


def test_sizes_are_checked(dit):
    with pytest.raises(ValueError, match="x must be an mx.array of shape"):
        dit(torch.zeros(2, 4, 8, 8), None, None)
