"""Compare a converted folder with its original, long after the conversion, in the way that its layout names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.convert.open_source import open_source
from mlxport.convert.options import DTYPES
from mlxport.convert.recorded import keeps_no_weights, recorded, stored_weights
from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.convert.verified_results import as_generated, compared_speech, no_verification, with_steps, with_task
from mlxport.errors import SourceError, UsageError
from mlxport.layouts.base import Layout
from mlxport.layouts.table import layout_of
from mlxport.output.record import read_record
from mlxport.output.surroundings import check_surroundings
from mlxport.output.workspace import absolute
from mlxport.progress import make_progress
from mlxport.source.declared_counts import check_output_counts
from mlxport.source.jsonfile import read_object
from mlxport.source.safe_files import refuse_special_files
from mlxport.source.written_code import refuse_foreign_source

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.layouts.generated.weights_trace import GeneratedConversion
    from mlxport.parity import ParityReport
    from mlxport.parity.port_report import PortParity

    Weights = Callable[[], Mapping[str, mx.array]]

__all__ = ["verify"]


@dataclass(frozen=True)
class _Asked:
    """A folder to verify, as the user gave it."""

    folder: Path
    layout: Layout
    against: str
    mode: str
    revision: str | None
    trust_remote_code: bool
    quiet: bool

    @property
    def task(self) -> str | None:
        """What the folder is for, None where nothing says."""
        from mlxport.run.tasks.task_table import task_of_folder

        return task_of_folder(self.folder)


def verify(
    output: str | Path,
    against: str | Path,
    *,
    mode: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quiet: bool = True,
) -> ParityReport | PortParity:
    """Compare a converted folder with the checkpoint that it was made from, now or long after the conversion.

    Args:
        output: The converted folder, by mlxport in any layout or by ``mlx_lm.convert``.
        against: The original: a folder or a hub id; of a port of your own module, its ``FILE.py:FACTORY``.
        mode: ``auto``, ``full`` or ``layerwise``; a port in one part that writes no text is always compared in full.
        revision: Branch, tag or commit of a hub repository.
        trust_remote_code: Allow code of either folder to run; a port's source that this installation wrote runs anyway.
        quiet: Show no progress.

    Returns:
        The figures; ``passed`` says whether they are within the tolerances.

    Raises:
        MlxportError: Either folder cannot be used, or torch is not installed.
    """
    from mlxport import parity

    if mode not in parity.MODES:
        raise UsageError(f"--mode {mode!r} does not exist", hint=f"choose one of {', '.join(parity.MODES)}")
    check_surroundings(output, against)
    folder = absolute(output)
    refuse_special_files(folder)
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{output} is not a converted model (no config.json)", hint="give the folder that convert wrote"
        )
    layout = layout_of(read_object(folder / "config.json", SourceError), read_record(folder))
    if not layout.verification:
        raise no_verification(layout)
    return _FOLDERS[layout.verification](_Asked(folder, layout, str(against), mode, revision, trust_remote_code, quiet))


def _folder_logits(asked: _Asked) -> ParityReport:
    from mlxport import parity

    folder = asked.folder
    config = read_object(folder / "config.json", SourceError)
    check_output_counts(folder, config)
    refuse_foreign_source(folder, config, asked.trust_remote_code)
    options = ResolvedOptions(
        layout=asked.layout.name, revision=asked.revision, trust_remote_code=asked.trust_remote_code
    )
    checkpoint = open_source(asked.against, options)
    record = read_record(folder)
    given, made = record.get("options"), record.get("output")
    dtype = given.get("dtype", "auto") if isinstance(given, dict) else "auto"
    written = made.get("files") if isinstance(made, dict) else None
    inverse = parity.own_inverse(checkpoint, dtype if dtype in DTYPES else "auto", asked.layout.traces)
    with make_progress(0, f"verifying {folder.name}", quiet=asked.quiet) as progress:
        report = parity.verify(
            folder,
            checkpoint,
            mode=asked.mode,
            invert=inverse,
            trained=_trained(record),
            generation=asked.layout.verifies_generation,
            on_progress=progress.message,
        )
        progress.message("comparing the tokenizer and the files")
        problems = parity.carried_problems(folder, checkpoint, written if isinstance(written, dict) else {})
        passed = report.passed and not problems
        return replace(report, problems=problems, passed=passed, left_out=inverse.left_out())


def _need_torch(what: str) -> None:
    from mlxport import parity

    if reason := parity.unavailable():
        raise UsageError(f"{what} needs PyTorch: {reason}", hint="pip install 'mlxport[torch]'")


def _trained(record: Mapping[str, Any]) -> frozenset[str]:
    """Paths of the modules that a distillation changed, by a folder's record."""
    distilled = record.get("distilled")
    paths = distilled.get("modules") if isinstance(distilled, dict) else None
    return frozenset(path for path in paths if isinstance(path, str)) if isinstance(paths, list) else frozenset()


