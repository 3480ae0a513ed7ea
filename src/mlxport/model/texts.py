"""The texts that models read: three that are built in, and a user's own.

``PROBE_TEXT`` is what verification reads, ``calibration_text`` what calibration and distillation do, ``heldout_text``
what quality is measured on.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path

from mlxport.errors import UsageError
from mlxport.source.safe_files import opened_by_user

__all__ = ["PROBE_TEXT", "TRICKY_TEXT", "WRITES_UP_TO", "calibration_text", "heldout_text", "read_text"]

# Bytes of a checkpoint whose model writes its own text. Writing reads all weights for each token, so they have to be in
# memory: where no text is asked for, larger models read one that others wrote. The same on every machine, as the output
# depends on it.
WRITES_UP_TO = 1 << 29

PROBE_TEXT = """The harbour was quiet when Anna came down the steps. Two boats had left before dawn, and the third, \
painted green a long time ago, was still tied to the wall because its owner did not trust the weather. She put her \
basket on the stones and looked at the clouds. "It will hold until noon," she said, more to herself than to the old \
man who was mending a net beside her. He nodded without looking up. He had heard that sentence, or one like it, every \
morning for thirty years, and it had been right about as often as it had been wrong.

Once upon a time there was a little bird who could not sing. The other birds sang in the morning and in the evening, \
and the little bird listened. One day it met a frog. "Why are you sad?" asked the frog. "Because I cannot sing," said \
the bird. "Then clap your wings," said the frog, "and I will sing for both of us." So they did, and everybody in the \
garden came to listen.

Water boils at 100 degrees Celsius at sea level, but at 3,000 metres it boils at about 90. The reason is pressure: \
molecules leave the liquid when their vapour pressure equals that of the air above it. In 1643 Torricelli filled a \
glass tube with mercury, turned it over in a dish, and saw the column fall to roughly 760 millimetres.

def median(values: list[float]) -> float:
    \"\"\"Return the middle value, or the mean of the two middle ones.\"\"\"
    if not values:
        raise ValueError("median of an empty list")
    ordered = sorted(values)
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2

class Stack:
    def __init__(self):
        self._items = []

    def push(self, item):
        self._items.append(item)

    def pop(self):
        return self._items.pop()

for (int i = 0; i < n; ++i) { total += weights[i] * inputs[i]; }
SELECT name, COUNT(*) FROM visits WHERE year >= 2020 GROUP BY name ORDER BY 2 DESC;
{"id": 17, "tags": ["a", "b"], "ok": true, "ratio": 0.125}

Am Morgen lag Nebel über dem Fluss, und die Züge fuhren langsamer als sonst. Le lendemain, il faisait déjà chaud à \
huit heures. El niño preguntó por qué el cielo cambia de color. 春になると、川沿いの桜が一斉に咲く。 \
昨天下了一整天的雨,今天终于放晴了。 오늘은 바람이 많이 분다. Зимой дни короткие, а ночи длинные. \
في الصباح كان السوق مزدحماً بالناس. सुबह की चाय के साथ अख़बार पढ़ना उसे पसंद था। Το καράβι έφυγε νωρίς.

1. Preheat the oven to 180 °C.
2. Mix 250 g of flour with 125 g of sugar and a pinch of salt.
3. Add two eggs, stir until smooth, and wait ten minutes.
4. Bake for 35 minutes; the cake is ready when a wooden stick comes out dry.

When the committee met again in the autumn, nobody could remember who had asked for the report. It lay on the table, \
one hundred and twelve pages in a grey cover, and every member hoped that another had read it. The chairwoman opened \
it at the summary. "It says that we should meet more often," she read aloud. There was a long silence. Then someone \
laughed, and the matter was closed.
"""

# For the tokenizer: what normalisers and byte fallbacks stumble over.
TRICKY_TEXT = (
    "  two leading spaces, a tab\there, trailing spaces  \n\n\nnewlines\r\nand CRLF, non\u00a0breaking, zero\u200b"
    "width | don't can't I'll we've | 3.14159 1,000,000 0x7fff | naïve café Ångström e\u0301 | Привет, мир! | "
    "你好,世界。 | こんにちは | 안녕하세요 | שלום עולם | مرحبا بالعالم | नमस्ते दुनिया | สวัสดี | 😀 👩‍👩‍👧 🏳️‍🌈 🇨🇭 | "
    "\U0001d54f \U00020000 | if (a<=b && !c) { return a->b[0]; } // end"
)


@functools.cache
def calibration_text() -> str:
    """Prose, code, lists and several scripts, to calibrate and to train on."""
    return files("mlxport.model").joinpath("calibration.txt").read_text(encoding="utf-8")


@functools.cache
def heldout_text() -> str:
    """Prose, stories, letters, code, tables and some thirty languages, to measure on.

    Neither verification nor calibration reads it.
    """
    return files("mlxport.model").joinpath("heldout.txt").read_text(encoding="utf-8")


def read_text(path: str | Path, what: str, hint: str, most: int | None = None) -> str:
    """The text of a file that a user names.

    Args:
        path: The file, UTF-8, with or without a byte order mark.
        what: What to call it in an error, the name included.
        hint: The next step.
        most: Bytes after which nothing is read, None for all.

    Raises:
        UsageError: It cannot be read, is empty, or is not text in UTF-8.
    """
    try:
        with opened_by_user(Path(path).expanduser()) as file:
            data = file.read() if most is None else file.read(most + 1)
        if most is not None and len(data) > most:
            data = data[:most].decode("utf-8", "ignore").encode()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {what}: {error.strerror or error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not text: byte {error.start} is not UTF-8", hint=hint) from error
    if "\0" in text:
        raise UsageError(f"{what} is not text: it has zero bytes", hint=hint)
    if not text.strip():
        raise UsageError(f"{what} is empty", hint=hint)
    return text
