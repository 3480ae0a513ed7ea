"""The layout that mlx-vlm loads: a checkpoint's tensors under its names, its config as it reads it."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.errors import ConfigError, UnsupportedError, WeightsError
from mlxport.layouts.base import LayoutOptions
from mlxport.layouts.conversion import DTYPES, Conversion, make_conversion
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_mlx_code
from mlxport.layouts.mlx_vlm.families import FAMILIES, Family, family_of
from mlxport.layouts.mlx_vlm.processor_mending import mended_files
from mlxport.layouts.mlx_vlm.skeleton import linear_of, module_tree
from mlxport.layouts.quantizing import Built, count_parameters, quantize
from mlxport.model_config import ModelConfig
from mlxport.progress import listed
from mlxport.quant import QuantRequest
from mlxport.source.part_names import LAYER
from mlxport.transform import trace
from mlxport.types import Checkpoint

__all__ = ["check_config", "open_model", "weights_tree"]

_WHY_KEPT = "mlx-vlm's folders keep towers and matrices of odd sizes; a rule of a recipe can name them"
_UNIT = 64  # mlx-vlm leaves a matrix alone whose count of values this does not divide


def check_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config as mlx-vlm reads it.

    Args:
        config: The checkpoint's.
        where: What to call it in an error.

    Raises:
        UnsupportedError: No such family, packed weights, or something that mlx-vlm would not compute.
        ConfigError: A value is missing or not of the kind that is expected.
    """
    refuse_mlx_code(config, where)
    family = family_of(config)
    if family is None:
        message = (
            f"{where}: no rules for mlx-vlm's {config.get('model_type')!r}, only for {', '.join(sorted(FAMILIES))}"
        )
        raise UnsupportedError(message, hint="convert the text model alone with --text-only")
    model = ModelConfig(config)
    if model.mlx_quantization or model.foreign_quantization:
        hint = "start from the unquantized checkpoint"
        raise UnsupportedError(
            f"{where}: the weights are quantized already, which this layout does not read", hint=hint
        )
    made = copy.deepcopy(dict(config))
    try:
        for rule in family.config:
            rule(made)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error
    return made


