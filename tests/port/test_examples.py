"""The committed ports are what is emitted today, and they run."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


from make_ports import FACTORIES, emitted  # noqa: E402


@pytest.mark.parametrize("name", FACTORIES)
def test_committed_source_is_what_is_emitted(name):
    assert emitted(name) == (EXAMPLES / "ports" / name / "model.py").read_text(), "run python examples/make_ports.py"


@pytest.mark.parametrize(
    ("name", "inputs", "shape"),
    [
        ("resnet", {"pixel_values": mx.zeros((1, 3, 32, 48))}, (1, 2)),
        ("vocoder", {"x": mx.zeros((3, 64, 30))}, (3, 32, 120)),
    ],
)
def test_committed_source_runs(name, inputs, shape):
    """With weights as its constructor makes them, at sizes of its own."""
    from mlxport.graph.write.execute_source import execute

    module = execute((EXAMPLES / "ports" / name / "model.py").read_text())
    output = module.Model(module.ModelArgs()).eval()(**inputs)
    assert (output["logits"] if isinstance(output, dict) else output).shape == shape


def test_idiom():
    """What the examples stand for: one class a kind, loops, layers of mlx.nn, few transposes."""
    bert, resnet, vocoder = (
        (EXAMPLES / "ports" / name / "model.py").read_text() for name in ("bert", "resnet", "vocoder")
    )
    assert (
        len(bert.splitlines()) < 250 and bert.count("class BertLayer") == 1 and "for layer_module in self.layer" in bert
    )
    assert resnet.count(".transpose(") <= 2 and resnet.count("class ResNetBasicLayer(") == 1
    assert (
        vocoder.count("class ResidualUnit") == 1 and "for unit in self.units" in vocoder and "weight_g" not in vocoder
    )
