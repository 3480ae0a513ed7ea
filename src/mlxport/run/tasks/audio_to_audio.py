"""Sound from sound: through the codes of a neural codec and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.errors import UsageError
from mlxport.output.atomic_files import replacing
from mlxport.run.media.sound import SOUND_FILES, sound_file
from mlxport.run.tasks.array_files import ARRAYS
from mlxport.run.tasks.codec_sound import CodecSound
from mlxport.run.tasks.pipeline import Difference, Pipeline
from mlxport.run.tasks.sound_model import HeardExample, SoundModel
from mlxport.run.tasks.task_options import AudioOptions
from mlxport.run.tasks.written_files import target_file

__all__ = ["AudioToAudio"]


class AudioToAudio(Pipeline):
    """``audio-to-audio``: each sound as the model gives it again, with what it becomes between.

    An input is a sound, or what one became: a ``.npy`` that ``codes`` has written, or a result of this pipeline.

    Attributes:
        sounds: What gives sound.
    """

    task = "audio-to-audio"
    reads = "sound"
    tokenizes = False
    options = AudioOptions
    also = "--output out.wav"
    also_in_python = ', output="out.wav"'
    returns = "a dict: `audio` [channels, samples],\n`sampling_rate` and what is between"
    sounds: SoundModel

    def _model(self) -> Any:
        self.sounds = CodecSound(self.folder, self.config, self.trust_remote_code)
        return self.sounds

    def gathered(self, inputs: Sequence[Any], options: AudioOptions) -> list[Any]:
        """The inputs; without any the file of what is between."""
        given = getattr(options, self.sounds.between)
        return list(inputs) or ([given] if given is not None and options.output is not None else [])

    def run(self, inputs: Sequence[Any], options: AudioOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``{"audio": …, "sampling_rate": …}`` for each input, and for a sound what is between."""
        self._check_files(len(inputs), options)
        results = []
        for given in inputs:
            results.append(self.sounds.hear(given, options))
            on_done(1)
        return results

    def _check_files(self, inputs: int, options: AudioOptions) -> None:
        between = self.sounds.between
        for flag, name, example, endings in (
            ("--output", options.output, "out.wav", tuple(SOUND_FILES)),
            (f"--{between}", getattr(options, between), f"{between}{ARRAYS}", (ARRAYS,)),
        ):
            if name is None:
                continue
            target_file(flag, name, example, endings)
            if inputs > 1:
                what = f"{flag} is one file, and {inputs} inputs were given"
                raise UsageError(what, hint="give one input at a time")

    def write(self, results: Sequence[Any], options: AudioOptions) -> list[str]:
        """The sound, and what it became between."""
        written, between = [], self.sounds.between
        if options.output is not None:
            path = target_file("--output", options.output, "out.wav", tuple(SOUND_FILES))
            content = sound_file(results[0]["audio"], results[0]["sampling_rate"], path.suffix.lower())
            with replacing(path) as file:
                file.write(content)
            written.append(options.output)
        name = getattr(options, between)
        if name is not None and between in results[0]:
            self.sounds.write_between(target_file(f"--{between}", name, f"{between}{ARRAYS}", (ARRAYS,)), results[0])
            written.append(name)
        return written

    def target_needed(self, options: AudioOptions) -> str:
        """A file for the sound, unless what is between is wanted alone."""
        named = options.output is not None or getattr(options, self.sounds.between) is not None
        return "" if named else self.also

    def as_bytes(self, result: Any) -> bytes:
        """A WAV."""
        return sound_file(result["audio"], result["sampling_rate"])

    def plain(self, result: Any) -> Any:
        """How long the sound is, and what is between; samples are for files."""
        audio, rate = result["audio"], result["sampling_rate"]
        arrays = {name: value.tolist() for name, value in result.items() if name not in ("audio", "sampling_rate")}
        about = {"sampling_rate": rate, "channels": len(audio), "seconds": round(audio.shape[-1] / rate, 4)}
        return {**about, **arrays}

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """How long each sound is."""
        for given, result in zip(inputs, results, strict=True):
            yield f"{given}: {self.plain(result)['seconds']:.2f} s"

    def examples(self) -> list[Any]:
        """Sounds."""
        return list(self.sounds.examples())

    def answer(self, example: HeardExample) -> Any:
        """The sound again, and what it became."""
        return self.sounds.compared(example)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """Sounds, and what they became."""
        return self.sounds.difference(ours, theirs)


PIPELINE = AudioToAudio
