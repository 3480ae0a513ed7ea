"""Look into a checkpoint before it is converted: what it is, how large, and what is wrong with it.

Reads headers and JSON files only, never the weights. Works on sources and on MLX outputs alike.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.errors import ConfigError, MlxportError, SourceError
from mlxport.inspect.code_seen import code_seen
from mlxport.inspect.dtype_counts import DtypeCount, count_by_dtype, count_parameters, describe_quantization
from mlxport.layouts.base import Layout
from mlxport.layouts.left_out import left_out, said_before
from mlxport.layouts.mlx_vlm.families import picture_of
from mlxport.layouts.mlx_vlm.picture_tokens import PictureTokens
from mlxport.layouts.table import AUTO, chosen, layouts, way_out
from mlxport.model_config import ModelConfig
from mlxport.output.card import read_source_card
from mlxport.run.load import is_mlx_format
from mlxport.run.tasks.task_table import find_task, needs_text, pipeline_class, task_command
from mlxport.source.jsonfile import read_object
from mlxport.source.local_folder import ignored
from mlxport.source.open_clip_config import is_open_clip
from mlxport.source.part_names import TOWER
from mlxport.source.processor_files import PROCESSORS, ProcessorInfo, read_processor
from mlxport.source.tiktoken_tokenizer import made_tokenizer
from mlxport.source.timm_config import is_timm
from mlxport.source.tokenizer_files import check_tokenizer_files, embedding_rows
from mlxport.types import Checkpoint, ModelPart, TensorRef

if TYPE_CHECKING:
    pass

__all__ = ["Inspection", "inspect", "inspect_checkpoint"]

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "lm_head.scales", "lm_head.qweight")
# Settings of generation_config.json that transformers applies and mlx-lm does not -> the value that is off.
_NOT_APPLIED = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": None, "bad_words_ids": None}
_LARGEST = 5


@dataclass(frozen=True)
class TokenizerInfo:
    """What the tokenizer's files say.

    Attributes:
        kind: Its class, None where no file names it.
        vocabulary: Number of ids, the added tokens included; None where only code could tell.
        chat_template: Whether there is one.
        special: Special tokens by role.
    """

    kind: str | None
    vocabulary: int | None
    chat_template: bool
    special: Mapping[str, str]


@dataclass(frozen=True)
class LargeTensor:
    """One of the largest tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint.

    Attributes:
        name: Repository id or folder name.
        architecture: Class name in the config, timm's name of one of its models, OpenCLIP, None where it gives none.
        model_type: The config's.
        mlx_lm: Module of mlx-lm that loads it, None where mlx-lm has none.
        port: Whether it is a port, which source that lies in it builds: what mlx-lm has of its kind does not matter.
        task: What it is for, as Hugging Face names tasks, and ``mlxport run`` does; None where nothing says.
        runs: The command that does its task once it is converted, empty for language models and where nothing says.
        way_out: How it is converted where mlx-lm has none, or would compute something else, and how a port is used;
            else empty.
        mlx_format: Whether the weights are in MLX's layout already (mlxport, mlx-lm); None where that cannot be told
            because the files are not here.
        parameters: Number of weights; packed ones are counted unpacked.
        nbytes: Bytes of all tensors.
        tensors: Number of tensors.
        dtypes: Dtype to what is stored in it.
        largest: The largest tensors.
        layers: Number of layers.
        vocabulary: Rows of the token embedding.
        context_length: Longest sequence the model was made for.
        rope: Rope settings, None where the config has none.
        tied: Whether input and output embedding are one tensor, None where that cannot be told.
        tokenizer: The tokenizer, None where there is none.
        processor: What prepares pictures or sound, None where there is none.
        picture: What a picture of a usual size becomes, of models of pictures and text.
        tower_bytes: What of the weights only pictures need, of these models.
        reads_text: Whether it is for texts, read or written; False of classifiers of pictures, which want no tokenizer.
        quantization: How the weights are quantized, None when they are not.
        files: Weight file names to their bytes.
        license: What the model card states.
        code: What code it brings, and when that would run; nothing of it has been run.
        config_changes: What mlx-lm by itself would read otherwise than transformers; ``convert`` puts it right.
        left_out: Parts of the model that mlx-lm has no code for: ``convert`` leaves them out with ``--text-only``.
        problems: What is wrong with the checkpoint.
    """

    name: str
    architecture: str | None
    model_type: str
    mlx_lm: str | None
    mlx_format: bool | None
    parameters: int
    nbytes: int
    tensors: int
    dtypes: Mapping[str, DtypeCount]
    largest: tuple[LargeTensor, ...]
    layers: int | None
    vocabulary: int | None
    context_length: int | None
    rope: Mapping[str, Any] | None
    tied: bool | None
    tokenizer: TokenizerInfo | None
    quantization: Mapping[str, Any] | None
    files: Mapping[str, int]
    license: str | None
    code: tuple[str, ...] = ()
    port: bool = False
    task: str | None = None
    runs: str = ""
    processor: ProcessorInfo | None = None
    picture: PictureTokens | None = None
    tower_bytes: int = 0
    reads_text: bool = True
    way_out: str = ""
    config_changes: tuple[str, ...] = ()
    left_out: tuple[ModelPart, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "picture": None if self.picture is None else self.picture.to_json()}


def inspect(path: str | Path, *, revision: str | None = None) -> Inspection:
    """Look into a folder or a hub repository, of which only JSON files and headers are fetched.

    Raises:
        SourceError: It cannot be opened at all; see :func:`mlxport.source.open_checkpoint`.
    """
    from mlxport.source import open_checkpoint

    return inspect_checkpoint(open_checkpoint(path, revision=revision, headers_only=True))


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Look into an opened checkpoint; what is wrong becomes a line of ``problems``, not an error."""
    config, tensors = checkpoint.model_config, checkpoint.tensors
    side = {path.name: path for path in checkpoint.side_files if path.parent == checkpoint.root}
    quantization = describe_quantization(config, tensors)
    mlx_format = _mlx_format(checkpoint)
    port = next((layout for layout in layouts() if layout.wrote(checkpoint.config)), None)
    support, convertible, changes, problems = (None, False, (), []) if port else _runtime(checkpoint, mlx_format)
    layout = port or chosen(AUTO, checkpoint.config, tensors)
    task = find_task(checkpoint.root, checkpoint.config, layout)
    tokenizer, tokenizer_problems = _tokenizer(checkpoint, side, task in (None, "text-generation"))
    processor, processor_problems = _processor(checkpoint, side, task)
    picture, picture_problems = _picture(checkpoint, side)
    reads_text = needs_text(task) if task else tokenizer is not None or processor is None
    if tokenizer is None and (not reads_text or (port is not None and not port.tokenizer)):
        tokenizer_problems = []
    whole = next((it for it in layouts() if it.whole and it.claims(checkpoint.config, checkpoint.tensors)), None)
    parts = _left_out(checkpoint) if support and whole is None else ()
    changes = changes if whole is None else ()  # of the text model alone, for mlx-lm
    problems = [
        *_problems_of_folder(checkpoint, port),
        *problems,
        *said_before(parts),
        *tokenizer_problems,
        *processor_problems,
        *picture_problems,
    ]
    problems += _weight_problems(config, tensors, quantization)
    problems += _generation_problems(side.get("generation_config.json"), config, support is not None)
    card = read_source_card(checkpoint.root).data
    largest = sorted(tensors.values(), key=lambda ref: -ref.nbytes)[:_LARGEST]
    return Inspection(
        name=checkpoint.name,
        architecture=_architecture(checkpoint),
        model_type=config.model_type or "unknown",
        mlx_lm=support,
        mlx_format=mlx_format,
        parameters=count_parameters(config, tensors),
        nbytes=checkpoint.nbytes,
        tensors=len(tensors),
        dtypes=count_by_dtype(tensors),
        largest=tuple(LargeTensor(ref.name, ref.dtype, ref.shape, ref.nbytes) for ref in largest),
        layers=config.layers,
        vocabulary=_vocabulary(checkpoint),
        context_length=config.context_length,
        rope=_rope(config.text),
        tied=_tied(config, tensors),
        tokenizer=tokenizer,
        processor=processor,
        picture=picture,
        tower_bytes=0 if picture is None else sum(ref.nbytes for ref in tensors.values() if TOWER.search(ref.name)),
        reads_text=reads_text,
        quantization=quantization,
        files={
            path.name: sum(ref.nbytes for ref in tensors.values() if ref.path == path)
            for path in checkpoint.weight_files
        },
        license=card.get("license_name") or card.get("license"),
        code=tuple(code_seen(checkpoint)),
        port=port is not None,
        task=task,
        runs=task_command(task, "DST") if task not in (None, "text-generation") and port is None else "",
        way_out=_for_runtime(whole) if whole is not None else "" if convertible else _way_out(checkpoint, port, task),
        config_changes=changes,
        left_out=parts,
        problems=tuple(dict.fromkeys(problems)),
    )


