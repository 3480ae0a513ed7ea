"""Port a module of the user's own into a folder, load such a folder, and verify it again."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.convert.convert import carry_out
from mlxport.convert.convert_report import ConvertReport
from mlxport.convert.job import Hashes
from mlxport.convert.keywords import with_keywords
from mlxport.convert.resolved_options import ResolvedOptions, resolve_port
from mlxport.errors import SourceError, UsageError
from mlxport.output.workspace import absolute, check_destination
from mlxport.port.port_options import PortOptions
from mlxport.source.jsonfile import read_object

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlxport.parity.port_parity import PortParity
    from mlxport.port.port_source import PortSource

__all__ = ["explain", "load", "port_folder", "verify_folder"]


@with_keywords(PortOptions)
def port_folder(factory: str | Callable[[], Any], destination: str | Path, options: PortOptions) -> ConvertReport:
    """Port a PyTorch module into a folder: ``model.py``, its weights, an example, and what was measured.

    Args:
        factory: ``"FILE.py:FACTORY"``, or a function; it returns (module, args), (module, kwargs) or both.
        destination: The output folder; it appears only when it is whole and verified.
        options: A keyword for each field.

    Raises:
        MlxportError: One of the tree in ``mlxport.errors``; nothing is left under ``destination``.
    """
    _need_torch()
    from mlxport.port.folder_job import PortJob
    from mlxport.port.port_source import load_factory, open_module

    asked = resolve_port(options)
    target = absolute(destination)
    what = factory if isinstance(factory, str) else getattr(factory, "__qualname__", "the factory")
    check_destination(target, what.rpartition(":")[0] if isinstance(factory, str) else "", asked.overwrite)
    made = load_factory(factory) if isinstance(factory, str) else factory
    with tempfile.TemporaryDirectory(prefix="mlxport-") as folder:
        ported, checkpoint = open_module(made, Path(folder), asked, what=what)
        options.on_port(ported)
        hashes = Hashes(checkpoint)
        try:
            if not asked.dry_run:
                hashes.start()
            make_job = functools.partial(PortJob, ported=ported)
            return carry_out(ported.conversion, what, checkpoint, target, asked, hashes, make_job)
        finally:
            hashes.stop()


def _need_torch() -> None:
    from mlxport import parity

    if reason := parity.unavailable():
        raise UsageError(f"port needs PyTorch: {reason}", hint="pip install 'mlxport[torch]'")


def load(path: str | Path) -> nn.Module:
    """The module of a converted folder, ready to be called with ``mx.array``s.

    Args:
        path: A folder that ``port`` or ``convert`` wrote. Of the generated layout, its ``model.py`` is run; of
            mlx-lm's, mlx-lm's own module is made.

    Raises:
        SourceError: No such folder, or not a converted model.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise SourceError(f"{path} is not a converted model (no config.json)", hint="give the folder that port wrote")
    config = read_object(folder / "config.json", SourceError)
    if config.get("model_file") is None:
        from mlxport.run.load import load_model, resolve

        return load_model(resolve(folder))[0]  # type: ignore[no-any-return]
    if not (folder / "model.py").is_file():
        raise SourceError(f"{folder} has no model.py, which its config names", hint="port it again")
    from mlxport.graph.write.execute_source import load_folder

    try:
        return load_folder(folder)
    except Exception as error:  # the folder's own code and files, whatever is wrong with them
        raise SourceError(
            f"{folder} does not load: {type(error).__name__}: {error}", hint="port it again, or restore its files"
        ) from error


def is_generated(folder: Path) -> bool:
    """Whether a folder brings its own code."""
    try:
        return read_object(folder / "config.json", SourceError).get("model_file") == "model.py"
    except SourceError:
        return False


def verify_folder(
    output: str | Path, against: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PortParity:
    """Compare a ported folder with its original, now or long after it was ported.

    Args:
        output: The folder.
        against: ``FILE.py:FACTORY``, or the folder or hub id of the checkpoint.
        trust_remote_code: Whether code of the checkpoint may run.
        revision: Branch, tag or commit of a hub repository.
    """
    _need_torch()
    from mlxport.output.record import read_record
    from mlxport.parity.port_bisect import wrong_weights
    from mlxport.transform import lazy_arrays

    folder = absolute(output)
    record = read_record(folder)
    asked, written = (part if isinstance(part := record.get(key), dict) else {} for key in ("options", "output"))
    options = ResolvedOptions(
        dtype=str(asked.get("dtype", "auto")),
        layout="generated",
        revision=revision,
        trust_remote_code=trust_remote_code,
        dynamic=bool(asked.get("dynamic", True)),
        fold_batchnorm=bool(asked.get("fold_batchnorm", False)),
    )
    bits = min((int(spec["bits"]) for spec in written.get("quantized", {}).values()), default=None)
    with tempfile.TemporaryDirectory(prefix="mlxport-") as temporary:
        source = _original(against, Path(temporary), options)
        model = load(folder)
        program = source.conversion.program
        expected = program.pipeline(lazy_arrays(program.refs))
        report = source.compare(model, dtype=str(written.get("dtype", "float32")), bits=bits, expected=expected)
        wrong = wrong_weights(model, expected) if report.passed else []
        problem = f"stored weights differ from the original's: {', '.join(wrong[:8])}"
        return replace(report, problems=(problem,)) if wrong else report


def _original(against: str, folder: Path, options: ResolvedOptions) -> PortSource:
    """What a folder was ported from, captured once more; ``folder`` holds what the capture stores."""
    from mlxport.port.port_source import load_factory, open_generated, open_module
    from mlxport.source import open_checkpoint

    if against.rpartition(":")[0].endswith(".py"):
        return open_module(load_factory(against), folder, options, what=against)[0]
    checkpoint = open_checkpoint(against, revision=options.revision, trust_remote_code=options.trust_remote_code)
    return open_generated(checkpoint, options)


def explain(ported: PortSource) -> str:
    """Ops, fusions applied and declined, folded weights and notes of a port, as lines of text."""
    port = ported.port
    lines = ["ops:"]
    lines += [f"  {count:5d}  {name}" for name, count in port.ops.items()]
    applied = [item for item in port.fusions if not item.declined]
    declined = [item for item in port.fusions if item.declined]
    lines.append("fusions:" if applied else "fusions: none")
    lines += _grouped((item.name, item.where or "model") for item in applied)
    if declined:
        lines.append("declined:")
        lines += _grouped((f"{item.name}: {item.declined}", item.where or "model") for item in declined)
    lines.append("folded weights:" if port.folds else "folded weights: none")
    lines += [f"  {name} from {', '.join(fold.sources) or 'constants'}" for name, fold in port.folds.items()]
    lines += [f"note: {note}" for note in port.notes]
    return "\n".join(lines)


def _grouped(items: Any) -> list[str]:
    places: dict[str, list[str]] = {}
    for what, where in items:
        places.setdefault(what, []).append(where)
    return [
        f"  {len(where):5d}  {what} ({', '.join(where[:3])}{' …' if len(where) > 3 else ''})"
        for what, where in places.items()
    ]
