"""Sound through the codes of a neural codec and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxport.errors import UsageError
from mlxport.run.media.sound import Samples
from mlxport.run.tasks.array_files import read_arrays, write_arrays
from mlxport.run.tasks.codec import Codec, Codes
from mlxport.run.tasks.pipeline import Difference
from mlxport.run.tasks.sound_model import HeardExample, SoundModel, apart
from mlxport.run.tasks.task_options import AudioOptions

__all__ = ["CodecSound"]

_LENGTHS = (0.53, 1.21, 0.3)  # seconds of the examples; the first is coded with the fewest codebooks, others with all


class CodecSound(SoundModel):
    """A folder of a codec of transformers, in parts."""

    between = "codes"

    def __init__(self, folder: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
        self._codec = Codec(folder, trust_remote_code=trust_remote_code)
        self.rate, self.channels = self._codec.rate, self._codec.channels

    def sound_again(self, samples: Samples, options: AudioOptions) -> dict[str, Any]:
        """With ``codes``, and ``scales`` where the model has some."""
        return self._through(samples, self._codec.count(options.bandwidth, options.num_quantizers))

    def _through(self, samples: Samples, count: int) -> dict[str, Any]:
        codes = self._codec.encode(samples, count)
        audio = self._codec.decode(codes)[:, : samples.shape[-1]]
        found = {"audio": audio, "sampling_rate": self.rate, "codes": codes.codes}
        return found if codes.scales is None else {**found, "scales": codes.scales}

    def given_back(self, given: Any, options: AudioOptions) -> Samples:
        """Of codes; as many codebooks count as there are."""
        if options.bandwidth is not None or options.num_quantizers is not None:
            what = "--bandwidth and --num-quantizers are for sounds, and the input is codes"
            raise UsageError(what, hint="leave them out")
        if isinstance(given, Mapping):
            if "codes" not in given:
                hint = "give a sound, or what this pipeline returned"
                raise UsageError("the input is a dict without codes", hint=hint)
            return self._codec.decode(Codes(np.asarray(given["codes"]), given.get("scales")))
        return self._codec.decode(Codes(*read_arrays(given, 2)))

    def write_between(self, path: Path, result: Mapping[str, Any]) -> None:
        """The codes; behind them, where the model has some, how loud each chunk is."""
        write_arrays(path, [result[name] for name in ("codes", "scales") if name in result])

    def examples(self) -> list[HeardExample]:
        """Voices of lengths that no frame divides, one longer than a chunk."""
        counts = (self._codec.count(None, None), self._codec.codebooks, self._codec.codebooks)
        return [
            HeardExample(self.made(seconds, index), count)
            for index, (seconds, count) in enumerate(zip(_LENGTHS, counts, strict=True))
        ]

    def compared(self, example: HeardExample) -> dict[str, Any]:
        """With as many codebooks as the example says."""
        return self._through(example.samples, example.count)

    def difference(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
        """Codes have to be the same, and the sound near."""
        mine, other = ours["codes"], theirs["codes"]
        if mine.shape != other.shape:
            return Difference("codes", 0.0, f"codes {list(mine.shape)} where the original has {list(other.shape)}")
        if differing := int((mine != other).sum()):
            return Difference("codes", 0.0, f"{differing} of {other.size} codes differ")
        return apart("codes and sounds", ours["audio"], theirs["audio"])
