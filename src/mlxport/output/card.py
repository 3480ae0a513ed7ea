"""The model card of an output: licence and origin from the source's card, what was done, what was measured.

Format: https://huggingface.co/docs/hub/model-cards. The source's card is hostile input: only known fields of the right
kind are taken over, and none of its text.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxport.layouts.left_out import parts_in_words
from mlxport.types import Checkpoint, Plan

__all__ = ["SourceCard", "model_card", "read_source_card"]

_MAX_CARD = 1_000_000
_MAX_FRONT = 200_000
_MAX_ITEMS = 100
_MAX_LENGTH = 300
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TEXT_FIELDS = ("license", "license_name", "license_link", "pipeline_tag")
_LIST_FIELDS = ("language", "base_model", "datasets", "tags")


@dataclass(frozen=True)
class SourceCard:
    """What is taken over from the source's README.md.

    Attributes:
        data: Known fields: strings, and lists of strings.
        problem: What was wrong with the card, empty when nothing was.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_source_card(root: Path) -> SourceCard:
    """Read the front matter of ``README.md`` in `root`; never raises for what the file contains."""
    file = root / "README.md"
    if not file.is_file():
        return SourceCard(problem="the source has no model card")
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_CARD).decode("utf-8", errors="replace").removeprefix("\ufeff")
    except OSError as error:
        return SourceCard(problem=f"the source's model card cannot be read ({error.strerror})")
    match = _FRONT.match(text)
    if match is None:
        return SourceCard(problem="the source's model card has no metadata")
    return _parse(match.group(1))


