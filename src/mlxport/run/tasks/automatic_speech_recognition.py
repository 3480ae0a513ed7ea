"""What is said in a recording: by letters for each moment (CTC), by Whisper, or by a port that hears and writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxport.errors import UsageError
from mlxport.layouts.table import layout_of
from mlxport.output.record import read_record
from mlxport.run.media.made_voice import made_voice
from mlxport.run.media.sound import read_sound
from mlxport.run.tasks.ctc_speech import CTCSpeech
from mlxport.run.tasks.decoder_speech import DecoderSpeech
from mlxport.run.tasks.pipeline import Difference, Pipeline, compare_texts
from mlxport.run.tasks.recognizer import Recognizer
from mlxport.run.tasks.subtitles import srt, vtt
from mlxport.run.tasks.task_options import SpeechOptions
from mlxport.run.tasks.whisper_speech import WhisperSpeech

__all__ = ["SpeechRecognition"]

_RECOGNIZERS = {"mlx-whisper": WhisperSpeech, "generated-speech": DecoderSpeech}  # by the layout; else CTC


class SpeechRecognition(Pipeline):
    """``automatic-speech-recognition``: the text of each recording.

    Attributes:
        recognizer: What hears, by the folder's layout.
    """

    task = "automatic-speech-recognition"
    reads = "sound"
    options = SpeechOptions
    recognizer: Recognizer

    def _model(self) -> Any:
        layout = layout_of(self.config, read_record(self.folder)).name
        kind = _RECOGNIZERS.get(layout, CTCSpeech)
        self.recognizer = kind(self.folder, self.config, self.trust_remote_code)
        return self.recognizer.model

    def run(self, inputs: Sequence[Any], options: SpeechOptions, on_done: Callable[[int], object]) -> list[Any]:
        """``{"text": …}`` for each recording, with ``chunks`` where times are asked for."""
        self.recognizer.spelled = self.spelled
        self.recognizer.check(options)
        results = []
        for given in inputs:
            samples = read_sound(given, self.recognizer.rate)
            results.append(self.recognizer.hear(samples, options, self.shows and len(inputs) == 1))
            on_done(1)
        return results

    def lines(self, inputs: Sequence[Any], results: Sequence[Any], options: Any) -> Iterator[str]:
        """The texts, or what ``--format`` says."""
        if options.format in ("srt", "vtt") and len(inputs) > 1:
            hint = "give one recording, or --format json"
            raise UsageError(
                f"--format {options.format} is a file of one recording, and {len(inputs)} were given", hint=hint
            )
        for given, result in zip(inputs, results, strict=True):
            match options.format:
                case "srt":
                    yield from srt(result["chunks"])
                case "vtt":
                    yield from vtt(result["chunks"])
                case "json":
                    yield json.dumps({"input": str(given), **result} if len(inputs) > 1 else result, ensure_ascii=False)
                case _:
                    yield from self._plain_lines(str(given) if len(inputs) > 1 else "", result)

    def _plain_lines(self, given: str, result: Any) -> Iterator[str]:
        text = result["text"].strip()
        if "chunks" not in result:
            yield f"{given}: {text}" if given else text
            return
        if given:
            yield f"{given}:"
        for chunk in result["chunks"]:
            start, end = chunk["timestamp"]
            yield f"{start:8.2f} {end:8.2f}  {chunk['text'].strip()}"

    def examples(self) -> list[Any]:
        """Made sounds of three lengths: tones that slide, with breath between them."""
        rate = self.recognizer.rate
        lengths = (1.0, 2.3, 0.7) if isinstance(self.recognizer, CTCSpeech) else (2.3,)
        return [made_voice(seconds, rate, index) for index, seconds in enumerate(lengths)]

    def answer(self, example: Any) -> Any:
        """The likeliest text."""
        return self.recognizer.compared(read_sound(example, self.recognizer.rate))

    def for_reference(self, example: Any) -> Any:
        """Samples with their rate."""
        return {"raw": example, "sampling_rate": self.recognizer.rate}

    def reference(self, pipeline: Callable[..., Any], example: Any) -> Any:
        """The original's text, by the tokens that this model is asked for."""
        return pipeline(self.for_reference(example), **self.recognizer.reference)

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The text."""
        return compare_texts(ours["text"].strip(), theirs["text"].strip())


PIPELINE = SpeechRecognition
