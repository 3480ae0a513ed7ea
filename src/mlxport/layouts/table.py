"""The table of layouts, in the order in which they are asked whether a checkpoint is theirs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlxport.errors import MlxportError, UnsupportedError, UsageError
from mlxport.layouts.base import Layout
from mlxport.layouts.generated.language_layout import GENERATED_LM
from mlxport.layouts.generated.layout import GENERATED
from mlxport.layouts.generated.parts_layout import GENERATED_PARTS
from mlxport.layouts.generated.sequence_layout import GENERATED_SEQ2SEQ, GENERATED_SPEECH
from mlxport.layouts.hugging_face.layout import HUGGING_FACE
from mlxport.layouts.mlx_lm.layout import MLX_LM
from mlxport.layouts.mlx_vlm.layout import MLX_VLM
from mlxport.layouts.mlx_whisper.layout import MLX_WHISPER
from mlxport.model_config import ModelConfig
from mlxport.source import needs_remote_code, refuse_remote_code
from mlxport.source.timm_config import is_timm

if TYPE_CHECKING:
    from mlxport.types import Checkpoint

__all__ = [
    "AUTO",
    "chosen",
    "generates_instead",
    "in_words",
    "is_other_model",
    "layout_of",
    "layouts",
    "named",
    "names",
    "refuse_unknown_code",
    "register",
    "way_out",
    "why_not_the_runtimes",
    "why_not_generating",
]

AUTO = "auto"
_WITH_CACHE = (GENERATED_LM, GENERATED_SEQ2SEQ, GENERATED_SPEECH)
_BUILT_IN = (MLX_VLM, MLX_LM, MLX_WHISPER, *_WITH_CACHE, GENERATED_PARTS, GENERATED, HUGGING_FACE)
"""mlx-lm has the text models of some that mlx-vlm has whole."""
_GENERATIVE = ("CausalLM", "LMHead", "ConditionalGeneration")
_table: dict[str, Layout] = {}


def register(layout: Layout) -> Layout:
    """Add a layout to the table.

    Raises:
        ValueError: There is one of this name.
    """
    if layout.name in (*_table, AUTO):
        raise ValueError(f"there is a layout {layout.name!r} already")
    _table[layout.name] = layout
    return layout


for _layout in _BUILT_IN:
    register(_layout)


def layouts() -> tuple[Layout, ...]:
    """All layouts."""
    return tuple(_table.values())


def _chosen_by_name() -> list[Layout]:
    return [layout for layout in layouts() if not layout.backwards]


def names() -> tuple[str, ...]:
    """What ``--layout`` may be."""
    return (AUTO, *(layout.name for layout in _chosen_by_name()))


def in_words() -> str:
    """The names as a sentence, with what is to be said of each."""
    found = _chosen_by_name()
    *some, last = [f"{layout.name}: {layout.summary}" if layout.summary else layout.name for layout in found]
    return f"{', '.join((AUTO, *some))}, or {last}."


def named(name: str) -> Layout:
    """The layout of this name.

    Raises:
        UsageError: There is none.
    """
    if name not in _table:
        raise UsageError(f"--layout {name!r} does not exist", hint=f"choose one of {', '.join(names())}")
    return _table[name]


def chosen(
    asked: str, config: Mapping[str, Any], tensors: Collection[str] = (), *, cache: bool = True, text_only: bool = False
) -> Layout:
    """The layout to convert a checkpoint to.

    Where none claims it, mlx-lm's is taken: it says what is wrong.

    Args:
        asked: A name, or ``auto``.
        config: The checkpoint's config.
        tensors: Names of its tensors, where they are known.
        cache: Whether a port of a language model is to generate; without, it computes whole sequences.
        text_only: Whether the text model alone is wanted.

    Raises:
        UsageError: There is no layout of this name.
    """
    if asked == GENERATED.name and cache:
        return next((layout for layout in _WITH_CACHE if layout.claims(config, tensors)), GENERATED)
    if asked != AUTO:
        return named(asked)
    offered = [layout for layout in layouts() if cache or layout not in _WITH_CACHE]
    offered = [layout for layout in offered if not (text_only and layout.whole)]
    first = next((layout for layout in offered if layout.claims(config, tensors)), _usual(offered))
    # Asked in this order: for what the first layout computes right, transformers need not be imported.
    if cache and _computes_otherwise(first, config) and GENERATED_LM.claims(config, tensors):
        return GENERATED_LM
    return first


def _usual(offered: Sequence[Layout]) -> Layout:
    return MLX_LM if MLX_LM in offered else offered[0]


def _computes_otherwise(layout: Layout, config: Mapping[str, Any]) -> UnsupportedError | None:
    """The refusal of a model that the runtime has and would compute something else with; None where it has none."""
    try:
        layout.check(config, "config.json")
    except UnsupportedError as error:
        return error if is_other_model(error) else None
    except MlxportError:
        return None  # what is wrong with the config is said when it is opened
    return None


def is_other_model(error: MlxportError) -> bool:
    """Whether a refusal says that mlx-lm would compute something else than the original."""
    from mlxport.layouts.mlx_lm.rope_settings import REFUSED

    return isinstance(error, UnsupportedError) and error.hint == REFUSED


def generates_instead(error: MlxportError, checkpoint: Checkpoint, cache: bool) -> bool:
    """Whether a model that was refused, since mlx-lm would compute something else, can bring source of its own."""
    return cache and is_other_model(error) and GENERATED_LM.claims(checkpoint.config, checkpoint.tensors)


def why_not_the_runtimes(config: Mapping[str, Any]) -> str:
    """Why ``auto`` means another layout than that of mlx-lm's own models."""
    if is_timm(config):
        return f"mlx-lm has no models of timm, and this one is {str(config['architecture'])[:80]!r}"
    error = _computes_otherwise(MLX_LM, config)
    if error is None:
        return f"mlx-lm has no architecture {config.get('model_type')!r}"
    return error.message.removeprefix("config.json: ")