def _folder_outputs(asked: _Asked) -> PortParity:
    report, _, conversion = _compared_folder(asked)
    if conversion.weights_of is None:  # a module of the user's own
        return report
    trust = asked.trust_remote_code
    return with_task(report, asked.folder, asked.task, conversion.weights_of, conversion, trust)


def _folder_parts(asked: _Asked) -> PortParity:
    _need_torch("port")
    from mlxport.convert.verify_parts import compare_folder

    trust = asked.trust_remote_code
    made = recorded(asked.folder, asked.layout, asked.revision, trust)
    checkpoint = open_source(asked.against, made.options)
    report, conversion = compare_folder(asked.folder, asked.layout, checkpoint, made, trust, asked.mode)
    return with_task(report, asked.folder, asked.task, checkpoint, conversion, trust)


def _folder_speech(asked: _Asked) -> PortParity:
    made = recorded(asked.folder, asked.layout, asked.revision, asked.trust_remote_code)
    checkpoint = open_source(asked.against, made.options)
    conversion = asked.layout.opens(checkpoint, made.options)
    return compared_speech(asked.folder, asked.task, checkpoint, conversion, made.dtype, made.bits)


def _folder_sequences(asked: _Asked) -> PortParity:
    from mlxport.model.memory import uncached

    with uncached():
        report, model, conversion = _compared_folder(asked, bounded=True)
        return with_steps(report, model, conversion, keeps_no_weights(conversion, asked.mode))


def _folder_pictures(asked: _Asked) -> PortParity:
    _need_torch("verify")
    from mlxport.parity.picture_parity import compare_pictures

    trust = asked.trust_remote_code
    options = ResolvedOptions(layout=asked.layout.name, revision=asked.revision, trust_remote_code=trust)
    checkpoint = open_source(asked.against, options)
    program = asked.layout.opens(checkpoint, options).program
    return compare_pictures(asked.folder, checkpoint, program, trust_remote_code=trust)


def _compared_folder(asked: _Asked, bounded: bool = False) -> tuple[PortParity, Any, GeneratedConversion]:
    """What the comparison of a port's folder found, the port, and what it was compared with.

    Args:
        asked: What is to be verified.
        bounded: Whether it can be done without the weights in memory, where the mode wants that.
    """
    _need_torch("port")
    from mlxport.layouts.generated.loading import check_source, load_port, unquantized_port
    from mlxport.model.read_when_used import Unkept
    from mlxport.parity.port_bisect import wrong_weights
    from mlxport.parity.port_comparison import compare_port

    check_source(asked.folder, asked.trust_remote_code)  # before the original is captured, which takes long
    made = recorded(asked.folder, asked.layout, asked.revision, asked.trust_remote_code)
    conversion = _original(asked, made.options)
    model = load_port(asked.folder, trust_remote_code=asked.trust_remote_code)
    unquantized = functools.partial(unquantized_port, asked.folder, trust_remote_code=asked.trust_remote_code)
    trained = _trained(read_record(asked.folder))
    stored = stored_weights(asked.folder, conversion, asked.mode) if bounded else None
    report = compare_port(
        conversion, model, dtype=made.dtype, bits=made.bits, unquantized=unquantized, trained=trained, stored=stored
    )
    expected = conversion.unquantized() if stored is None else Unkept(conversion.unquantized)
    wrong = wrong_weights(model, expected) if report.passed else []
    wrong = [name for name in wrong if name.rpartition(".")[0] not in trained]  # held against bounds of their own
    return report.with_wrong(wrong), model, conversion


def _original(asked: _Asked, options: ResolvedOptions) -> GeneratedConversion:
    """What a folder was ported from, captured once more."""
    from mlxport.layouts.generated.own_module import is_factory, load_factory, open_module
    from mlxport.source import open_checkpoint

    if is_factory(asked.against):
        return open_module(load_factory(asked.against), options, what=asked.against)[0]
    trust = asked.trust_remote_code
    checkpoint = open_checkpoint(asked.against, revision=asked.revision, trust_remote_code=trust)
    return as_generated(asked.layout.opens(checkpoint, options))


_FOLDERS: Mapping[str, Callable[[_Asked], ParityReport | PortParity]] = {
    "logits": _folder_logits,
    "outputs": _folder_outputs,
    "sequences": _folder_sequences,
    "parts": _folder_parts,
    "pictures": _folder_pictures,
    "speech": _folder_speech,
}
