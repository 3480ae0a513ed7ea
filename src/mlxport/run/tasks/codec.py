"""A neural codec: codes of a sound, and a sound of codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import ConfigError, UsageError
from mlxport.layouts.generated.codec_parts import codebooks
from mlxport.layouts.generated.loading import load_parts
from mlxport.run.media.sound import Samples
from mlxport.run.tasks.pipeline import as_numpy
from mlxport.run.tasks.port_call import call_port
from mlxport.run.tasks.recognizer import feature_extractor
from mlxport.source.tokenizer_loading import reason, refusing

__all__ = ["Codec", "Codes"]

_LEFT_OUT = -1  # in the place of a code of a codebook that is not used
_NAMED = 12  # bandwidths, in an error


@dataclass(frozen=True)
class Codes:
    """A sound as codes.

    Attributes:
        codes: int64, as the model's class in transformers has them: [1, codebooks, frames], of EnCodec
            [chunks, 1, codebooks, frames], where the last chunk ends in zeros.
        scales: float32, [chunks, 1, 1]: how loud each chunk is, of a model that does not code that; else None.
    """

    codes: npt.NDArray[np.int64]
    scales: Samples | None = None


class Codec:
    """A folder of a codec of transformers, in parts.

    Attributes:
        rate: Samples a second.
        channels: 1 or 2.
        codebooks: How many it has.
        bandwidths: Codebooks by the kilobits a second that it was trained for; empty where it takes any number.
        least: Codebooks that it has to use.
        each: Kilobits a second of a codebook's codes.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self._parts = load_parts(folder, trust_remote_code=trust_remote_code)
        self._extractor = feature_extractor(folder)
        self._config = _read_config(folder)
        config = self._config
        self.rate, self.channels = int(config.sampling_rate), int(getattr(config, "audio_channels", 1))
        self.codebooks = codebooks(config)
        self.least = int(getattr(config, "num_semantic_quantizers", 1))
        bits = math.log2(config.codebook_size) * config.frame_rate
        self.each = bits / 1000
        self.bandwidths: Mapping[float, int] = {
            float(kilobits): min(self.codebooks, max(1, math.floor(kilobits * 1000 / bits)))
            for kilobits in getattr(config, "target_bandwidths", ())
        }
        self._chunked = hasattr(config, "chunk_length")  # its codes have an axis of chunks, one at least

    def count(self, bandwidth: float | None, quantizers: int | None) -> int:
        """How many codebooks are meant, of a bandwidth or a number; without either as many as in transformers.

        Raises:
            UsageError: Both are given, or one that the model does not have.
        """
        if bandwidth is not None and quantizers is not None:
            raise UsageError("--bandwidth and --num-quantizers say the same", hint="give one of the two")
        if quantizers is not None:
            if not self.least <= quantizers <= self.codebooks:
                what = f"--num-quantizers {quantizers}: this model has {self.least} to {self.codebooks}"
                raise UsageError(what, hint=f"{self.codebooks} sound best, at {self.codebooks * self.each:.3g} kb/s")
            return quantizers
        if bandwidth is None:
            return min(self.bandwidths.values(), default=self.codebooks)
        if not self.bandwidths:
            what = f"--bandwidth {bandwidth:g}: this model was trained for no bandwidths"
            hint = f"give --num-quantizers {self.least} to {self.codebooks}, of {self.each:.3g} kb/s each"
            raise UsageError(what, hint=hint)
        found = [count for known, count in self.bandwidths.items() if math.isclose(known, bandwidth, rel_tol=1e-6)]
        if not found:
            some = ", ".join(f"{known:g}" for known in list(self.bandwidths)[:_NAMED])
            raise UsageError(f"--bandwidth {bandwidth:g}: this model has no such one", hint=f"one of {some}")
        return found[0]

    def encode(self, samples: Samples, count: int) -> Codes:
        """Codes of a sound.

        Args:
            samples: [channels, samples], at its rate.
            count: Codebooks to use.
        """
        made = self._extractor(
            samples[0] if self.channels == 1 else samples, sampling_rate=self.rate, return_tensors="np"
        )
        wave = np.asarray(made["input_values"], np.float32)
        length, stride = self._chunks(wave.shape[-1])
        found = [
            self._call(self._parts.encode, input_values=wave[..., start : start + length])
            for start in range(0, wave.shape[-1], stride)
        ]
        codes = [np.array(part["audio_codes"][:, :count]).astype(np.int64) for part in found]
        longest = codes[0].shape[-1]
        stacked = np.stack([np.pad(part, ((0, 0), (0, 0), (0, longest - part.shape[-1]))) for part in codes])
        scales = [as_numpy(part["audio_scales"]) for part in found if "audio_scales" in part]
        return Codes(stacked if self._chunked else stacked[0], np.stack(scales) if scales else None)

    def _chunks(self, samples: int) -> tuple[int, int]:
        """How long a chunk is, and from where to where the next begins; one chunk where the config names none."""
        length = getattr(self._config, "chunk_length", None)
        return (samples, samples) if length is None else (length, self._config.chunk_stride)

    def decode(self, given: Codes) -> Samples:
        """The sound of codes, [channels, samples]; it may be a little longer than what they were made of.

        Raises:
            UsageError: They are none of this model.
        """
        codes = self._checked(given)
        length = getattr(self._config, "chunk_length", None)
        waves = []
        for index, chunk in enumerate(codes):
            if length is not None and index == len(codes) - 1:
                chunk = chunk[..., : self._frames_of_last(chunk.shape[-1], len(codes))]
            missing = self.codebooks - chunk.shape[1]
            whole = np.pad(chunk, ((0, 0), (0, missing), (0, 0)), constant_values=_LEFT_OUT)
            scale = {} if given.scales is None else {"audio_scales": given.scales[index]}
            waves.append(as_numpy(self._call(self._parts.decode, audio_codes=whole, **scale))[0])
        return waves[0] if length is None else _overlapped(waves, self._config.chunk_stride)

    def _call(self, part: Any, **given: npt.NDArray[Any]) -> Any:
        return call_port(
            part, given, reads="sound", refused="this sound is not taken", hint="give a longer recording", supplied={}
        )

    def _frames_of_last(self, frames: int, chunks: int) -> int:
        """Frames of the last chunk: the extractor pads to whole chunks, of which the last begins again a stride on."""
        length, stride = self._chunks(0)
        rest = length - (math.ceil(length / stride) - 1) * stride
        return frames if chunks == 1 or rest == length else math.ceil(rest / self._config.hop_length)

    def _checked(self, given: Codes) -> npt.NDArray[np.int64]:
        """The codes, [chunks, 1, codebooks, frames]."""
        codes, size = np.asarray(given.codes), int(self._config.codebook_size)
        shape = "[chunks, 1, codebooks, frames]" if self._chunked else "[1, codebooks, frames]"
        hint = f"this model's codes are whole numbers, {shape}; mlxport run DST talk.wav --codes codes.npy makes some"
        if codes.dtype.kind not in "iu":
            raise UsageError(f"the codes are {codes.dtype}, expected whole numbers", hint=hint)
        if codes.ndim != (4 if self._chunked else 3) or codes.shape[-3] != 1 or 0 in codes.shape:
            raise UsageError(f"the codes have shape {list(codes.shape)}, expected {shape}", hint=hint)
        if codes.shape[-2] > self.codebooks or codes.shape[-2] < self.least:
            what = f"the codes are of {codes.shape[-2]} codebooks, and this model has {self.least} to {self.codebooks}"
            raise UsageError(what, hint=hint)
        if codes.min() < 0 or codes.max() >= size:
            what = f"the codes go from {codes.min()} to {codes.max()}, and this model has 0 to {size - 1}"
            raise UsageError(what, hint=hint)
        chunks = codes.astype(np.int64) if self._chunked else codes[None].astype(np.int64)
        self._check_chunks(len(chunks), given.scales, hint)
        return chunks

    def _check_chunks(self, chunks: int, scales: Samples | None, hint: str) -> None:
        if chunks > 1 and getattr(self._config, "chunk_length", None) is None:
            raise UsageError(f"the codes are of {chunks} chunks, and this model reads a sound as one", hint=hint)
        wanted = bool(getattr(self._config, "normalize", False))
        if wanted != (scales is not None):
            what = (
                "lack the loudness of each chunk" if wanted else "come with a loudness, which this model codes itself"
            )
            raise UsageError(f"the codes {what}", hint=hint)
        if scales is not None and scales.shape != (chunks, 1, 1):
            what = f"the loudness of the codes has shape {list(scales.shape)}, expected {[chunks, 1, 1]}"
            raise UsageError(what, hint=hint)


def _read_config(folder: Path) -> Any:
    """Transformers' own, for what it makes of the config's fields."""
    from transformers import AutoConfig

    def failed(error: BaseException) -> ConfigError:
        return ConfigError(f"{folder}/config.json does not load: {reason(error)}", hint="convert the original again")

    with refusing(failed):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _overlapped(waves: list[Samples], stride: int) -> Samples:
    """Chunks as one sound: where two lie over each other, each counts the more the farther its end is."""
    longest = waves[0].shape[-1]
    times = np.linspace(0, 1, longest + 2, dtype=np.float32)[1:-1]
    weight = 0.5 - np.abs(times - 0.5)
    total = stride * (len(waves) - 1) + waves[-1].shape[-1]
    wave, weights = np.zeros((len(waves[0]), total), np.float32), np.zeros(total, np.float32)
    for index, chunk in enumerate(waves):
        place = slice(index * stride, index * stride + chunk.shape[-1])
        wave[:, place] += weight[: chunk.shape[-1]] * chunk
        weights[place] += weight[: chunk.shape[-1]]
    return np.asarray(wave / weights, np.float32)
