"""The parts of a pipeline's folder: all in memory, or each while it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.errors import SourceError
from mlxport.layouts.generated.loading import load_part
from mlxport.source.jsonfile import read_object
from mlxport.source.written_code import PARTS

__all__ = ["PipelineParts"]


class PipelineParts:
    """The parts, loaded when they are first used.

    Attributes:
        folder: Of the model.
        config: Its config.json.
        one_at_a_time: Whether a part leaves the memory once it has been used.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.config = read_object(folder / "config.json", SourceError, unique=False)
        self.one_at_a_time = False
        self._trust = trust_remote_code
        self._loaded: dict[str, Any] = {}
        self._users: Counter[str] = Counter()

    def __contains__(self, name: object) -> bool:
        """Whether the folder has a part of this name."""
        return name in self.config[PARTS]

    def component(self, name: str) -> dict[str, Any]:
        """The config of a model of the original pipeline."""
        found: dict[str, Any] = self.config["components"][name]
        return found

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """A part; what was computed with it is to be evaluated before the context ends.

        Raises:
            SourceError: The folder has none of this name, or it does not load.
            UnsafeError: Somebody else wrote its source, and it is not trusted.
        """
        if name not in self:
            hint = "convert the original again, without --layout"
            raise SourceError(f"{self.folder} has no part {name!r}, which this task needs", hint=hint)
        if name not in self._loaded:
            self._loaded[name] = load_part(self.folder, name, trust_remote_code=self._trust)
        self._users[name] += 1
        yield self._loaded[name]
        self._users[name] -= 1
        if self.one_at_a_time and not self._users[name]:
            del self._loaded[name]
            mx.clear_cache()
