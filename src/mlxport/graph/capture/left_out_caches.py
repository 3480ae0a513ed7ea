"""Caches of transformers among what a forward returns: they are left out, as with ``use_cache=False``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.replaced_calls import forward_replaced

__all__ = ["LeftOutCaches"]


class LeftOutCaches:
    """What was left out.

    Attributes:
        kinds: Names of the caches' classes.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.kinds: dict[str, None] = {}

    @contextmanager
    def of(self, module: torch.nn.Module) -> Iterator[None]:
        """Within, calls of ``module`` give none of those that torch.export knows no parts of."""
        with forward_replaced(module, lambda forward, *args, **kwargs: self._without(forward(*args, **kwargs))):
            yield

    def note(self) -> str:
        """What is to be said of them; empty if there were none."""
        return f"its {', '.join(self.kinds)} is not among the outputs, as with use_cache=False" if self.kinds else ""

    def _without(self, output: Any) -> Any:
        if isinstance(output, dict):
            kept = {key: self._without(part) for key, part in output.items() if not self._is_one(part)}
            changed = len(kept) < len(output) or any(kept[key] is not output[key] for key in kept)
            return type(output)(**kept) if changed else output
        if type(output) in (list, tuple):
            kept_parts = [None if self._is_one(part) else self._without(part) for part in output]
            changed = any(a is not b for a, b in zip(kept_parts, output, strict=True))
            return type(output)(kept_parts) if changed else output
        return output

    def _is_one(self, part: Any) -> bool:
        kind = type(part)
        known = kind in pytree.SUPPORTED_NODES
        found = not known and any(base.__module__ == "transformers.cache_utils" for base in kind.__mro__)
        if found:
            self.kinds[kind.__name__] = None
        return found
