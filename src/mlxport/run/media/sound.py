"""Sound from files, at the rate and with the channels that a model reads; and into files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import UsageError
from mlxport.run.media.extras import needed
from mlxport.run.media.files import readable_file

__all__ = ["SOUND_FILES", "Samples", "read_channels", "read_sound", "sound_file"]

Samples = npt.NDArray[np.float32]

SOUND_FILES: Mapping[str, tuple[str, str]] = {
    ".wav": ("WAV", "FLOAT"),  # every sample as the model gives it
    ".flac": ("FLAC", "PCM_24"),
    ".ogg": ("OGG", "VORBIS"),
}
"""What can be written, by the ending of the name: format and samples, as libsndfile calls them."""


def read_sound(given: str | os.PathLike[str] | npt.NDArray[Any], rate: int) -> Samples:
    """The samples of a sound as one channel, [samples]: ``read_channels`` of one."""
    (samples,) = read_channels(given, rate, 1)
    return np.asarray(samples)


def read_channels(given: str | os.PathLike[str] | npt.NDArray[Any], rate: int, channels: int) -> Samples:
    """The samples of a sound, float32 in [-1, 1], [channels, samples].

    Args:
        given: A file in any format that libsndfile reads (wav, flac, mp3, ogg …), of any rate; or samples of the rate
            asked for, [samples] or [samples, channels].
        rate: Samples a second that are wanted; others are resampled by soxr.
        channels: How many are wanted: of a sound with another number, each is the mean of all.

    Raises:
        UsageError: No such file, not a sound, or one without samples.
    """
    if isinstance(given, np.ndarray):
        return _arranged(given.astype(np.float32), channels, "the array")
    path = readable_file(given, "sound")
    soundfile = needed("soundfile", "audio", "reading sound")
    try:
        samples, stored = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        what = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        hint = "give a WAV, FLAC, MP3 or OGG file; ffmpeg -i FILE out.wav makes one of most others"
        raise UsageError(f"{path} is not a sound that can be read: {what}", hint=hint) from error
    found = _arranged(samples, channels, os.fspath(path))
    if stored == rate:
        return found
    soxr = needed("soxr", "audio", "resampling sound")
    made = np.stack([np.asarray(soxr.resample(channel, stored, rate), np.float32) for channel in found])
    return _arranged(made.T, channels, os.fspath(path))


def _arranged(samples: Samples, channels: int, what: str) -> Samples:
    """[channels, samples] of [samples] or [samples, channels]."""
    if samples.ndim not in (1, 2):
        hint = "give samples as [samples], or [samples, channels]"
        raise UsageError(f"{what} has {samples.ndim} axes, and a sound has one or two", hint=hint)
    if samples.size == 0:
        raise UsageError(f"{what} holds no sound: 0 seconds", hint="give a recording that is longer")
    if not np.isfinite(samples).all():
        raise UsageError(f"{what} holds samples that are not finite", hint="record or convert it again")
    found = samples[None] if samples.ndim == 1 else samples.T
    return found if len(found) == channels else np.repeat(found.mean(axis=0, keepdims=True), channels, axis=0)


def sound_file(samples: Samples, rate: int, ending: str = ".wav") -> bytes:
    """A file of a sound.

    Args:
        samples: float32, [channels, samples].
        rate: Samples a second.
        ending: One of ``SOUND_FILES``.

    Raises:
        UsageError: soundfile is not installed, or the format does not take such a sound.
    """
    soundfile = needed("soundfile", "audio", "writing sound")
    kind, subtype = SOUND_FILES[ending]
    file = io.BytesIO()
    try:
        soundfile.write(file, samples.T, rate, format=kind, subtype=subtype)
    except (soundfile.LibsndfileError, ValueError) as error:
        what = f"a {kind} file takes no sound of {len(samples)} channels at {rate} samples a second"
        raise UsageError(what, hint="write a .wav") from error
    return file.getvalue()
