"""What a conversion lost: the output against its original, on text, in MLX alone (torch is not needed).

Imports: errors, types, model_config, progress, quant, source, transform, layouts, output, model, run, parity, fit.
"""

from mlxport.model.texts import heldout_text
from mlxport.quality.divergence import Quality, Tally, compare
from mlxport.quality.opened import Opened, open_original, open_output, place
from mlxport.quality.text_windows import read_text, token_windows

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
