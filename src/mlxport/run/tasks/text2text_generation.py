"""Texts that an encoder reads and a decoder writes another for: translations, summaries."""

from __future__ import annotations

from mlxport.run.tasks.task_options import TranslationOptions
from mlxport.run.tasks.text_generation import TextGeneration

__all__ = ["Text2TextGeneration"]


class Text2TextGeneration(TextGeneration):
    """``text2text-generation``: what is written for each text."""

    task = "text2text-generation"
    options = TranslationOptions


PIPELINE = Text2TextGeneration
