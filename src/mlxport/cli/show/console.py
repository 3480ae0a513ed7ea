"""Where everything is printed to, unless another console is given."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from mlxport.printable import printable

__all__ = ["PrintableConsole", "standard_console"]


class PrintableConsole(Console):
    """Every string that is printed, cells of tables included, is made printable before rich looks for markup in it."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of what is left of ``text``."""
        return super().render_str(printable(text), **options)


def standard_console(**options: Any) -> Console:
    """Standard output: lines are left as long as they are, and nothing is coloured, or made a picture, by itself."""
    return PrintableConsole(**{"soft_wrap": True, "highlight": False, "emoji": False, **options})