def _architecture(checkpoint: Checkpoint) -> str | None:
    config = checkpoint.model_config
    if is_open_clip(checkpoint.root):
        return "OpenCLIP"
    if is_timm(config.values):  # transformers has one class for all of them
        return str(config.values["architecture"])
    return config.architectures[0] if config.architectures else None


def _for_runtime(layout: Layout) -> str:
    return f"all of it for {layout.run_by} (layout {layout.name}); --text-only converts the text model alone"


def _way_out(checkpoint: Checkpoint, port: Layout | None, task: str | None) -> str:
    if port is not None and port.not_generating is not None:
        if task is not None:
            return f"mlxport run {shlex.quote(str(checkpoint.root))} INPUT"
        return port.not_generating[1].replace("PATH", repr(str(checkpoint.root)))
    return way_out(checkpoint.config, checkpoint.location)


def _problems_of_folder(checkpoint: Checkpoint, port: Layout | None) -> list[str]:
    """What was found when it was opened, but what a port has beside its weights."""
    files = port.files if port is not None else ()
    own = {ignored(path.name) for pattern in files for path in checkpoint.root.glob(pattern)}
    return [problem for problem in checkpoint.problems if problem not in own]


def _left_out(checkpoint: Checkpoint) -> tuple[ModelPart, ...]:
    """Parts that mlx-lm's conversion leaves out; traced only where names or the config tell of any."""
    if not checkpoint.model_config.has_text_part and not any(TOWER.search(name) for name in checkpoint.tensors):
        return ()
    from mlxport.layouts.mlx_lm.opening import open_model

    try:
        program = open_model(checkpoint, headers_only=True).plain.program
    except MlxportError:
        return ()  # said by convert: what stands in the way of the text model comes first
    return left_out(checkpoint, program)


