"""How many layers and experts a config declares, held against the tensors that are there.

A runtime makes what its config declares before it looks at the weights: two thousand layers of a folder of a few kB
take hundreds of MB and many seconds, and are refused then. Names and shapes, which the headers give, tell before.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxport.config_values import tables
from mlxport.errors import ConfigError
from mlxport.source.safetensors_file import read_safetensors

__all__ = ["check_counts", "check_output_counts"]

# What is made one by one, in the names that configs have for it.
_LAYERS = re.compile(
    r"(n|num)_(hidden_|encoder_|decoder_|nextn_predict_|mtp_|attention_)?(layers?|blocks|modules)|(en|de)coder_layers"
    r"|depths?|num_codebooks|num_stages"
)
_EXPERTS = re.compile(r"(n|num)_(local_|routed_|shared_)?experts|moe_num_experts|n_routed_experts")
# So many are made at once whatever the weights hold: layers that share theirs are stored once (ALBERT's twelve), and
# experts may be left out of a config's model (one that is dense has them of its kin).
_FEW_LAYERS, _FEW_EXPERTS = 64, 512
_SPARSE = 2  # pruned models have layers of which nothing is left
_NUMBER = re.compile(r"\.(\d{1,9})(?=\.|$)")


def check_counts(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: object) -> None:
    """Refuse a config that declares far more layers or experts than the weights can be of.

    Args:
        config: As parsed.
        shapes: Of the tensors that are there.
        path: What to call the config in the error.

    Raises:
        ConfigError: Names the field, what it holds, and how many there are.
    """
    declared = [*_declared(config)]
    if not declared:
        return
    stored = _most_numbered(shapes)
    sizes = {size for shape in shapes.values() for size in shape[:2]}
    for name, count, is_experts in declared:
        # A router has a row for each expert, and so have experts in one tensor.
        if (count in sizes or count <= stored) if is_experts else count <= _SPARSE * stored:
            continue
        what = "experts, and no tensor of that size" if is_experts else "layers"
        raise ConfigError(
            f"{path}: {name} is {count}, but the weights hold at most {stored} numbered {what}",
            hint="config.json and weights are of different models; get both from the same place",
        )


def check_output_counts(folder: Path, config: Mapping[str, Any]) -> None:
    """The same of a folder that mlx-lm loads, from the headers of its weights; these are checked on the way.

    Raises:
        ConfigError: As :func:`check_counts`.
        WeightsError: A file of weights is damaged.
    """
    files = sorted(folder.glob("model*.safetensors"))
    shapes = {name: ref.shape for file in files for name, ref in read_safetensors(file).items()}
    check_counts(config, shapes, folder / "config.json")


def _declared(config: Mapping[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """Name and value of each count above a few, and whether it is of experts; stages may have one each."""
    for where, table, _ in tables(config):
        for key, value in table.items():
            is_experts = _EXPERTS.fullmatch(key) is not None
            if is_experts or _LAYERS.fullmatch(key):
                few = _FEW_EXPERTS if is_experts else _FEW_LAYERS
                counts = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n > few]
                if counts:
                    yield ".".join((*where, key)), max(counts), is_experts


def _most_numbered(names: Mapping[str, Any]) -> int:
    """How many things of one place have a number in their names, at most: layers of a stack, experts of a layer."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for found in _NUMBER.finditer(name):
            numbers[name[: found.start()]].add(found[1])
    return max(map(len, numbers.values()), default=0)
