"""Recurrent networks through the port, compared with torch."""

import pytest
import torch
from conformance import run_case
from torch import nn


def passes(module, *inputs):
    """The parameters are inputs too, so that the whole network is one function."""
    names = [name for name, _ in module.named_parameters()]
    values = [value.detach() for value in module.parameters()]
    count = len(values)

    def function(*tensors):
        return torch.func.functional_call(module, dict(zip(names, tensors[:count], strict=True)), tensors[count:])

    outcome = run_case(function, (*values, *inputs), {})
    assert outcome.status == "pass", outcome


torch.manual_seed(0)
X = torch.randn(5, 3, 4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"bias": False, "batch_first": True},
        {"num_layers": 3, "batch_first": True, "bidirectional": True, "bias": False},
    ],
)
def test_network(kind, options):
    passes(kind(4, 6, **options).eval(), X)


def test_relu_network():
    passes(nn.RNN(4, 6, nonlinearity="relu").eval(), X)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_lstm_with_projection():
    passes(nn.LSTM(4, 6, num_layers=2, proj_size=3, bidirectional=True).eval(), X)


def test_given_state_and_unbatched_input():
    passes(nn.GRU(4, 6, num_layers=2).eval(), X, torch.randn(2, 3, 6))
    passes(nn.GRU(4, 6).eval(), X[:, 0])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(kind, bias):
    passes(kind(4, 6, bias=bias), X[0])


def test_dropout_between_layers_is_refused():
    network = nn.LSTM(4, 6, num_layers=2, dropout=0.5).train()
    outcome = run_case(network, (X,), {})
    assert outcome.status == "unsupported" and "random" in outcome.reason
