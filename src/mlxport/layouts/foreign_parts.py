"""What is no part of the model itself: adapters that were not merged into it, heads for another task, code for MLX."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from mlxport.errors import UnsupportedError
from mlxport.layouts.base import PORT_FILE
from mlxport.progress import listed
from mlxport.source.written_code import PARTS

__all__ = ["refuse_adapters", "refuse_heads", "refuse_mlx_code"]

# The names that peft gives: https://github.com/huggingface/peft, src/peft/tuners/*/layer.py (adapter_layer_names).
_ADAPTER = re.compile(
    r"(?:^|\.)(?:base_layer|modules_to_save|original_module|lora_(?:[AB]|embedding_[AB]|magnitude_vector)|ia3_l"
    r"|ada?lora_\w+|hada_[wt]\d(?:_[ab])?|lokr_[wt]\d(?:_[ab])?|oft_[RS]|boft_[RS]|vera_lambda_[bd]|vblora_\w+)(?:\.|$)"
)
# Of what transformers and trl call the layer that stands for the output layer; the task is that of a model's class.
_HEADS: Mapping[str, str] = {
    "score": "SequenceClassification",
    "classification_head": "SequenceClassification",
    "pre_classifier": "SequenceClassification",
    "classifier": "SequenceClassification",
    "qa_outputs": "QuestionAnswering",
    "v_head": "",
    "value_head": "",
    "reward_head": "",
    "regression_head": "",
}
_HEAD = re.compile(rf"(?:.*\.)?(?P<head>{'|'.join(_HEADS)})\.(?:.*\.)?(?:weight|bias)")
_TASK = re.compile(r"For(?P<task>\w*(?:Classification|QuestionAnswering|MultipleChoice))$")


def refuse_mlx_code(config: Mapping[str, Any], where: str, known: bool = False) -> None:
    """Refuse a folder whose model is built by MLX source that lies in it: its weights are that source's.

    Args:
        config: The parsed ``config.json``.
        where: What to call the config in the error: its path, where it has one.
        known: Whether a runtime has an architecture of the same model type.

    Raises:
        UnsupportedError: Names what to convert instead.
    """
    file = config.get("model_file")
    if file is None and PARTS not in config:
        return
    named_by = PARTS if file is None else "model_file"
    hint = "convert the PyTorch original that it was made from"
    if folder := where.rpartition("/config.json")[0]:
        hint += f"; how this folder is used says: mlxport inspect {shlex.quote(folder)}"
    if known and file not in (None, PORT_FILE):  # ours have weights of other shapes and names
        hint += "; or delete model_file from config.json, if mlx-lm's own code is meant"
    raise UnsupportedError(
        f"{where}: the model is built by code of its own for MLX ({named_by}), which is not run to convert it",
        hint=hint,
    )


def refuse_adapters(names: Iterable[str], source: str) -> None:
    """Refuse tensors of adapters (LoRA and its like): a model without them is another one.

    Args:
        names: Tensors that the model has no place for, or does not use.
        source: What to call the checkpoint.
    """
    found = [name for name in names if _ADAPTER.search(name)]
    if found:
        raise UnsupportedError(
            f"{source} holds an adapter (LoRA or its like) that is not merged into the weights: {listed(found)}",
            hint="merge it with peft where it was trained, then convert FOLDER: "
            "model.merge_and_unload().save_pretrained(FOLDER)",
        )


def refuse_heads(names: Iterable[str], config: Mapping[str, Any], source: str) -> None:
    """Refuse the head of a classifier or of a reward model, which a language model has no place for.

    Args:
        names: Tensors that the model has no place for, or does not use.
        config: The checkpoint's config.json.
        source: What to call the checkpoint.
    """
    found = [name for name in names if _HEAD.fullmatch(name)]
    if not found:
        return
    match = _HEAD.fullmatch(found[0])
    assert match is not None
    kind, hint = _head_hint(match["head"], config)
    raise UnsupportedError(
        f"{source} holds {kind} ({listed(found)}), and mlx-lm's models end in the output layer of a language model",
        hint=hint,
    )


def _head_hint(head: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """What kind of head it is, and how the model is converted with it."""
    own = config.get("architectures")
    for name in own if isinstance(own, list) else ():
        if _TASK.search(str(name)):
            return f"the head of {name}", f"add --layout generated: the port is a {name}, head included"
    if (task := _HEADS[head]) and (name := _class_name(str(config.get("model_type")), task)):
        return "the head of a classifier", (
            f'set "architectures": ["{name}"] in config.json and add --layout generated, which keeps the head; '
            "or remove its tensors if the language model is wanted"
        )
    return "the head of a reward or value model" if not task else "the head of a classifier", (
        "port the module that has it: mlxport port FILE.py:FACTORY DST; "
        "or remove its tensors if the language model is wanted"
    )


def _class_name(model_type: str, task: str) -> str | None:
    """The class of transformers for a task, as its table of names has it."""
    if importlib.util.find_spec("torch") is None:
        return None
    from transformers.models.auto import modeling_auto

    table = {
        "SequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "QuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }[task]
    name = table.get(model_type)
    return name if isinstance(name, str) else None