def _parse(front: str) -> SourceCard:
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    if len(front) > _MAX_FRONT:
        return SourceCard(problem=f"the metadata of the source's model card is longer than {_MAX_FRONT} bytes")
    try:
        card = ModelCard(f"---\n{front}\n---\n", ignore_metadata_errors=True)
        raw = {key: getattr(card.data, key, None) for key in (*_TEXT_FIELDS, *_LIST_FIELDS)}
    # YAML constructors raise ValueError (dates, integers), card classes TypeError and AttributeError for odd keys.
    except (YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return SourceCard(problem=f"the metadata of the source's model card is malformed ({type(error).__name__})")
    data: dict[str, Any] = {}
    dropped = []
    for key, value in raw.items():
        if value is None:
            continue
        kept: Any = _text(value) if key in _TEXT_FIELDS else _texts(value)
        if kept:
            data[key] = kept
        else:
            dropped.append(key)
    problem = f"the source's model card has malformed fields: {', '.join(dropped)}" if dropped else ""
    return SourceCard(data, problem)


def _text(value: Any) -> str | None:
    if value is False:
        return "no"  # YAML 1.1 reads the language code of Norwegian as a boolean
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if 0 < len(value) <= _MAX_LENGTH and value.isprintable() else None


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    texts = [text for item in items[:_MAX_ITEMS] if (text := _text(item)) is not None]
    return list(dict.fromkeys(texts))


def model_card(
    checkpoint: Checkpoint,
    plan: Plan,
    parity: Mapping[str, Any] | None,
    version: str,
    *,
    usage: str,
    task: str = "",
    library: str = "mlx",
) -> str:
    """Return the text of the output's ``README.md``.

    Args:
        checkpoint: The opened source.
        plan: What was written.
        parity: The parity report as recorded (``ParityReport.to_json()``), None when the output was not verified.
        version: Version of mlxport.
        usage: How the output is used.
        task: What it is for, as Hugging Face names tasks, unless the source's card says so; empty for nothing.
        library: What loads it; another one than ``mlx`` is what the source, an MLX folder, was brought back to.
    """
    source = read_source_card(checkpoint.root)
    bases = base_models(checkpoint, source)
    data = _of_text_alone(source.data) if plan.left_out else source.data
    front = _front_matter(data, bases, bool(plan.quantized), task, library)
    body = [_origin(checkpoint, plan, source, bases, version, library), _parity(parity, library)]
    body += [usage, _license(source)]
    return f"---\n{front}\n---\n\n" + "\n\n".join(body) + "\n"


def base_models(checkpoint: Checkpoint, source: SourceCard) -> list[str]:
    """Return hub ids of what the output derives from; a path of the converting machine never gets in."""
    if checkpoint.repo_id is not None:
        return [checkpoint.repo_id]
    return [name for name in source.data.get("base_model", []) if _HUB_ID.fullmatch(name)]


def _of_text_alone(data: Mapping[str, Any]) -> dict[str, Any]:
    """A card's fields without the task that the parts which were left out were for."""
    task = data.get("pipeline_tag")
    tags = [tag for tag in data.get("tags", []) if tag != task]
    return {key: value for key, value in data.items() if key != "pipeline_tag"} | {"tags": tags}


def _front_matter(data: Mapping[str, Any], bases: Sequence[str], quantized: bool, task: str, library: str) -> str:
    from huggingface_hub import ModelCardData

    tags = [tag for tag in data.get("tags", []) if library == "mlx" or tag != "mlx"]
    languages = data.get("language", [])
    card = ModelCardData(
        license=data.get("license"),
        license_name=data.get("license_name"),
        license_link=data.get("license_link"),
        language=(languages[0] if len(languages) == 1 else languages) or None,
        base_model=(bases[0] if len(bases) == 1 else list(bases)) or None,
        base_model_relation="quantized" if quantized and bases else None,
        library_name=library,
        pipeline_tag=data.get("pipeline_tag", task or None),
        tags=list(dict.fromkeys([*tags, *(["mlx"] if library == "mlx" else []), "mlxport"])),
        datasets=data.get("datasets"),
    )
    return str(card.to_yaml())


def _code(text: str) -> str:
    """Return `text` as inline code that no name can break out of."""
    clean = "".join(char if char.isprintable() else " " for char in text).replace("`", "'").strip()
    return f"`{clean[:_MAX_LENGTH] or 'unnamed'}`"


def _origin(
    checkpoint: Checkpoint, plan: Plan, source: SourceCard, bases: Sequence[str], version: str, library: str
) -> str:
    name = checkpoint.name.rpartition("/")[2] or "model"
    if checkpoint.repo_id is not None:
        revision = f" at revision {_code(checkpoint.revision)}" if checkpoint.revision else ""
        origin = f"[{checkpoint.repo_id}](https://huggingface.co/{checkpoint.repo_id}){revision}"
    elif checkpoint.module:
        origin = f"a PyTorch module of the class {_code(checkpoint.module)}"
    else:
        origin = f"a local folder named {_code(name)}"
        if bases:
            origin += f", whose own model card names {', '.join(map(_code, bases))} as its base"
    lines = [
        f"# {_code(name)} for {'MLX' if library == 'mlx' else library}",
        "",
        f"{'Converted' if library == 'mlx' else 'Brought back from MLX'} with mlxport {version} from {origin}.",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {_code(str(checkpoint.config.get('model_type', 'unknown')))} |",
        f"| parameters | {plan.parameters:,} |",
        f"| dtype | {plan.dtype} |",
        f"| quantization | {_quantization(plan)} |",
        f"| size | {plan.nbytes:,} bytes in {len(plan.shards)} file{'s' if len(plan.shards) != 1 else ''}, "
        f"{plan.bits_per_weight:.2f} bits per weight |",
    ]
    if plan.left_out:
        lines.append(f"| left out | {_cell(parts_in_words(plan.left_out))}: this is the text model alone |")
    if source.problem:
        lines += ["", f"Note: {source.problem}, so licence and origin may be incomplete."]
    return "\n".join(lines)


def _quantization(plan: Plan) -> str:
    if not plan.quantized:
        return "none"
    specs = Counter(plan.quantized.values()).most_common()
    parts = [f"{spec.mode} {spec.bits} bits, groups of {spec.group_size}: {count} modules" for spec, count in specs]
    kept = f"; {len(plan.kept)} modules left as they are" if plan.kept else ""
    return "; ".join(parts) + kept


def _parity(parity: Mapping[str, Any] | None, library: str) -> str:
    source = "original" if library == "mlx" else "MLX folder"
    lines = [f"## Parity with the {source}", ""]
    if parity is None:
        return "\n".join([*lines, f"This output was not verified: it was not run against the {source}."])
    verdict = "passed" if parity.get("passed") else "failed"
    if (by := _RUN_BY.get(str(parity.get("mode")))) is not None:
        return "\n".join([*lines, *_ported(parity, verdict, by)])
    how = f"{parity.get('mode')} comparison on {parity.get('tokens')} tokens"
    sides = "This output, as mlx-lm loads it, against PyTorch"
    if library != "mlx":
        sides = "The MLX folder, as mlx-lm loads it, against this output in transformers"
    lines.append(f"{sides}: {verdict} ({how}).")
    comparisons = [item for item in _list(parity.get("comparisons")) if isinstance(item, Mapping)]
    if comparisons:
        lines += [
            "",
            "| logits compared | max abs | mean abs | cosine (mean) | same top token | KL, nats |",
            "|---|---|---|---|---|---|",
            *map(_comparison, comparisons),
        ]
    remarks = []
    layers = [item.get("relative") for item in _list(parity.get("layers")) if isinstance(item, Mapping)]
    errors = [error for error in layers if isinstance(error, (int, float))]
    if errors:
        remarks.append(f"- hidden states after {len(errors)} modules: relative error at most {_figure(max(errors))}")
    remarks += _weights(parity)
    positions = parity.get("positions")
    if isinstance(positions, Mapping):
        remarks.append(f"- proven up to position {positions.get('proven')} of {positions.get('end')}")
    remarks += _generation(parity)
    remarks += [f"- {_cell(note)}" for note in _list(parity.get("notes"))]
    return "\n".join([*lines, "", *remarks] if remarks else lines)


_RUN_BY: Mapping[str, str] = {"ported": "run by its own `model.py`", "pictures": "as mlx-vlm loads it"}
"""Of comparisons of single outputs, by what is said to be their mode."""


def _ported(parity: Mapping[str, Any], verdict: str, by: str) -> list[str]:
    """Every output of every input set."""
    lines = [f"This output, {by}, against PyTorch in float32: {verdict}.", ""]
    lines += ["| inputs | output | max abs | of the scale | cosine |", "|---|---|---|---|---|"]
    for item in _list(parity.get("comparisons")):
        figures = " | ".join(_figure(item.get(key)) for key in ("max_abs", "relative", "cosine"))
        inputs = ": ".join(str(item[key]) for key in ("compared", "inputs") if item.get(key))
        lines.append(f"| {_cell(inputs)} | {_cell(item.get('name'))} | {figures} |")
    return [*lines, "", *_weights(parity), *(f"- {_cell(note)}" for note in _list(parity.get("notes")))]


def _generation(parity: Mapping[str, Any]) -> list[str]:
    found = parity.get("generation")
    if not isinstance(found, Mapping):
        return []
    checks = [check for check in _list(found.get("checks")) if isinstance(check, Mapping)]
    well = [str(check.get("name")) for check in checks if not check.get("failure") and not check.get("limit")]
    limits = [f"; {check.get('name')}: {check.get('limit')}" for check in checks if check.get("limit")]
    lines = f"{found.get('equal')} of {found.get('tokens')} tokens as the original's; equal: {', '.join(well)}"
    return [f"- generation: {_cell(lines + ''.join(limits))}"]


def _weights(parity: Mapping[str, Any]) -> list[str]:
    weights = parity.get("weights")
    if not isinstance(weights, Mapping):
        return []
    worst = f"relative difference at most {_figure(weights.get('relative'))} ({_cell(weights.get('worst'))})"
    return [f"- stored weights, {weights.get('tensors')} tensors: {worst}"]


def _comparison(item: Mapping[str, Any]) -> str:
    figures = [_figure(item.get(key)) for key in ("max_abs", "mean_abs", "cosine_mean")]
    top1 = item.get("top1")
    figures += [f"{top1:.1%}" if isinstance(top1, (int, float)) else "-", _figure(item.get("kl_mean"))]
    return f"| {_cell(item.get('name'))} | {' | '.join(figures)} |"


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _cell(value: Any) -> str:
    """Return text that stays in its line and its column."""
    return " ".join(str(value).replace("|", "/").split())


def _figure(value: Any) -> str:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    return f"{value:.6f}" if 0.001 <= abs(value) <= 1 else f"{value:.3g}"


def _license(source: SourceCard) -> str:
    stated = source.data.get("license_name") or source.data.get("license")
    if stated:
        return f"## Licence\n\n{_code(stated)}, as the source's model card states; conversion does not change it."
    return "## Licence\n\nThe source's model card states none. The original's licence applies; look it up before use."
