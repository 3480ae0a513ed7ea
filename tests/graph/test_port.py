"""Whole modules through ``mlxport.port``: values at the example's and at other sizes, names, structure, errors."""

from __future__ import annotations

import ast
import importlib.util
import re

import mlx.core as mx
import mlx.nn as mnn
import numpy as np
import pytest
import torch
from comparing import randomised
from mlx.utils import tree_flatten
from torch import nn

import mlxport
from mlxport.graph.build import build
from mlxport.graph.capture.export import capture
from mlxport.graph.lower.registry import HELPERS, LOWERINGS, REGISTERED
from mlxport.graph.write.port_weights import from_torch, to_mlx


def close(got: mx.array, wanted: torch.Tensor, limit: float = 1e-4) -> bool:
    scale = max(float(wanted.abs().max()), 1e-6)
    return got.shape == tuple(wanted.shape) and float(mx.abs(got - from_torch(wanted)).max()) <= limit * scale


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, scale=None, flag=True):
        hidden = torch.relu(self.inner(x))
        return self.net(hidden) * 2, hidden


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if stride > 1 else None
        )

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.down is None else self.down(x)
        return torch.relu(out + identity)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16))
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.stem(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avg(x), 1))


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first):
        super().__init__()
        self.rnn = kind(4, 6, batch_first=batch_first)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        sequence, _ = self.rnn(x)
        return self.out(sequence)


class Normed(nn.Module):
    def __init__(self, spelling):
        super().__init__()
        self.conv = spelling(nn.Conv1d(4, 6, 3, padding=1, groups=2))

    def forward(self, x):
        return self.conv(x)


