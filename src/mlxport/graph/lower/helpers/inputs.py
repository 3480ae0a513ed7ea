"""Checks of what a port is called with."""

from __future__ import annotations

import mlx.core as mx


def check_inputs(sizes, limits=None, /, **arrays):
    """Raise ValueError unless each array has its sizes.

    An int is fixed, a name is one size wherever it stands, (name, factor, offset) is factor * name + offset.
    """
    known = {}
    for name, array in arrays.items():
        found = array.shape if isinstance(array, mx.array) else None
        fits = found is not None and len(found) == len(sizes[name])
        for size, want in zip(found or (), sizes[name], strict=False):
            if isinstance(want, int):
                fits = fits and size == want
                continue
            letter, factor, offset = want if isinstance(want, tuple) else (want, 1, 0)
            number, rest = divmod(size - offset, factor)
            fits = fits and rest == 0 and number == known.setdefault(letter, number)
            low, high, *steps = (limits or {}).get(letter, (number, number))
            step, remainder = steps or (1, 0)
            if fits and (number < low or (high is not None and number > high) or number % step != remainder):
                bounds = f"at least {low}" + ("" if high is None else f" and at most {high}")
                bounds += f", {remainder} modulo {step}" if step > 1 else ""
                raise ValueError(f"{name} has shape {found}: {letter} is {number} and must be {bounds}")
        if not fits:
            shape = ", ".join(f"{w[1]} * {w[0]} + {w[2]}" if isinstance(w, tuple) else str(w) for w in sizes[name])
            given = f" (with {known})" if known else ""
            raise ValueError(
                f"{name} must be an mx.array of shape ({shape}){given}, not {found or type(array).__name__}"
            )


def check_parts(name, value, parts):
    """Raise TypeError or ValueError for a list of another length or a dict of other keys; ``...`` may be anything."""
    if parts is ...:
        return
    keyed = isinstance(parts, dict)
    if not (hasattr(value, "keys") if keyed else isinstance(value, list | tuple)):
        kind = "dict" if keyed else "list or tuple"
        raise TypeError(f"{name} must be a {kind}, as this port was made with, not {type(value).__name__}")
    given, wanted = (list(value), list(parts)) if keyed else (len(value), len(parts))
    if set(given) != set(wanted) if keyed else given != wanted:
        what = "the keys" if keyed else "the length"
        raise ValueError(f"{name} has {what} {given}: this port was made with {wanted}; make another one")
    for key in parts if keyed else range(len(parts)):
        check_parts(f"{name}[{key!r}]", value[key], parts[key])


def check_fixed(**values):
    """Raise ValueError for an argument that has another value than the port was made with."""
    for name, (value, made_with) in values.items():
        if value is not made_with and value != made_with:
            raise ValueError(f"{name}={value!r}: this port was made with {name}={made_with!r}; make another one")
