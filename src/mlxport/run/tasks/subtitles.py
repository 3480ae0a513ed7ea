"""Subtitles of text with times: SubRip (https://en.wikipedia.org/wiki/SubRip) and WebVTT (https://www.w3.org/TR/webvtt1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["srt", "vtt"]


def srt(chunks: Sequence[Any]) -> Iterator[str]:
    """Lines of a SubRip file.

    Args:
        chunks: As transformers has them: ``timestamp`` in seconds, ``text``.
    """
    for number, chunk in enumerate(chunks, 1):
        yield str(number)
        yield from _cue(chunk, ",")


def vtt(chunks: Sequence[Any]) -> Iterator[str]:
    """Lines of a WebVTT file; ``chunks`` as of ``srt``."""
    yield "WEBVTT"
    yield ""
    for chunk in chunks:
        yield from _cue(chunk, ".")


def _cue(chunk: Any, point: str) -> Iterator[str]:
    start, end = (_time(seconds, point) for seconds in chunk["timestamp"])
    yield f"{start} --> {end}"
    yield chunk["text"].strip().replace("-->", "->")
    yield ""


def _time(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{rest:03d}"
