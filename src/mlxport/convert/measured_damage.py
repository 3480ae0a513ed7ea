"""What an output whose bits were chosen, and which was calibrated or trained afterwards, does to the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlxport.errors import TokenizerError, UsageError
from mlxport.quality import open_output, place
from mlxport.quality.divergence import compare_each, default_tokens, windows_for
from mlxport.quality.opened import original_of
from mlxport.quality.written_windows import written_windows

if TYPE_CHECKING:
    from mlxport.allocate import AllocationReport
    from mlxport.layouts.base import Layout
    from mlxport.layouts.conversion import TracedModel

__all__ = ["remeasured"]

_MOST_TOKENS = 2048


def remeasured(
    allocation: AllocationReport, model: TracedModel, folder: Path, done: str, layout: Layout
) -> AllocationReport:
    """The allocation with the damage of what was written, in place of that of weights that were only rounded.

    Args:
        allocation: What was chosen.
        model: The original's, as it was opened for the conversion.
        folder: Of the output, its weights and config written.
        done: What was done to it after bits were chosen.
        layout: Of the output, which has no record yet.
    """
    original, output = original_of(model), open_output(folder, layout=layout)
    try:
        ids, _ = windows_for(original, output, None, min(default_tokens(original.parameters), _MOST_TOKENS))
        where = "of the text that reports measure on"
    except (TokenizerError, UsageError):  # no tokenizer, or one that makes too little of the text
        ids, where = list(np.array(allocation.judging).astype(np.int64)), "others"
    place(original, output)
    if where != "others":
        ids, _ = written_windows(original, ids)
    (quality,) = compare_each(original, [output], ids, lambda _: None)
    words = f"{done}, the output measures {quality.kl_mean:.3g} on {quality.tokens} tokens {where}"
    return allocation.measured(quality.kl_mean, words)