class Frozen(nn.Module):
    """BatchNorm with fixed statistics, the way detectors spell it: its scale is a part of its shift."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.ones(6))

    def forward(self, x):
        scale = self.weight * (self.var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.mean * scale)


CASES = {
    "mlp": (Mlp, (torch.randn(3, 4),), (torch.randn(7, 4),)),
    "resnet": (ResNet, (torch.randn(2, 3, 32, 32),), (torch.randn(3, 3, 48, 40),)),
    "lstm": (lambda: Recurrent(nn.LSTM, True), (torch.randn(2, 5, 4),), (torch.randn(3, 8, 4),)),
    "lstm, time first": (lambda: Recurrent(nn.LSTM, False), (torch.randn(5, 2, 4),), (torch.randn(11, 3, 4),)),
    "gru": (lambda: Recurrent(nn.GRU, True), (torch.randn(2, 5, 4),), (torch.randn(3, 2, 4),)),
    "gru, time first": (lambda: Recurrent(nn.GRU, False), (torch.randn(5, 2, 4),), (torch.randn(7, 3, 4),)),
    "rnn": (lambda: Recurrent(nn.RNN, True), (torch.randn(2, 5, 4),), (torch.randn(3, 8, 4),)),
    "frozen statistics": (Frozen, (torch.randn(2, 6),), (torch.randn(5, 6),)),
    "weight_norm": (lambda: Normed(nn.utils.weight_norm), (torch.randn(2, 4, 9),), (torch.randn(3, 4, 20),)),
    "weight_norm, parametrized": (
        lambda: Normed(nn.utils.parametrizations.weight_norm), (torch.randn(2, 4, 9),), (torch.randn(3, 4, 20),),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_values_at_the_examples_and_at_other_sizes(name):
    make, example, other = CASES[name]
    module = randomised(make())
    ported = mlxport.port(module, example)
    for inputs in (example, other):
        with torch.no_grad():
            wanted = module(*inputs)
        got = ported(*to_mlx(inputs))
        for ours, theirs in zip(
            got if isinstance(got, tuple) else [got], wanted if isinstance(wanted, tuple) else [wanted], strict=True
        ):
            assert close(ours, theirs)


def test_parameter_paths_and_layers_are_the_originals():
    module = randomised(ResNet())
    ported = mlxport.port(module, (torch.randn(2, 3, 32, 32),))
    ours = {name for name, _ in tree_flatten(ported.parameters())}
    assert ours == {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    assert isinstance(ported.layer1[0].conv1, mnn.Conv2d) and isinstance(ported.fc, mnn.Linear)
    assert ported.source.count("transpose") <= 2


def test_weight_norm_leaves_one_weight():
    ported = mlxport.port(randomised(Normed(nn.utils.parametrizations.weight_norm)), (torch.randn(2, 4, 9),))
    assert {name for name, _ in tree_flatten(ported.parameters())} == {"conv.weight", "conv.bias"}
    assert isinstance(ported.conv, mnn.Conv1d)


def test_a_folded_expression_starts_at_the_modules_tensors():
    folds = build(capture(randomised(Frozen()), (torch.randn(2, 6),))).folds
    assert {fold.sources for fold in folds.values()} == {("var", "weight"), ("var", "weight", "mean", "bias")}


def test_arguments_are_checked():
    ported = mlxport.port(randomised(Mlp()), (torch.randn(3, 4),), {"flag": True})
    ported(mx.zeros((5, 4)), flag=True)
    with pytest.raises(ValueError, match="flag=False.*flag=True"):
        ported(mx.zeros((5, 4)), flag=False)
    with pytest.raises(ValueError, match=r"x must be an mx.array of shape \(B, 4\).*\(5, 3\)"):
        ported(mx.zeros((5, 3)))


def test_source_is_python_that_imports_mlx_only():
    ported = mlxport.port(randomised(ResNet()), (torch.randn(2, 3, 32, 32),))
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(ported.source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported <= {"json", "math", "dataclasses", "pathlib", "mlx.core", "mlx.nn"}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.dense = nn.Linear(8, 8)

    def forward(self, hidden_states, mask):
        return hidden_states + self.dense(self.norm(hidden_states)) * mask


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Encoder() for _ in range(4))

    def forward(self, hidden_states, mask):
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return {"last_hidden_state": hidden_states}


def test_equal_layers_share_a_class_and_are_looped_over():
    module = randomised(Stack())
    example = (torch.randn(2, 5, 8), torch.rand(2, 5, 1))
    ported = mlxport.port(module, example)
    assert ported.source.count("class Encoder") == 1
    assert "for layer in self.layers:" in ported.source
    with torch.no_grad():
        assert close(ported(*to_mlx(example))["last_hidden_state"], module(*example)["last_hidden_state"])


def test_bert_is_short_and_right():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4, vocab_size=50,
        max_position_embeddings=40,
    )  # fmt: skip
    module = randomised(transformers.BertModel(config))
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    ported = mlxport.port(module, (), inputs)
    assert len(ported.source.splitlines()) < 250
    other = {"input_ids": torch.arange(30).reshape(3, 10), "attention_mask": torch.ones(3, 10, dtype=torch.long)}
    with torch.no_grad():
        wanted = module(**other)
    got = ported(**to_mlx(other))
    assert set(got) == {"last_hidden_state", "pooler_output"}
    assert close(got["last_hidden_state"], wanted.last_hidden_state)
    assert close(got["pooler_output"], wanted.pooler_output)


torch.library.define("mlxport_tests::twice_plus", "(Tensor x, float bias) -> Tensor")
torch.library.impl("mlxport_tests::twice_plus", "CompositeExplicitAutograd", lambda x, bias: 2 * x + bias)
torch.library.register_fake("mlxport_tests::twice_plus", lambda x, bias: torch.empty_like(x))


class Custom(nn.Module):
    def forward(self, x):
        return torch.ops.mlxport_tests.twice_plus(x, 0.5).tanh()


def test_a_missing_op_is_named_with_its_line_and_can_be_added():
    example = (torch.randn(3, 4),)
    with pytest.raises(mlxport.UnsupportedError, match=r"mlxport_tests.twice_plus.default \(once.*test_port.py:\d+"):
        mlxport.port(Custom().eval(), example)

    @mlxport.register_op("mlxport_tests::twice_plus")
    def twice_plus(x, bias):
        return 2 * x + bias

    ported = mlxport.port(Custom().eval(), example)
    assert "def twice_plus(x, bias):" in ported.source
    assert np.allclose(ported(from_torch(example[0])), Custom()(*example).numpy(), atol=1e-5)


KEY = "mlxport_tests.twice_plus.default"


@pytest.mark.parametrize(
    ("body", "said", "hint"),
    [
        (
            "raise RuntimeError('no')",
            "raises RuntimeError: no",
            r"x: an mx.array of shape \(3, 4\) and .*float32, bias: 0.5",
        ),
        ("return x.numpy()", "raises AttributeError: 'array' object has no attribute 'numpy'", "it is called with"),
        ("return x.sum()", r"does not give what torch gives: .* gives shape \(\), torch gives \(3, 4\)", "same shapes"),
        ("return None", "does not give what torch gives: .* gave NoneType, not an array", "mx.arrays"),
        ("return float(bias)", "does not give what torch gives: .* gave float, not an array", "mx.arrays"),
        ("raise SystemExit(0)", "raises SystemExit: 0", "it is called with"),
        ("return x * SCALE", "uses SCALE, which the port does not have", "its source goes into the port"),
    ],
)
def test_a_registered_function_that_is_at_fault_is_named(body, said, hint, tmp_path, monkeypatch):
    """With the op that it is for, and where it stands."""
    monkeypatch.setitem(LOWERINGS, KEY, None)
    monkeypatch.setitem(REGISTERED, KEY, None)
    monkeypatch.setitem(HELPERS, "given", None)
    path = tmp_path / "given.py"
    path.write_text(f"import mlx.core as mx\nSCALE = 2.0\ndef given(x, bias):\n    {body}\n")
    spec = importlib.util.spec_from_file_location("given_for_an_op", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    mlxport.register_op("mlxport_tests::twice_plus")(module.given)
    with pytest.raises(mlxport.UsageError, match=rf"registered for {KEY} \(given, .*given.py:3\) {said}") as caught:
        mlxport.port(Custom().eval(), (torch.randn(3, 4),))
    assert re.search(hint, caught.value.hint)


def test_a_function_without_source_is_not_registered():
    namespace = {}
    exec("def given(x, bias): return x", namespace)
    with pytest.raises(ValueError, match="has no source, which is written into the port"):
        mlxport.register_op("mlxport_tests::twice_plus")(namespace["given"])
