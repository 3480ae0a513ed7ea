"""What users may rely on: the names, the start-up that stays light, the command in its usual forms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import mlxport
from command import environment
from mlxport import errors

PUBLIC = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "ConfigError",
    "ConvertReport",
    "DestinationError",
    "DiskError",
    "FitReport",
    "Inspection",
    "Interrupted",
    "MlxportError",
    "NumericsError",
    "ParityReport",
    "QualityReport",
    "QuantizationError",
    "SourceError",
    "TaskPlan",
    "TokenizerError",
    "UnsafeError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "WeightsError",
    "__version__",
    "convert",
    "generate",
    "inspect",
    "load",
    "pipeline",
    "plan_for",
    "port",
    "port_folder",
    "quality_report",
    "register_op",
    "verify",
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment())


def test_the_list_is_exact_and_sorted():
    assert mlxport.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(mlxport) == PUBLIC


def test_every_name_that_the_documentation_spells_in_full_is_there_after_a_plain_import():
    root = Path(__file__).parents[1]
    pages = "\n".join(page.read_text("utf-8") for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))])
    named = sorted(set(re.findall(r"\bmlxport(?:\.[A-Za-z_]\w*)+(?=\(|\s*$)", pages, re.MULTILINE)))
    assert "mlxport.quality.compare" in named
    code = "import mlxport\n" + "\n".join(named)
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name):
    value = getattr(mlxport, name)
    assert value is getattr(mlxport, name)
    assert name == "__version__" or value.__name__ == name
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mlxport.nonsense


def test_the_package_is_typed():
    assert (files("mlxport") / "py.typed").is_file()


def test_every_error_has_its_exit_code_and_place():
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, errors.MlxportError) for kind in kinds)
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert {codes.pop("Interrupted"), codes.pop("VerificationError")} == {130, 3}
    assert {name for name, code in codes.items() if code == 2} == {
        "UsageError",
        "DestinationError",
        "QuantizationError",
    }
    assert all(code in (1, 2) for code in codes.values())
    drawn = errors.__doc__ or ""
    assert all(name in drawn for name in errors.__all__)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["convert", "--help"], ["plan", "--help"], ["generate", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys, json\nfrom mlxport.cli.app import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    result = python("-c", code)
    assert result.returncode == 0 and result.stdout
    loaded = {name.split(".")[0] for name in json.loads(result.stderr.splitlines()[-1])}
    assert not loaded & {
        "torch",
        "transformers",
        "mlx",
        "mlx_lm",
        "numpy",
        "safetensors",
        "huggingface_hub",
        "tokenizers",
    }


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, mlxport; print({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'mlx', 'rich'})"
    )
    assert python("-W", "error", "-c", code).stdout.strip() == "set()"


def test_as_a_module():
    result = python("-m", "mlxport", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"mlxport {mlxport.__version__}\n", "")
