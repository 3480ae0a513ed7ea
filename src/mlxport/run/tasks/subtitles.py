"""Subtitles of text with times: SubRip (https://en.wikipedia.org/wiki/SubRip) and WebVTT (https://www.w3.org/TR/webvtt1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["srt", "vtt"]

_SHORTEST = 0.02  # seconds, Whisper's own step: players leave out what ends as it begins


def srt(chunks: Sequence[Any]) -> Iterator[str]:
    """Lines of a SubRip file.

    Args:
        chunks: As transformers has them: ``timestamp`` in seconds, ``text``.
    """
    for number, chunk in enumerate(_said(chunks), 1):
        yield str(number)
        yield from _cue(chunk, ",")


def vtt(chunks: Sequence[Any]) -> Iterator[str]:
    """Lines of a WebVTT file; ``chunks`` as of ``srt``."""
    yield "WEBVTT"
    yield ""
    for chunk in _said(chunks):
        yield from _cue(chunk, ".")


def _said(chunks: Sequence[Any]) -> Iterator[Any]:
    """Those that say something."""
    return (chunk for chunk in chunks if chunk["text"].strip())


def _cue(chunk: Any, point: str) -> Iterator[str]:
    start, end = chunk["timestamp"]
    yield f"{_time(start, point)} --> {_time(max(end, start + _SHORTEST), point)}"
    yield chunk["text"].strip().replace("-->", "->")
    yield ""


def _time(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{rest:03d}"
