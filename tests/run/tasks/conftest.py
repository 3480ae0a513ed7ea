"""Models of tasks, converted once for all tests of a worker."""

from __future__ import annotations

import pytest
from task_models import Converted


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("tasks"))
