"""Quantization by mlx-lm's own rules, of any model that is put together of its layers."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxport.errors import QuantizationError
from mlxport.quant import QuantRequest
from mlxport.source.part_names import LAYER
from mlxport.types import QuantSpec

__all__ = ["Built", "check_unquantized", "count_parameters", "quantize", "spell"]


@dataclass
class Built:
    """What one run of the pipeline leaves behind besides its arrays."""

    config: dict[str, Any]
    parameters: int = 0
    model: nn.Module | None = None
    kept: dict[str, str] | None = None


def quantize(model: nn.Module, config: dict[str, Any], quant: QuantRequest, built: Built) -> dict[str, Any]:
    """``mlx_lm.utils.quantize_model`` with the requested rules; notes in ``built.kept`` what stays as it is."""
    from mlx_lm.utils import quantize_model

    check_unquantized(model)
    if not count_parameters(model):
        raise QuantizationError(
            f"nothing can be quantized with {spell(quant.spec)}: the model has no layers with weights",
            hint="convert without --quantize",
        )
    own = getattr(model, "quant_predicate", None)
    group = quant.spec.group_size
    predicate = None if own is None else _fitting(own, group)
    if quant.mixed is not None:
        try:
            predicate = _mixed(model, quant.mixed, own, group)
        except (ValueError, AttributeError) as error:
            hint = "use a recipe file, or one setting for all"
            raise QuantizationError(f"{quant.mixed} does not fit this architecture: {error}", hint=hint) from error
    elif quant.rules:
        predicate = _by_rules(quant)
        group = min(rule.spec.group_size for rule in quant.rules if rule.spec is not None)
        _check_rules(model, quant)
    built.kept = _kept(model, quant, predicate, own, group)
    config = copy.deepcopy(config)
    config.pop("quantization_config", None)
    with contextlib.redirect_stdout(io.StringIO()):
        _, config = quantize_model(
            model, config, group, quant.spec.bits, mode=quant.spec.mode, quant_predicate=predicate
        )
    config["quantization"].update(quant.spec.as_config())
    return config


def check_unquantized(model: nn.Module) -> None:
    """Refuse a model that has quantized modules already."""
    if any("scales" in module for _, module in model.named_modules()):
        raise QuantizationError(
            "the checkpoint is already quantized; quantizing it again would add one error to another",
            hint="convert without --quantize to keep its quantization, or start from the unquantized checkpoint",
        )


def _fitting(own: Any, group: int) -> Any:
    """An architecture's own choice, but where its group size does not divide the columns the one that was asked for."""

    def predicate(path: str, module: nn.Module) -> Any:
        chosen = own(path, module)
        if isinstance(chosen, dict) and module.weight.shape[-1] % chosen.get("group_size", group):
            return {**chosen, "group_size": group}
        return chosen

    return predicate


def _mixed(model: nn.Module, recipe: str, own: Any, group: int) -> Any:
    """mlx-lm's mixed recipe; of modules that do not say which their layers are, on those that hold ``down_proj``.

    Raises:
        ValueError: It has no layers of that kind.
    """
    from mlx_lm.convert import mixed_quant_predicate_builder

    if hasattr(model, "layers"):
        return mixed_quant_predicate_builder(recipe, model, group)

    def taken(path: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and (own is None or bool(own(path, module)))

    # A tower's layers have such matrices as well, at another depth: only what is quantized counts.
    found = {path: module for path, module in model.named_modules() if "down_proj" in path and taken(path, module)}
    layers = [(layer["stack"], layer["number"]) for path in found if (layer := LAYER.match(path)) is not None]
    if not layers:
        raise ValueError("no numbered layers with a down_proj are quantized")
    stack = layers[0][0]
    numbers = {path.removeprefix(f"{stack}.") for path, _ in model.named_modules() if path.startswith(f"{stack}.")}
    count = sum(number.isdigit() for number in numbers)
    inside = {path: module for path, module in found.items() if path.startswith(f"{stack}.")}
    layered = SimpleNamespace(layers=range(count), named_modules=lambda: list(inside.items()))
    chosen: Callable[[str, nn.Module], bool | dict[str, Any]] = mixed_quant_predicate_builder(recipe, layered, group)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not taken(path, module):
            return False
        # Outside of the layers nothing has a number: by its name alone mlx-lm looks for none.
        return chosen(path if path.startswith(f"{stack}.") else path.rpartition(".")[2], module)

    return predicate


def _by_rules(quant: QuantRequest) -> Any:
    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        rule = quant.rule(path)
        if rule is None or rule.spec is None or module.weight.shape[-1] % rule.spec.group_size:
            return False
        return rule.spec.as_config()

    return predicate


def _check_rules(model: nn.Module, quant: QuantRequest) -> None:
    """Refuse a rule that matches no module: most likely a misspelt path."""
    paths = [path for path, module in model.named_modules() if hasattr(module, "to_quantized")]
    for rule in quant.rules:
        if not any(rule.matches(path) for path in paths):
            raise QuantizationError(
                f"the recipe's {rule.pattern!r} matches no module that can be quantized",
                hint=f"paths look like {', '.join(paths[:3])}",
            )


def _kept(model: nn.Module, quant: QuantRequest, predicate: Any, own: Any, group: int) -> dict[str, str]:
    """Why each module with a weight stays unquantized."""
    kept = {}
    for path, module in _leaves(model):
        if not hasattr(module, "to_quantized"):
            kept[path] = f"MLX has no quantized {type(module).__name__}"
            continue
        rule = quant.rule(path)
        size = group if rule is None or rule.spec is None else rule.spec.group_size
        if quant.rules and (rule is None or rule.spec is None):
            kept[path] = "kept by the recipe" if rule else "no rule of the recipe matches"
        elif module.weight.shape[-1] % size:
            kept[path] = f"its last dimension {module.weight.shape[-1]} is not a multiple of the group size {size}"
        elif predicate is not None and not predicate(path, module):
            said = "mlx-lm keeps it for this architecture" if predicate is own else "kept by the recipe"
            kept[path] = getattr(model, "why_kept", said)
    return kept


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return [(path, module) for path, module in leaves if tree_flatten(module.parameters())]


def count_parameters(model: nn.Module) -> int:
    """mlx-lm's count of parameters, quantized ones as what they stand for."""
    from mlx_lm.utils import get_total_parameters

    return int(get_total_parameters(model))


def spell(spec: QuantSpec) -> str:
    """A setting in words."""
    return f"{spec.mode} {spec.bits} bits, group size {spec.group_size}"
