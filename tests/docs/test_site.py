"""The documentation as a site: it builds without a warning, and loads nothing from anywhere else."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]', as make docs does")
pytest.importorskip("material", reason="pip install -e '.[docs]', as make docs does")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_public_names_are_found_where_they_are_defined():
    sys.path.insert(0, str(ROOT / "docs"))
    import hooks

    import mlxport

    for name in set(mlxport.__all__) - set(mlxport.errors.__all__) - {"__version__"}:
        module, _, attribute = hooks.public_place(name).rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is getattr(mlxport, name)


def test_every_page_is_there(site):
    for name in (
        "convert",
        "fit",
        "quantize",
        "port",
        "verify",
        "report",
        "reference",
        "api",
        "how-it-works",
        "measured",
    ):
        assert (site / name / "index.html").is_file(), name
    assert "ports PyTorch modules" in (site / "index.html").read_text("utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*?\ssrc=[\"']?(https?:[^\"'\s>]+)", text)
        loaded += re.findall(
            r"<link[^>]*?rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*?href=[\"']?(https?:[^\"'\s>]+)", text
        )
        assert loaded == [], page


def test_links_between_pages_resolve(site):
    """Of the finished pages, those of README and of the other files of the root included."""
    for page in site.rglob("*.html"):
        for link in re.findall(r"<a[^>]*?\shref=[\"']?([^\"'\s>]+)", page.read_text("utf-8")):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", link) and page.name != "404.html":
                there = (page.parent / target).resolve()
                assert (there / "index.html").is_file() or there.is_file(), (page.name, link)
