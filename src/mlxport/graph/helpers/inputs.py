"""Checks of what a port is called with."""

from __future__ import annotations

import mlx.core as mx


def check_inputs(sizes, limits=None, /, **arrays):
    """Raise ValueError unless each array has its sizes: an int is fixed, a name is one size wherever it stands."""
    known = {}
    for name, array in arrays.items():
        wanted = sizes[name]
        found = array.shape if isinstance(array, mx.array) else None
        fits = found is not None and len(found) == len(wanted)
        for size, want in zip(found or (), wanted, strict=False):
            fits = fits and size == (known.setdefault(want, size) if isinstance(want, str) else want)
            low, high = (limits or {}).get(want, (0, size))
            if fits and not low <= size <= high:
                raise ValueError(f"{name} has shape {found}: {want} must be {low} to {high}")
        if not fits:
            shape = "(" + ", ".join(map(str, wanted)) + ")"
            given = f" (with {known})" if known else ""
            raise ValueError(f"{name} must be an mx.array of shape {shape}{given}, not {found or type(array).__name__}")


def check_fixed(**values):
    """Raise ValueError for an argument that has another value than the port was made with."""
    for name, (value, made_with) in values.items():
        if value is not made_with and value != made_with:
            raise ValueError(f"{name}={value!r}: this port was made with {name}={made_with!r}; make another one")
