"""Files that are not in the repository, for tests that also run on larger, real models: they skip without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "MLXPORT_TEST_DATA"
# What is looked for in that folder, and where the world has it. Everything that these files prove is proven without
# them too, on examples/tiny-llama or on weights made by a test.
WHERE = {
    "stories260K": "karpathy's tinyllamas as a Hugging Face folder, its sample text in sample.txt",
    "silero-vad": "silero_vad_16k.safetensors of github.com/snakers4/silero-vad",
    "whisper-tiny.en": "openai/whisper-tiny.en of the Hugging Face hub, in float16",
    "audio": "jfk_16k.wav, the samples/jfk.wav of github.com/ggml-org/whisper.cpp",
}


def external(folder: str, *parts: str) -> Path:
    """A file or folder below ``$MLXPORT_TEST_DATA``; a skip that says how to get it where it is not there."""
    root = os.environ.get(VARIABLE)
    path = Path(root or ".", folder, *parts)
    if not root or not path.exists():
        pytest.skip(f"{VARIABLE}=DIR names no DIR with {'/'.join((folder, *parts))} ({WHERE[folder]})")
    return path
