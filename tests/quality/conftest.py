from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from quality_models import save_source

import mlxport

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by name, each made once; ``tiny-llama`` is the example."""
    made: dict[str, Path] = {"tiny-llama": EXAMPLE}

    def source(name: str) -> Path:
        if name not in made:
            made[name] = save_source(name, tmp_path_factory.mktemp("quality") / name)
        return made[name]

    return source


@pytest.fixture(scope="session")
def outputs(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Their conversions, each made once; not to be written to."""
    made: dict[str, Path] = {}

    def output(name: str, **options: object) -> Path:
        key = f"{name} {sorted(options.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("quality") / "out"
            mlxport.convert(sources(name), made[key], verify="none", **options)  # type: ignore[arg-type]
        return made[key]

    return output
