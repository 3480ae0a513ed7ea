"""The configs of small models lie with the tests of ``fit``; they are measured on few tokens."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fit"))


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen is the subject of these tests, not how well: two settings of a module, on 128 tokens."""
    monkeypatch.setattr("mlxport.allocate.measure._LEVELS", ((2, 128, math.inf),))
