"""What a conversion lost: the output against its original, on text, in MLX alone (torch is not needed)."""

from mlxport.quality.measure import Quality, Tally, compare
from mlxport.quality.models import Opened, open_original, open_output, place
from mlxport.quality.text import heldout_text, read_text, token_windows

__all__ = [
    "Opened",
    "Quality",
    "Tally",
    "compare",
    "heldout_text",
    "open_original",
    "open_output",
    "place",
    "read_text",
    "token_windows",
]
