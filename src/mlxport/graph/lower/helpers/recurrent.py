"""Recurrent networks with torch's parameters: for each layer and direction w_ih, w_hh and, if any, b_ih, b_hh, w_hr."""

from __future__ import annotations

import mlx.core as mx


def lstm_step(gates, c):
    """Hidden and cell state after the pre-activations of the four gates."""
    i, f, g, o = mx.split(gates, 4, axis=-1)
    c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
    return mx.sigmoid(o) * mx.tanh(c), c


def lstm_cell(x, h, c, w_ih, w_hh, b_ih=0, b_hh=0):
    """One step of an LSTM."""
    return lstm_step(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh, c)


def gru_step(inputs, hidden, h):
    """The state after a step, from the input's and the state's share in the three gates."""
    r, z, n = mx.split(inputs, 3, axis=-1)
    hidden_r, hidden_z, hidden_n = mx.split(hidden, 3, axis=-1)
    z = mx.sigmoid(z + hidden_z)
    n = mx.tanh(n + mx.sigmoid(r + hidden_r) * hidden_n)
    return (1 - z) * n + z * h


def gru_cell(x, h, w_ih, w_hh, b_ih=0, b_hh=0):
    """One step of a GRU."""
    return gru_step(x @ w_ih.T + b_ih, h @ w_hh.T + b_hh, h)


def rnn_cell(x, h, w_ih, w_hh, b_ih=0, b_hh=0, activation="tanh"):
    """One step of a simple recurrent network."""
    y = x @ w_ih.T + b_ih + h @ w_hh.T + b_hh
    return mx.tanh(y) if activation == "tanh" else mx.maximum(y, 0)


def scan(step, inputs, state, reverse, lengths=None):
    """Run ``step(input, state) -> (output, state)`` over the first axis of inputs, each sequence within its length."""
    outputs = []
    for t in reversed(range(inputs.shape[0])) if reverse else range(inputs.shape[0]):
        output, new = step(inputs[t], state)
        if lengths is not None:
            within = (t < lengths)[:, None]
            output = mx.where(within, output, mx.zeros_like(output))
            new = tuple(mx.where(within, after, before) for after, before in zip(new, state, strict=True))
        state = new
        outputs.append(output)
    return mx.stack(outputs[::-1] if reverse else outputs), state


def run_layers(direction, x, states, parameters, layers, biases, bidirectional, batch_first):
    """Run ``direction(x, state, parameters, reverse) -> (outputs, state)`` for all layers and directions.

    states has one array for each part of the state, with a first axis over layers and directions.
    """
    x = x.swapaxes(0, 1) if batch_first else x
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    last = []
    for layer in range(layers):
        outputs = []
        for reverse in range(directions):
            index = layer * directions + reverse
            own = parameters[index * each : (index + 1) * each]
            if not biases:
                own = [*own[:2], 0, 0, *own[2:]]
            y, state = direction(x, tuple(part[index] for part in states), own, bool(reverse))
            outputs.append(y)
            last.append(state)
        x = mx.concatenate(outputs, axis=-1) if bidirectional else outputs[0]
    x = x.swapaxes(0, 1) if batch_first else x
    return (x, *(mx.stack(part) for part in zip(*last, strict=True)))


def lstm(x, h, c, parameters, layers=1, biases=True, bidirectional=False, batch_first=False, lengths=None):
    """Outputs, last hidden states and last cell states of an LSTM over (time, batch, features)."""

    def direction(x, state, own, reverse):
        w_ih, w_hh, b_ih, b_hh, *projection = own

        def step(gates, state):
            h, c = lstm_step(gates + state[0] @ w_hh.T, state[1])
            h = h @ projection[0].T if projection else h
            return h, (h, c)

        return scan(step, x @ w_ih.T + (b_ih + b_hh), state, reverse, lengths)

    return run_layers(direction, x, (h, c), parameters, layers, biases, bidirectional, batch_first)


def gru(x, h, parameters, layers=1, biases=True, bidirectional=False, batch_first=False, lengths=None):
    """Outputs and last hidden states of a GRU over (time, batch, features)."""

    def direction(x, state, own, reverse):
        w_ih, w_hh, b_ih, b_hh = own

        def step(inputs, state):
            h = gru_step(inputs, state[0] @ w_hh.T + b_hh, state[0])
            return h, (h,)

        return scan(step, x @ w_ih.T + b_ih, state, reverse, lengths)

    return run_layers(direction, x, (h,), parameters, layers, biases, bidirectional, batch_first)


def rnn(
    x, h, parameters, activation="tanh", layers=1, biases=True, bidirectional=False, batch_first=False, lengths=None
):
    """Outputs and last hidden states of a simple recurrent network over (time, batch, features)."""

    def direction(x, state, own, reverse):
        w_ih, w_hh, b_ih, b_hh = own

        def step(inputs, state):
            y = inputs + state[0] @ w_hh.T
            h = mx.tanh(y) if activation == "tanh" else mx.maximum(y, 0)
            return h, (h,)

        return scan(step, x @ w_ih.T + (b_ih + b_hh), state, reverse, lengths)

    return run_layers(direction, x, (h,), parameters, layers, biases, bidirectional, batch_first)
