"""What is known of an output beside its original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.parity.parity_report import LayerError
from mlxport.quality.divergence import Quality
from mlxport.quality.module_errors import ModuleError
from mlxport.quality.samples import Sample
from mlxport.quality.speed import Predicted, Speed

__all__ = ["QualityReport"]

# What a mean divergence in nats amounts to. Of examples/tiny-llama, in groups of 64, 8 bits leave 0.0003, 6 bits 0.003,
# 5 bits 0.013, 4 bits 0.05, 3 bits 0.24 and 2 bits, which write nothing of use, 1.4 (docs/quantizers.md).
VERDICTS = (
    (0.002, "Practically the same as the original"),
    (0.02, "Very close to the original"),
    (0.1, "Close to the original"),
    (0.3, "Noticeably different from the original"),
    (1.0, "Far from the original"),
    (math.inf, "No longer the same model"),
)


@dataclass(frozen=True)
class QualityReport:
    """What is known of an output.

    Attributes:
        name: Of the model: the original's.
        folder: Name of the output's folder.
        source: Of the original.
        parameters: Weights of the model.
        nbytes: Bytes of the output's tensors.
        source_nbytes: Bytes of the original's tensors.
        quantization: How many modules are stored how.
        quality: Predictions of both on a text.
        baseline: The same of the original rounded to nearest at the output's own bits, None where that is what it is.
        layers: Error of the hidden state after each block.
        modules: Error and bits of each matrix.
        samples: What both write.
        speed: Measured where this was made, None where it was not.
        predicted: For a Mac that was named, None where none was.
        text: Name, bytes and sha256 of the text.
        provenance: Where all this comes from: versions, hashes, options, command.
        notes: What a reader must know.
        created: When it was made, UTC.
        page: Where it was written, None before that.
        data: Where its JSON was written.
    """

    name: str
    folder: str
    source: str
    parameters: int
    nbytes: int
    source_nbytes: int
    quantization: tuple[tuple[str, int], ...]
    quality: Quality
    baseline: Quality | None
    layers: tuple[LayerError, ...]
    modules: tuple[ModuleError, ...]
    samples: tuple[Sample, ...]
    speed: Speed | None
    predicted: Predicted | None
    text: Mapping[str, Any]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]
    created: str
    page: Path | None = None
    data: Path | None = None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return self.nbytes * 8 / max(self.parameters, 1)

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity."""
        return self.quality.perplexity / self.quality.perplexity_original - 1

    @property
    def verdict(self) -> str:
        """One sentence."""
        how = next(words for bound, words in VERDICTS if self.quality.kl_mean < bound)
        share = self.nbytes / max(self.source_nbytes, 1)
        return (
            f"{how}: at {self.bits_per_weight:.2f} bits per weight and {share:.0%} of its size, "
            f"it predicts the same next token {self.quality.top1:.1%} of the time."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values only; figures that are not finite become null."""
        return {
            "verdict": self.verdict,
            "name": self.name,
            "folder": self.folder,
            "source": self.source,
            "created": self.created,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "source_bytes": self.source_nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "quantization": [{"setting": setting, "modules": count} for setting, count in self.quantization],
            "quality": self.quality.to_json(),
            "baseline": {"method": "round to nearest", **self.baseline.to_json()} if self.baseline else None,
            "layers": [{"module": layer.module, "error": _finite(layer.relative)} for layer in self.layers],
            "modules": [{**module.to_json(), "error": _finite(module.error)} for module in self.modules],
            "samples": [sample.to_json() for sample in self.samples],
            "speed": self.speed.to_json() if self.speed else None,
            "predicted": self.predicted.to_json() if self.predicted else None,
            "text": dict(self.text),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
