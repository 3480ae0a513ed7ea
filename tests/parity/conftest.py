from __future__ import annotations

import pytest
from verify_models import convert, save_source


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Checkpoints by name, made once."""
    made = {}

    def source(name: str, **options):
        key = (name, *sorted(options.items(), key=str))
        if key not in made:
            made[key] = save_source(name, tmp_path_factory.mktemp(name) / "source", **options)
        return made[key]

    return source


@pytest.fixture
def converted(sources, tmp_path):
    """A fresh conversion of a checkpoint, to be damaged."""

    def make(name: str, **options):
        return convert(sources(name), tmp_path / "output", **options)

    return make
