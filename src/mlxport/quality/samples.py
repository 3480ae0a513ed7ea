"""What original and output write after the same beginnings, greedily, and where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import MlxportError
from mlxport.model.both_texts import has_encoder
from mlxport.model.loaded import next_logits
from mlxport.quality.opened import Opened
from mlxport.quality.text_windows import load_tokenizer
from mlxport.run.sequence_rules import SequenceRules, read_rules
from mlxport.source.tokenizer_loading import encoded, rendered

__all__ = ["PROMPTS", "QUESTION", "Sample", "samples"]

# Beginnings of paragraphs of the built-in text.
PROMPTS: Mapping[str, str] = {
    "A story": "Tom had a red kite. He took it to the big hill with his sister Mia.",
    "Facts": "A heat pump moves warmth instead of making it. A refrigerant evaporates at a low temperature,",
    "Code": "def dijkstra(graph, start):\n",
}
QUESTION = "How do I keep bread from going stale?"
_TOKENS = 48
_FEWEST = 8
# Weights are read once for every token where they do not fit in memory.
_READ_BYTES = 100e9


@dataclass(frozen=True, slots=True)
class Sample:
    """Two continuations of one beginning.

    Attributes:
        title: What it is.
        prompt: What both read; of a chat what the user says.
        original: What the original writes: up to where they part, the first token that differs, and the rest.
        output: The same of the output.
        same_tokens: Tokens that are the same before the first that differs.
        tokens: Tokens of the longer of the two.
    """

    title: str
    prompt: str
    original: tuple[str, str, str]
    output: tuple[str, str, str]
    same_tokens: int
    tokens: int

    @property
    def parted(self) -> bool:
        """Whether they differ at all."""
        return self.same_tokens < self.tokens

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "original": list(self.original), "output": list(self.output)}


def samples(original: Opened, output: Opened, text: str | None = None) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Let both continue a few beginnings, the most likely token each time, in float32.

    Args:
        original: Placed.
        output: Placed.
        text: A user's own text: its beginning is one of them, in place of the built-in ones.

    Returns:
        The samples, and remarks on what was left out.
    """
    tokenizer = load_tokenizer(output.folder, trust_remote_code=output.trust_remote_code)
    read = sum(side.stored_nbytes for side in (original, output) if side.placed == "disk")
    affordable = int(_READ_BYTES / read) if read else _TOKENS * (len(PROMPTS) + 1)
    if affordable < _FEWEST:
        return (), ("no samples: the weights do not fit in memory, and would be read from disk for every token",)
    made, both = [], (original, output)
    prompts = _prompts(tokenizer, text, ended=has_encoder(original.model))
    count = max(1, min(len(prompts), affordable // _FEWEST))
    for title, shown, ids in prompts[:count]:
        length = min(_TOKENS, affordable // count, *(s.context - len(ids) for s in (original, output) if s.context))
        if length > 0 and ids and max(ids) < min(original.vocabulary, output.vocabulary):
            ends = [_ends(tokenizer, side.config) for side in (original, output)]
            if has_encoder(original.model):
                rules = read_rules(output.folder, sorted(ends[0]), length, {})
                sides = [written(side, ids, length, rules, original.start) for side in both]
            else:
                sides = [continued(side, ids, length, end) for side, end in zip(both, ends, strict=True)]
            made.append(_sample(tokenizer, title, shown, *sides))
    return tuple(made), ()


def continued(side: Opened, ids: list[int], length: int, ends: frozenset[int]) -> list[int]:
    """The tokens that a model finds most likely, one after the other, up to one of ``ends``."""
    from mlx_lm.models.cache import make_prompt_cache

    found: list[int] = []
    with side.bounded():
        cache = make_prompt_cache(side.model)
        step = np.asarray(ids)
        while len(found) < length:
            token = int(next_logits(side.model, step, cache, side.label).argmax())
            found.append(token)
            if token in ends:
                break
            step = np.asarray([token])
    mx.clear_cache()
    return found


def written(side: Opened, source: list[int], length: int, rules: SequenceRules, start: int) -> list[int]:
    """The same of a model that reads ``source`` with an encoder, by the rules of its generation_config.json."""
    applied, found = rules.rules(), [start]
    with side.bounded():
        cache = side.model.make_cache()
        side.model.encode(mx.array([source]), cache)
        while len(found) <= length and (found[-1] not in rules.ends or len(found) == 1):
            logits = mx.array(next_logits(side.model, np.asarray(found[-1:]), cache, side.label))[None]
            for rule in applied:
                logits = rule(found, logits)
            found.append(int(mx.argmax(logits).item()))  # type: ignore[arg-type]
    mx.clear_cache()
    return found[1:]


def _prompts(tokenizer: Any, text: str | None, ended: bool = False) -> list[tuple[str, str, list[int]]]:
    """Title, what is shown, and token ids; ``ended`` keeps the token that the tokenizer ends them with."""
    plain = dict(PROMPTS) if text is None else {"The text's beginning": _beginning(text)}
    made = [(title, shown, [int(i) for i in tokenizer(shown)["input_ids"]]) for title, shown in plain.items()]
    ending = tokenizer.eos_token_id
    if not ended:
        made = [(title, shown, ids[:-1] if len(ids) > 1 and ids[-1] == ending else ids) for title, shown, ids in made]
    if getattr(tokenizer, "chat_template", None):
        asked = _chat(tokenizer)
        made += [("A question, by the chat template", QUESTION, asked)] if asked else []
    return made


def _chat(tokenizer: Any) -> list[int]:
    """Ids of a question in the model's chat format, none where its template refuses."""
    try:
        shown = rendered(tokenizer, [{"role": "user", "content": QUESTION}])
        return encoded(tokenizer, shown, add_special_tokens=False)
    except MlxportError:
        return []


def _beginning(text: str, words: int = 30) -> str:
    """The first words of a text, as they stand."""
    parts = text.split(maxsplit=words)
    return text.strip()[: len(text.strip()) - len(parts[words])].rstrip() if len(parts) > words else text.strip()


def _ends(tokenizer: Any, config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end a text."""
    given = config.get("eos_token_id")
    listed = given if isinstance(given, (list, tuple)) else [given]
    return frozenset(int(i) for i in (*listed, tokenizer.eos_token_id) if isinstance(i, int))


def _sample(tokenizer: Any, title: str, shown: str, theirs: list[int], ours: list[int]) -> Sample:
    same = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    sides = [_split(tokenizer, ids, same) for ids in (theirs, ours)]
    return Sample(title, shown, sides[0], sides[1], same, max(len(theirs), len(ours)))


def _split(tokenizer: Any, ids: list[int], place: int) -> tuple[str, str, str]:
    """The text of the tokens before ``place``, of the one there, and of the others."""
    whole = str(tokenizer.decode(ids))
    # A character may lie across a place: what decodes alike with and without the rest comes first.
    ends = [_common(whole, str(tokenizer.decode(ids[:length]))) for length in (place, place + 1)]
    return whole[: ends[0]], whole[ends[0] : max(ends)], whole[max(ends) :]


def _common(one: str, two: str) -> int:
    """Length of what two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
