"""Lets the tests of the port engine import ``conformance``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
