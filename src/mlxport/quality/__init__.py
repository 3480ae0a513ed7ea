"""What a conversion lost: the output against its original, on text, in MLX alone (torch is not needed).

Imports: errors, types, model_config, progress, source, quant, transform, layouts, output, model, run, parity, fit.
"""

from mlxport.quality.divergence import Quality, Tally, compare
from mlxport.quality.heldout_text import heldout_text, read_text, token_windows
from mlxport.quality.opened import Opened, open_original, open_output, place

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