def refuse_unknown_code(config: Mapping[str, Any], source: str, trust_remote_code: bool = False) -> None:
    """Refuse a checkpoint that only its own code can make a model of, unless that is trusted.

    Code that lies beside a model which mlx-lm or transformers has is never run, and so asks for no trust.

    Raises:
        UnsafeError: Neither of them has its model type, and config.json names code that has.
    """
    if trust_remote_code or not needs_remote_code(config):
        return
    if not any(layout.claims(config, ()) for layout in layouts()):
        refuse_remote_code(config, source)


def way_out(config: Mapping[str, Any], source: str) -> str:
    """The next step for a checkpoint that mlx-lm has no model for, or would compute something else with."""
    if MLX_WHISPER.claims(config, ()):
        command = f"mlxport convert {shlex.quote(source)} DST"
        return f"it converts to {MLX_WHISPER.name}'s layout, which that and mlxport run transcribe with: {command}"
    if GENERATED_LM.claims(config, ()):
        command = f"mlxport convert {shlex.quote(source)} DST"
        return f"it converts to MLX source of its own, which mlx-lm runs and is verified against PyTorch: {command}"
    if GENERATED_SEQ2SEQ.claims(config, ()):
        command = f"mlxport convert {shlex.quote(source)} DST"
        return f"it converts to MLX source of its own, verified against PyTorch, for mlxport run: {command}"
    if GENERATED_PARTS.claims(config, ()):
        command = f"mlxport convert {shlex.quote(source)} DST"
        return f"it converts to MLX source of its own, a file for each part, verified against PyTorch: {command}"
    if GENERATED.claims(config, ()):
        asked = "" if chosen(AUTO, config) is GENERATED else f" --layout {GENERATED.name}"
        command = f"mlxport convert {shlex.quote(source)} DST{asked}"
        return f"it converts to a port, MLX source of its own that is verified against PyTorch: {command}"
    return "a module of your own is ported by: mlxport port FILE.py:FACTORY DST"


def why_not_generating(layout: Layout, config: Mapping[str, Any], folder: str) -> tuple[str, str] | None:
    """Why ``generate`` and ``chat`` cannot run a folder of this layout, and what to do; None if they can.

    Another layout is named only where it takes the model: a language model that is one by its class.
    """
    if layout.not_generating is None:
        return None
    what, hint = layout.not_generating
    original = {key: value for key, value in config.items() if key != "model_file"}  # which this layout has added
    able = [it for it in layouts() if it.not_generating is None and not layout.whole]
    other = next((it for it in able if _takes(it, original)), None)
    more = f"; to generate, convert the original with --layout {other.name}" if other is not None else ""
    return what, hint.replace("PATH", repr(folder)) + more


def _takes(layout: Layout, config: Mapping[str, Any]) -> bool:
    classes = ModelConfig(config).architectures
    if not any(word in name for name in classes for word in _GENERATIVE) or not layout.claims(config, ()):
        return False
    try:
        layout.check(config, "config.json")
    except MlxportError:
        return False
    return True


def layout_of(config: Mapping[str, Any], record: Mapping[str, Any]) -> Layout:
    """The layout of a converted folder, by its record, else by its config; folders of mlx-lm itself have no record.

    Raises:
        UsageError: The record names one that does not exist.
    """
    options = record.get("options")
    name = options.get("layout") if isinstance(options, Mapping) else None
    if name is not None:
        return named(str(name))
    wrote = (layout for layout in layouts() if layout.wrote(config))
    whole = (layout for layout in layouts() if layout.whole and layout.claims(config, ()))
    return next(wrote, None) or next(whole, _usual(layouts()))
