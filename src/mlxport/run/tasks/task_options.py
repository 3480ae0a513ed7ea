"""The options of every task, as data: the command line lists them without an import of anything large."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlxport.errors import UsageError
from mlxport.options.option_field import check_fields, option, refined

__all__ = [
    "FUNCTIONS",
    "OPTIONS",
    "POOLINGS",
    "SCHEDULERS",
    "SPEECH_TASKS",
    "SUBTITLES",
    "STRATEGIES",
    "AudioOptions",
    "BatchOptions",
    "FeatureOptions",
    "FillMaskOptions",
    "GenerationOptions",
    "ImageClassificationOptions",
    "ImageTextOptions",
    "LabelOptions",
    "PictureOptions",
    "RunOptions",
    "SentenceOptions",
    "SpeechOptions",
    "TextClassificationOptions",
    "TextOptions",
    "TokenClassificationOptions",
    "TranslationOptions",
    "VectorOptions",
    "ZeroShotImageOptions",
]

FUNCTIONS = ("default", "softmax", "sigmoid", "none")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""As sentence-transformers calls them, in the order in which it joins them."""
SCHEDULERS = ("ddim", "euler", "euler-ancestral", "flow-euler")
SPEECH_TASKS = ("transcribe", "translate")
SUBTITLES = ("txt", "srt", "vtt", "json")
STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a task; each has a class of its own, of which this is the base."""

    def __post_init__(self) -> None:
        check_fields(self)


def _at_least_one(value: int) -> None:
    if value < 1:
        raise UsageError(f"--batch-size {value}: expected at least 1", hint="leave it out")


@dataclass(frozen=True, kw_only=True)
class BatchOptions(RunOptions):
    """Of tasks that read several inputs at once."""

    batch_size: int = option(8, "Inputs that are computed at once.", check=_at_least_one)


@dataclass(frozen=True, kw_only=True)
class TextOptions(BatchOptions):
    """Of tasks that read texts."""

    truncate: bool = option(False, "Cut texts that are longer than the model reads.")


def _top(value: int) -> None:
    if value < 1:
        raise UsageError(f"--top-k {value}: expected at least 1", hint="leave it out for the usual number")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(RunOptions):
    """Of tasks that choose among labels."""

    top_k: int | None = option(None, "Most likely answers to give [as many as transformers' pipeline].", check=_top)
    function_to_apply: str = option(
        "default", "What makes scores of logits: default (as config.json says), softmax, sigmoid or none.",
        choices=FUNCTIONS,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextClassificationOptions(TextOptions, LabelOptions):
    """Its options."""


@dataclass(frozen=True, kw_only=True)
class TokenClassificationOptions(TextOptions):
    """Its options."""

    aggregation_strategy: str = option(
        "none", "How labels of tokens become those of entities: none, simple, first, average or max, as transformers'.",
        choices=STRATEGIES,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FillMaskOptions(TextOptions):
    """Its options."""

    top_k: int = refined(LabelOptions, "top_k", default=5)


@dataclass(frozen=True, kw_only=True)
class ImageClassificationOptions(BatchOptions, LabelOptions):
    """Its options."""

    top_k: int = refined(LabelOptions, "top_k", default=5)


@dataclass(frozen=True, kw_only=True)
class VectorOptions(TextOptions):
    """Of tasks that make vectors."""

    similarity: bool = option(False, "Show how alike the inputs are, each to each: the cosine of their vectors.")
    output: str | None = option(None, "File to write the vectors to, as NumPy's .npy.")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(VectorOptions):
    """Its options."""

    pooling: str = option(
        "none", f"How a text's vectors become one: none (one for each token), {', '.join(POOLINGS)}.",
        choices=("none", *POOLINGS),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SentenceOptions(VectorOptions):
    """Its options."""

    prompt_name: str | None = option(None, "Which prompt of the folder is put before each text, as query of E5.")


def _with_a_place(value: str) -> None:
    if "{}" not in value:
        raise UsageError(f"--hypothesis-template {value!r} has no {{}}", hint="write {} where each text is to stand")


@dataclass(frozen=True, kw_only=True)
class ZeroShotImageOptions(TextOptions):
    """Its options."""

    text: list[str] | None = option(None, "Texts to hold pictures against; without pictures their vectors are made.")
    image: list[str] | None = option(None, "Pictures, beside those among the inputs.")
    hypothesis_template: str = option(
        "{}", "What each text stands in, in place of {} (transformers' own is 'This is a photo of {}.').",
        check=_with_a_place,
    )  # fmt: skip
    output: str | None = refined(VectorOptions, "output")


def _seconds(value: float) -> None:
    if not 1 <= value <= 3600:
        raise UsageError(f"--chunk-length {value}: expected 1 to 3600 seconds", hint="leave it out")


@dataclass(frozen=True, kw_only=True)
class SpeechOptions(RunOptions):
    """Its options."""

    chunk_length: float = option(
        30.0, "Seconds of the pieces in which a longer recording is read; they overlap by a third.", check=_seconds
    )
    language: str | None = option(
        None, "Language that is spoken, by code or name (en, german) [heard from the first 30 seconds]."
    )
    task_name: str = option(
        "transcribe", "transcribe, or translate into English; --task takes these two as well.", choices=SPEECH_TASKS
    )
    word_timestamps: bool = option(False, "Give the seconds of each word, of models that Whisper's layout is for.")
    format: str = option(
        "txt", "What is written: txt, srt, vtt (subtitles) or json (segments with their times).", choices=SUBTITLES
    )


def _positive(flag: str) -> Callable[[float], None]:
    """The check of a number that is to be positive."""

    def check(value: float) -> None:
        if not value > 0:
            raise UsageError(f"{flag} {value}: expected more than 0", hint="leave it out")

    return check


@dataclass(frozen=True, kw_only=True)
class AudioOptions(RunOptions):
    """Of ``audio-to-audio``."""

    output: str | None = refined(VectorOptions, "output", help="File to write the sound to: .wav, .flac or .ogg.")
    codes: str | None = option(None, "File to write a codec's codes to, as .npy; given as INPUT, it is decoded.")
    bandwidth: float | None = option(
        None, "Kilobits a second of a codec's codes, where it was trained for some [the least].",
        check=_positive("--bandwidth"),
    )  # fmt: skip
    num_quantizers: int | None = option(
        None, "Codebooks of a codec to use [all, or as many as the bandwidth takes].",
        check=_positive("--num-quantizers"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(RunOptions):
    """Of ``text-generation``, as ``mlxport generate`` has them."""

    max_tokens: int | None = option(
        None, "Most tokens to generate [256, or what generation_config.json says for a model with an encoder].",
        flags=("-m", "--max-tokens"),
    )  # fmt: skip
    temp: float = option(0.0, "Temperature; 0 is greedy.")
    top_p: float = option(1.0, "Probability mass to sample from.")
    min_p: float = option(0.0, "Least probability relative to the most likely token's.")
    top_k: int = option(0, "Number of most likely tokens to sample from; 0 is off.")
    seed: int | None = option(None, "Makes sampling reproducible.")
    system_prompt: str | None = option(None, "Put before the message by the chat template.")
    ignore_chat_template: bool = option(False, "Continue the prompt as it is.")


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(GenerationOptions):
    """Of ``text2text-generation``."""

    num_beams: int | None = option(None, "Beams of a model with an encoder [as its generation_config.json says].")
    source_lang: str | None = option(None, "Language of the prompt, as an encoder's tokenizer calls it.")
    target_lang: str | None = option(None, "Language that a model with an encoder is to write.")
    truncate: bool = refined(TextOptions, "truncate", help="Cut texts that are longer than an encoder reads.")


@dataclass(frozen=True, kw_only=True)
class ImageTextOptions(GenerationOptions):
    """Of ``image-text-to-text``."""

    image: list[str] | None = option(None, "Pictures that the prompt is about; several may follow each other.")
    prompt: str | None = option(None, 'What is asked; "-" reads it from standard input.')


def _share(value: float) -> None:
    if not 0 < value <= 1:
        raise UsageError(f"--strength {value}: expected more than 0, and up to 1", hint="leave it out for 0.8")


def _known_scheduler(value: str) -> None:
    if value not in SCHEDULERS:
        raise UsageError(f"--scheduler {value!r} does not exist", hint=f"choose one of {', '.join(SCHEDULERS)}")


def _size(value: str) -> None:
    if not re.fullmatch(r"\d{1,5}(?:x\d{1,5})?", value):
        raise UsageError(f"--size {value!r} is no size", hint="write it as 512, or as HEIGHTxWIDTH: 512x768")


@dataclass(frozen=True, kw_only=True)
class PictureOptions(RunOptions):
    """Of ``text-to-image``."""

    negative_prompt: str | None = option(None, "What is not to be seen.")
    image: list[str] | None = option(None, "A picture to start from, which is brought to --size.")
    strength: float = option(0.8, "How much of the picture to start from is taken away first, up to 1.", check=_share)
    steps: int = option(50, "Steps from noise to picture; of turbo models 1 to 4.", check=_positive("--steps"))
    cfg: float | None = option(
        None, "How much the prompt counts [7.5; 5 of SDXL]; up to 1 it is asked alone, as turbo models want it (0)."
    )
    scheduler: str | None = option(
        None, f"What takes noise away, step by step: {', '.join(SCHEDULERS)} [the folder's].", check=_known_scheduler
    )
    size: str | None = option(None, "Height and width, as 512 or 512x768 [what it was trained for].", check=_size)
    n_images: int = option(1, "Pictures of each prompt.", check=_positive("--n-images"))
    n_rows: int = option(1, "Rows of the grid that several pictures are written as.", check=_positive("--n-rows"))
    seed: int | None = option(None, "Of the noise, so that the same picture comes again; of the next picture one more.")
    low_memory: bool = option(False, "Keep only that part of the model in memory which is computing.")
    output: str | None = option(None, "File to write the pictures to: .png, with what made them, .jpg or .webp.")


OPTIONS: Mapping[str, type[RunOptions]] = {
    "text-generation": GenerationOptions,
    "text2text-generation": TranslationOptions,
    "text-classification": TextClassificationOptions,
    "token-classification": TokenClassificationOptions,
    "fill-mask": FillMaskOptions,
    "zero-shot-image-classification": ZeroShotImageOptions,
    "image-classification": ImageClassificationOptions,
    "image-text-to-text": ImageTextOptions,
    "automatic-speech-recognition": SpeechOptions,
    "audio-to-audio": AudioOptions,
    "sentence-similarity": SentenceOptions,
    "text-to-image": PictureOptions,
    "feature-extraction": FeatureOptions,
}
"""By the name of the task."""