def _mlx_format(checkpoint: Checkpoint) -> bool | None:
    if is_mlx_format(checkpoint.root, checkpoint.config, ()):
        return True
    if not all(path.is_file() for path in checkpoint.weight_files):
        return None
    return is_mlx_format(checkpoint.root, checkpoint.config, checkpoint.weight_files)


def _vocabulary(checkpoint: Checkpoint) -> int | None:
    return embedding_rows(checkpoint.config, {name: ref.shape for name, ref in checkpoint.tensors.items()})


def _rope(text: Mapping[str, Any]) -> dict[str, Any] | None:
    keys = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
    return {key: text[key] for key in keys if text.get(key) is not None} or None


def _runtime(checkpoint: Checkpoint, mlx_format: bool | None) -> tuple[str | None, bool, tuple[str, ...], list[str]]:
    """Return mlx-lm's module, whether it computes the same, what it would misread, and the problems with that."""
    from mlxport.layouts.mlx_lm.architecture import NoArchitecture, mlx_lm_architecture
    from mlxport.layouts.mlx_lm.normalize import ConfigRefused, normalize_config

    config, module = checkpoint.config, None
    try:
        module = mlx_lm_architecture(config)
        changes = normalize_config(config).changes
    except NoArchitecture as none:
        # Said beside the layout that takes it instead; a problem only where there is none.
        return (
            None,
            False,
            (),
            [] if any(layout.claims(config, checkpoint.tensors) for layout in layouts()) else [str(none)],
        )
    except ConfigRefused as refused:
        return module, False, (), [f"not convertible for mlx-lm: {refused}" if module else str(refused)]
    except ConfigError as error:
        return module, True, (), [f"config.json is {error.message}"]
    if mlx_format and changes:
        return (
            module,
            True,
            changes,
            [f"mlx-lm computes something else than the original: it needs {'; '.join(changes)}"],
        )
    return module, True, changes, []


def _tied(config: ModelConfig, tensors: Mapping[str, TensorRef]) -> bool | None:
    if config.tied is not None:
        return config.tied
    return None if _is_causal(config) is False else not _has_head(tensors)


def _is_causal(config: ModelConfig) -> bool:
    return any("CausalLM" in name or "LMHead" in name for name in config.architectures)


def _has_head(tensors: Mapping[str, TensorRef]) -> bool:
    return any(name.endswith(_HEADS) for name in tensors)


