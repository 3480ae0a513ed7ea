"""Scores of labels, as the config says that logits become them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlxport.run.tasks.pipeline import Array, Difference

__all__ = ["compare_labels", "label_lines", "label_names", "ranked", "scores", "softmax"]


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def scores(logits: Array, config: Mapping[str, Any], function: str) -> Array:
    """Scores of labels, [..., labels], by the function asked for, else as transformers' pipelines choose it."""
    if function == "default":
        problem, count = config.get("problem_type"), logits.shape[-1]
        if problem == "regression":
            function = "none"
        elif problem == "multi_label_classification" or count == 1:
            function = "sigmoid"
        else:
            function = "softmax"
    if function == "softmax":
        return softmax(logits)
    return 1 / (1 + np.exp(-logits)) if function == "sigmoid" else logits


def label_names(config: Mapping[str, Any], count: int) -> list[str]:
    """Names of ``count`` labels by the config's ``id2label``; as transformers where it names none."""
    given = config.get("id2label")
    named = given if isinstance(given, Mapping) else {}
    return [str(named.get(str(index), f"LABEL_{index}")) for index in range(count)]


def ranked(row: Array, names: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """The best labels first."""
    order = sorted(range(len(names)), key=lambda index: -float(row[index]))[:top_k]
    return [{"label": names[index], "score": float(row[index])} for index in order]


def label_lines(given: Sequence[str], results: Sequence[Any]) -> Iterator[str]:
    """A line for each label; before those of each input its name, where there are several."""
    for name, result in zip(given, results, strict=True):
        if len(given) > 1:
            yield f"{name}:"
        for entry in result if isinstance(result, list) else [result]:
            yield f"{entry['score']:8.4f}  {entry['label']}"


def compare_labels(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str) -> Difference:
    """How ranked answers differ: which is the best, unless two are as good, and all scores."""
    by_name = {str(entry[key]): float(entry["score"]) for entry in ours}
    wanted = {str(entry[key]): float(entry["score"]) for entry in theirs}
    common = [name for name in wanted if name in by_name]
    largest = max((abs(score) for score in wanted.values()), default=1.0) or 1.0
    error = max((abs(by_name[name] - wanted[name]) for name in common), default=0.0) / largest
    best, theirs_best = str(ours[0][key]), str(theirs[0][key])
    tie = best in wanted and abs(wanted[best] - wanted[theirs_best]) <= 1e-5 * largest
    wrong = "" if best == theirs_best or tie else f"{best!r} where the original says {theirs_best!r}"
    return Difference("scores", error, wrong)
