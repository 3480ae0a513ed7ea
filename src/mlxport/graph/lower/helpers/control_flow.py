"""Control flow that torch has as operators: functions of arrays, called by a value or for each row."""

from __future__ import annotations

import mlx.core as mx


def call_one(condition, when_true, when_false, *operands):
    """One of two functions of the operands, by a value, which is read."""
    return when_true(*operands) if bool(condition) else when_false(*operands)


def call_while(condition, body, state, *operands):
    """The state after as many calls of ``body`` as ``condition`` holds before; both take it and the operands."""
    while bool(condition(*state, *operands)):
        state = body(*state, *operands)
    return tuple(state)


def call_along(step, state, sequences, *operands):
    """The last state and what each call of ``step`` gives beside it, stacked: one for each row of the sequences."""
    stacked = []
    for row in zip(*sequences, strict=True):
        found = step(*state, *row, *operands)
        state = found[: len(state)]
        stacked.append(found[len(state) :])
    return *state, *(mx.stack(column) for column in zip(*stacked, strict=True))


def call_rows(function, arrays, *operands):
    """What a function gives for each row of the arrays, stacked."""
    found = [function(*row, *operands) for row in zip(*arrays, strict=True)]
    return tuple(mx.stack(column) for column in zip(*found, strict=True))


def call_pairs(combine, sequences, *operands):
    """For each row what an associative function makes of all rows up to it: in pairs, of which all are made at once."""
    length = sequences[0].shape[0]
    if length < 2:
        return tuple(sequences)
    pairs = mx.vmap(combine, in_axes=(0,) * (2 * len(sequences)) + (None,) * len(operands))
    odd = pairs(*(rows[: length - 1 : 2] for rows in sequences), *(rows[1::2] for rows in sequences), *operands)
    odd = call_pairs(combine, odd, *operands)
    even = [rows[:1] for rows in sequences]
    if length > 2:
        before = [rows[: (length - 1) // 2] for rows in odd]
        later = pairs(*before, *(rows[2::2] for rows in sequences), *operands)
        even = [mx.concatenate(parts) for parts in zip(even, later, strict=True)]
    made = tuple(mx.zeros_like(rows) for rows in sequences)
    for rows, own_even, own_odd in zip(made, even, odd, strict=True):
        rows[::2], rows[1::2] = own_even, own_odd
    return made
