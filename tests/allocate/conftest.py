"""The configs of small models lie with the tests of ``fit``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fit"))
