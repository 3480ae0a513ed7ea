"""Models of tasks, converted once for all tests of a worker."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from task_models import Converted


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def command(mlxport: Callable[..., Any]) -> Callable[..., Any]:
    """``mlxport run``, in this process: exit code, stdout, stderr."""
    return functools.partial(mlxport, "run")