def open_model(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    """How a checkpoint is converted; nothing of its weights is read.

    Raises:
        UnsupportedError: As of ``check_config``.
        WeightsError: Tensors that mlx-vlm has no place for, or layers that are not whole.
    """
    config = check_config(checkpoint.config, f"{checkpoint.location}/config.json")
    family = family_of(checkpoint.config)
    assert family is not None
    names = _names(checkpoint, family)
    config["tie_word_embeddings"] = _tied(checkpoint.config, family.head in names.values())
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"]
    _check_whole(checkpoint, family, names, bool(config["tie_word_embeddings"]))
    built = Built({})
    program = trace(_Pipeline(family, names, config, options.dtype, options.quant, built), checkpoint.tensors)
    made = make_conversion(program, built, options.dtype, options.quant, [], _final_config)
    return replace(made, source_files=mended_files(checkpoint, family.processor))


def weights_tree(family: Family, conversion: Conversion) -> nn.Module:
    """What ``open_model`` made, as modules whose weights take no memory, with what says which of them are quantized."""
    outputs = conversion.program.outputs
    return _tree({name: mx.zeros(output.shape, output.dtype) for name, output in outputs.items()}, family)


def _tree(weights: Mapping[str, mx.array], family: Family) -> nn.Module:
    """Modules at the paths of weights, and which of them ``-q`` quantizes."""
    model = module_tree(weights)
    model.quant_predicate = partial(_quantized, family)  # type: ignore[assignment]
    model.why_kept = _WHY_KEPT  # type: ignore[assignment]
    return model


def _quantized(family: Family, path: str, module: nn.Module) -> bool:
    """What mlx-vlm's folders have quantized: the language model, where a matrix has a whole number of units."""
    if not hasattr(module, "to_quantized") or family.is_tower(f"{path}."):
        return False
    return bool(module.weight.size % _UNIT == 0)


def _tied(config: Mapping[str, Any], has_head: bool) -> bool:
    """Whether the embeddings are the output layer too; where the parts of a config differ, the weights tell."""
    given = (part.get("tie_word_embeddings") for part in ModelConfig(config).parts)
    said = {value for value in given if isinstance(value, bool)}
    return said.pop() if len(said) == 1 else not has_head


def _names(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """From the names in a checkpoint to mlx-vlm's, without those of what it computes itself."""
    names, unknown = {}, []
    for original in checkpoint.tensors:
        try:
            name = family.name(original)
        except KeyError:
            unknown.append(original)
            continue
        if name is not None:
            names[original] = name
    refuse_adapters(checkpoint.tensors, checkpoint.location)
    if unknown:
        kind = checkpoint.config.get("model_type")
        message = f"{checkpoint.location}: mlx-vlm's {kind} has no place for {listed(unknown)}"
        raise WeightsError(message, hint="check that config.json belongs to these weights")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        message = f"{checkpoint.location} holds {listed(twice)} under two names each"
        raise WeightsError(message, hint="remove one of them")
    return names


def _check_whole(checkpoint: Checkpoint, family: Family, names: Mapping[str, str], tied: bool) -> None:
    """Refuse a checkpoint without a vision part or an output layer, or with layers that lack what others have."""
    held, lacking = set(names.values()), []
    if not any(family.is_tower(name) for name in held):
        lacking.append("every tensor of the vision part")
    if not tied and family.head not in held:
        lacking.append(family.head)
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in held:
        if (found := LAYER.match(name)) is not None:
            rest = name.removeprefix(found.group(0))
            stacks.setdefault(found["stack"], {}).setdefault(int(found["number"]), set()).add(rest)
    said = ModelConfig(checkpoint.config).text.get("layer_types")
    for stack, layers in stacks.items():
        kinds = said if isinstance(said, list) and stack == f"{family.text}layers" else []
        for number in range(max(layers) + 1):
            alike = [held for other, held in layers.items() if kinds[other : other + 1] == kinds[number : number + 1]]
            lacking += [f"{stack}.{number}.{rest}" for rest in sorted(set().union(*alike) - layers.get(number, set()))]
    counted, text = ModelConfig(checkpoint.config).layers, stacks.get(f"{family.text}layers", {})
    if counted is not None and len(text) != counted:
        lacking.append(f"{counted} layers of text (it has {len(text)})")
    if lacking:
        message = f"{checkpoint.location} lacks {listed(lacking)}"
        raise WeightsError(message, hint="get every file of the original again, and the config.json beside them")


class _Pipeline:
    """From a checkpoint's arrays to mlx-vlm's, in one dtype, quantized as asked."""

    def __init__(
        self, family: Family, names: Mapping[str, str], config: Mapping[str, Any], dtype: str,
        quant: QuantRequest | None, built: Built,
    ) -> None:  # fmt: skip
        self.family, self.names, self.config, self.quant, self.built = family, names, config, quant, built
        stated = ModelConfig(config).dtype
        self.dtype = DTYPES.get(str(stated) if dtype == "auto" else dtype)

    def __call__(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """Every array of the output by its path."""
        weights = {name: self._made(name, arrays[original]) for original, name in self.names.items()}
        if self.config["tie_word_embeddings"]:
            weights.pop(self.family.head, None)
        model, config = _tree(weights, self.family), copy.deepcopy(dict(self.config))
        self.built.parameters = count_parameters(model)
        if self.quant is not None:
            config = quantize(model, config, self.quant, self.built)
        if self.config["tie_word_embeddings"] and self.family.own_head:
            self._copy_embeddings(model, config)
        self.built.model, self.built.config = model, config
        return dict(tree_flatten(model.parameters()))

    def _copy_embeddings(self, model: nn.Module, config: dict[str, Any]) -> None:
        """Give the output layer what the embeddings hold, packed or not: mlx-vlm has both, and some models one copy."""
        source, target = (name.removesuffix(".weight") for name in (self.family.embeddings, self.family.head))
        modules = dict(model.named_modules())
        outer, _, name = target.rpartition(".")
        setattr(modules[outer], name, linear_of(modules[source]))
        for settings in (config.get("quantization"), self.built.kept):
            if settings is not None and source in settings:
                settings[target] = settings[source]

    def _made(self, name: str, array: mx.array) -> mx.array:
        if name.endswith(self.family.channels_last):
            array = mx.moveaxis(array, 1, -1)
        if re.fullmatch(self.family.shifted, name):
            array = array + 1.0
        floating = mx.issubdtype(array.dtype, mx.floating) and not name.endswith(self.family.uncast)
        return array.astype(self.dtype) if floating and self.dtype is not None else array


def _final_config(built: Built, dtype: str, quantized: bool) -> dict[str, Any]:
    config = {key: value for key, value in built.config.items() if key not in ("_name_or_path", "quantization_config")}
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    if quantized:
        config["quantization_config"] = config["quantization"]
    return dict(sorted(config.items()))
