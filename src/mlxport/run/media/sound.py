"""Sound from files, as one channel at the rate that a model reads."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import UsageError
from mlxport.run.media.extras import needed
from mlxport.run.media.files import readable_file

__all__ = ["read_sound"]

Samples = npt.NDArray[np.float32]


def read_sound(given: str | os.PathLike[str] | npt.NDArray[Any], rate: int) -> Samples:
    """The samples of a sound, float32 in [-1, 1], [samples].

    Args:
        given: A file in any format that libsndfile reads (wav, flac, mp3, ogg …), of any rate and number of channels,
            which are averaged; or samples of the rate asked for, [samples] or [samples, channels].
        rate: Samples a second that are wanted; others are resampled by soxr.

    Raises:
        UsageError: No such file, not a sound, or one without samples.
    """
    if isinstance(given, np.ndarray):
        return _one_channel(given.astype(np.float32), "the array")
    path = readable_file(given, "sound")
    soundfile = needed("soundfile", "audio", "reading sound")
    try:
        samples, stored = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        what = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
        hint = "give a WAV, FLAC, MP3 or OGG file; ffmpeg -i FILE out.wav makes one of most others"
        raise UsageError(f"{path} is not a sound that can be read: {what}", hint=hint) from error
    mono = _one_channel(samples, os.fspath(path))
    if stored == rate:
        return mono
    soxr = needed("soxr", "audio", "resampling sound")
    return np.asarray(soxr.resample(mono, stored, rate), np.float32)


def _one_channel(samples: Samples, what: str) -> Samples:
    if samples.shape[0] == 0:
        raise UsageError(f"{what} holds no sound: 0 seconds", hint="give a recording that is longer")
    if not np.isfinite(samples).all():
        raise UsageError(f"{what} holds samples that are not finite", hint="record or convert it again")
    return samples if samples.ndim == 1 else samples.mean(axis=1)
