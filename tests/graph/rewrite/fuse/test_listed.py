"""The list of fusions has each file that is one, once."""

import importlib
import pkgutil

from mlxport.graph.rewrite import fuse


def test_every_file_with_a_pass_is_listed():
    files = [found.name for found in pkgutil.iter_modules(fuse.__path__)]
    passes = [name for name in files if hasattr(importlib.import_module(f"{fuse.__name__}.{name}"), "apply")]
    assert sorted(fuse.FUSIONS) == sorted(passes)