def _tokenizer(
    checkpoint: Checkpoint, side: Mapping[str, Path], may_chat: bool
) -> tuple[TokenizerInfo | None, list[str]]:
    problems: list[str] = []
    try:
        problems += check_tokenizer_files(checkpoint, _vocabulary(checkpoint))
    except SourceError as error:
        problems.append(error.message)
    if not any("token" in name or name.startswith(("vocab", "spiece", "tekken")) for name in side):
        return None, problems
    settings, trouble = _object(side.get("tokenizer_config.json"))
    kind, vocabulary = settings.get("tokenizer_class"), _ids(side)
    with contextlib.suppress(SourceError):  # which has been said
        if (made := made_tokenizer(checkpoint.root)) is not None:
            kind, vocabulary, settings = made.name, made.size, made.settings
    special_map, more = _object(side.get("special_tokens_map.json"))
    problems += trouble + more
    template = "chat_template.jinja" in side or "chat_template.json" in side or bool(settings.get("chat_template"))
    if not template and may_chat:
        problems.append("no chat template: fine for a base model, but mlxport chat needs one")
    special = {}
    for role in _SPECIAL:
        value = settings.get(role) or special_map.get(role)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            special[role] = value
    return TokenizerInfo(kind if isinstance(kind, str) else None, vocabulary, template, special), problems


def _processor(
    checkpoint: Checkpoint, side: Mapping[str, Path], task: str | None
) -> tuple[ProcessorInfo | None, list[str]]:
    """What prepares pictures or sound, and what is wrong with that: a task may want one that is not there."""
    try:
        found = read_processor(side, checkpoint.config)
    except SourceError as error:
        return None, [error.message]
    reads = pipeline_class(task).reads if task else "text"
    if found is None and reads != "text" and not is_open_clip(checkpoint.root):
        return None, [f"{checkpoint.name} does not say how a {reads} is prepared (no {' or '.join(PROCESSORS)})"]
    return found, []


def _picture(checkpoint: Checkpoint, side: Mapping[str, Path]) -> tuple[PictureTokens | None, list[str]]:
    """What a picture becomes, and what stands in the way of counting it."""
    try:
        return picture_of(checkpoint.config, side), []
    except SourceError:
        return None, []  # said of the processor
    except ConfigError as error:
        return None, [error.message]


def _ids(side: Mapping[str, Path]) -> int | None:
    """Return one more than the largest id that the tokenizer's JSON files give, None where they give none."""
    data, trouble = _object(side.get("tokenizer.json"))
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if vocabulary is None and not trouble:
        vocabulary, _ = _object(side.get("vocab.json"))
    ids = list(range(len(vocabulary))) if isinstance(vocabulary, list) else []
    ids += [value for value in vocabulary.values() if type(value) is int] if isinstance(vocabulary, Mapping) else []
    added = data.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, Mapping) and type(token.get("id")) is int:
            ids.append(token["id"])
    return max(ids) + 1 if ids else None


def _object(path: Path | None) -> tuple[dict[str, Any], list[str]]:
    if path is None:
        return {}, []
    try:
        return read_object(path, SourceError, unique=False), []
    except SourceError as error:
        return {}, [error.message]


def _weight_problems(
    config: ModelConfig, tensors: Mapping[str, TensorRef], quantization: Mapping[str, Any] | None
) -> Iterator[str]:
    floats = {dtype: count for dtype, count in count_by_dtype(tensors).items() if dtype in _DTYPES.values()}
    if config.dtype is not None and floats and quantization is None:
        expected, most = _DTYPES.get(config.dtype), next(iter(floats))
        if expected is not None and expected != most:
            yield f"config.json says {config.dtype}, most weights are {most}"
    if config.tied is False and _is_causal(config):
        if tensors and not _has_head(tensors):
            yield "config.json says that the output embedding is not tied, and the weights hold none"
    if config.tied is True and quantization is None and any(n.endswith(_HEADS[0]) for n in tensors):
        yield "config.json says that the output embedding is tied, and the weights hold one of their own (not used)"
    empty = [name for name, ref in tensors.items() if ref.size == 0]
    if empty:
        yield f"{len(empty)} tensors are empty, the first is {empty[0]}"


def _generation_problems(path: Path | None, config: ModelConfig, by_mlx_lm: bool) -> Iterator[str]:
    data, trouble = _object(path)
    yield from trouble
    own = data.get("eos_token_id", config.first("eos_token_id"))
    size = config.vocabulary
    for key, value in (("eos_token_id", own), ("pad_token_id", data.get("pad_token_id"))):
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (type(token) is not int or token < 0 or (size is not None and token >= size)):
                yield f"{key} {token!r} is not an id of the vocabulary"
    if own is None and _is_causal(config):
        yield "no eos_token_id in generation_config.json or config.json: generation ends at the token limit only"
    for key, off in _NOT_APPLIED.items() if by_mlx_lm else ():
        if data.get(key, off) not in (off, None, []):
            yield f"generation_config.json sets {key} {data[key]!r}, which mlx-lm does not apply by itself"
