"""Where everything is printed to, unless another console is given."""

from __future__ import annotations

from rich.console import Console

__all__ = ["standard_console"]


def standard_console() -> Console:
    """Standard output: lines are left as long as they are, and nothing is coloured by itself."""
    return Console(soft_wrap=True, highlight=False)
