"""Labels of words: names of persons, places, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlxport.run.tasks.labels import label_names, softmax
from mlxport.run.tasks.pipeline import Array, Difference, as_numpy
from mlxport.run.tasks.task_options import TokenClassificationOptions
from mlxport.run.tasks.text_inputs import TextPipeline

__all__ = ["TokenClassification"]

_OUTSIDE = "O"
_BY_WORD = ("first", "average", "max")


class TokenClassification(TextPipeline):
    """``token-classification``: the label of each token, or of each entity, but for those outside of any."""

    task = "token-classification"
    options = TokenClassificationOptions

    def run(
        self, inputs: Sequence[str], options: TokenClassificationOptions, on_done: Callable[[int], object]
    ) -> list[Any]:
        """A list of entities for each text."""
        fast = bool(self.tokenizer.is_fast)
        made = self.encode(inputs, options, return_special_tokens_mask=True, return_offsets_mapping=fast)
        results: list[Any] = [None] * len(inputs)
        for batch in self.batches(made, options.batch_size):
            logits = as_numpy(batch.outputs["logits"])
            for index, place in enumerate(batch.places):
                count = len(made["input_ids"][place])
                start = logits.shape[1] - count if self.tokenizer.padding_side == "left" else 0
                tokens = self._tokens(inputs[place], made, place, softmax(logits[index, start : start + count]))
                results[place] = self._entities(tokens, options.aggregation_strategy, logits.shape[-1])
            on_done(len(batch.places))
        return results

    def _tokens(self, text: str, made: Mapping[str, Any], place: int, found: Array) -> list[dict[str, Any]]:
        """Each token that is not special: its word, place in the text, and scores of the labels."""
        tokens = []
        prefixed = self._has_subword_prefix()
        for index, token in enumerate(made["input_ids"][place]):
            if made["special_tokens_mask"][place][index]:
                continue
            word = self.tokenizer.convert_ids_to_tokens(int(token))
            start = end = None
            inside = False
            if "offset_mapping" in made:
                start, end = (int(at) for at in made["offset_mapping"][place][index])
                written = text[start:end]
                inside = len(word) != len(written) if prefixed else start > 0 and " " not in text[start - 1 : start + 1]
                if token == self.tokenizer.unk_token_id:
                    word, inside = written, False
            tokens.append({
                "word": word, "scores": found[index], "start": start, "end": end, "index": index, "inside": inside,
            })  # fmt: skip
        return tokens

    def _has_subword_prefix(self) -> bool:
        """Whether tokens inside of a word are marked in the vocabulary (``##ing``)."""
        backend = getattr(self.tokenizer, "_tokenizer", None)
        return bool(getattr(getattr(backend, "model", None), "continuing_subword_prefix", None))

    def _entities(self, tokens: list[dict[str, Any]], strategy: str, count: int) -> list[dict[str, Any]]:
        names = label_names(self.config, count)
        if strategy in _BY_WORD:
            labelled = [self._labelled_word(word, names, strategy) for word in _words(tokens)]
        else:
            labelled = [_labelled(token, token["scores"], names) for token in tokens]
        if strategy == "none":
            return [entity for entity in labelled if entity["entity"] != _OUTSIDE]
        return [group for group in map(self._joined, _groups(labelled)) if group["entity_group"] != _OUTSIDE]

    def _labelled_word(self, word: list[dict[str, Any]], names: Sequence[str], strategy: str) -> dict[str, Any]:
        if strategy == "first":
            found = word[0]["scores"]
        elif strategy == "max":
            found = max(word, key=lambda token: float(token["scores"].max()))["scores"]
        else:
            found = np.nanmean(np.stack([token["scores"] for token in word]), axis=0)
        text = self.tokenizer.convert_tokens_to_string([token["word"] for token in word])
        return {**_labelled({**word[0], "word": text}, found, names), "end": word[-1]["end"]}

    def _joined(self, group: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.nanmean([entity["score"] for entity in group])),
            "word": self.tokenizer.convert_tokens_to_string([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }

    def lines(self, inputs: Sequence[str], results: Sequence[Any], options: Any) -> Iterator[str]:
        """A line for each entity: its label, score, place in the text, and words."""
        for text, result in zip(inputs, results, strict=True):
            if len(inputs) > 1:
                yield f"{text}:"
            if not result:
                yield "  nothing found"
            for entity in result:
                label = entity.get("entity_group", entity.get("entity"))
                place = "" if entity["start"] is None else f"{entity['start']}:{entity['end']}"
                yield f"{entity['score']:8.4f}  {label:12}  {place:9}  {entity['word']}"

    def compare(self, ours: Any, theirs: Any) -> Difference:
        """The entities, their places and scores."""
        mine, other = ([(item["entity"], item["index"], item["word"]) for item in result] for result in (ours, theirs))
        if mine != other:
            at = next((i for i, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1]), len(mine))
            got, wanted = (found[at] if at < len(found) else "nothing more" for found in (mine, other))
            return Difference("entities", 0.0, f"{got} where the original says {wanted}")
        pairs = zip(ours, theirs, strict=True)
        return Difference("scores", max((abs(a["score"] - float(b["score"])) for a, b in pairs), default=0.0))


PIPELINE = TokenClassification


def _labelled(token: Mapping[str, Any], found: Array, names: Sequence[str]) -> dict[str, Any]:
    best = int(found.argmax())
    entity = {"entity": names[best], "score": float(found[best]), "index": token["index"], "word": token["word"]}
    return {**entity, "start": token["start"], "end": token["end"]}


def _words(tokens: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if token["inside"] and words:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _groups(labelled: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What follows each other with the same label is one entity, unless a label says that another begins."""
    groups: list[list[dict[str, Any]]] = []
    for entity in labelled:
        begins, tag = _tag(entity["entity"])
        if groups and tag == _tag(groups[-1][-1]["entity"])[1] and not begins:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return groups


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind: ``B-PER``, ``I-PER``."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
