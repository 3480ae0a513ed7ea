"""One conversion into an open workspace: shards, side files, verification, record."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport._version import __version__
from mlxport.convert.convert_report import ConvertReport
from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.errors import Interrupted, NumericsError, UnsupportedError, VerificationError
from mlxport.output.record import make_record, weight_name
from mlxport.output.workspace import RECORD, Workspace
from mlxport.progress import Progress, make_progress
from mlxport.source import hash_file
from mlxport.source.tokenizer_files import embedding_rows
from mlxport.types import Checkpoint, Plan

if TYPE_CHECKING:
    from mlxport.layouts.assembly import Conversion
    from mlxport.output.blocks import Findings
    from mlxport.output.shards import Written
    from mlxport.transform import Program

_WIDE = frozenset(("BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"))  # dtypes with values that float16 does not have
INDEX = "model.safetensors.index.json"
RECIPE = "recipe.toml"  # of an allocation; --recipe takes it


class Hashes:
    """sha256 of the source's weight files, on a thread beside the conversion (which finds them in the page cache)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = {weight_name(checkpoint, path): path for path in checkpoint.weight_files}
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._result: Future[dict[str, str]] | None = None

    def start(self) -> None:
        """Begin."""
        self._result = self._pool.submit(self._run)

    def _run(self) -> dict[str, str]:
        return {name: hash_file(path, self._check) for name, path in self._files.items()}

    def _check(self, _: int) -> None:
        if self._stopped.is_set():
            raise Interrupted("stopped")

    def result(self) -> dict[str, str]:
        """File name to hash; waits for it."""
        assert self._result is not None
        return self._result.result()

    def stop(self) -> None:
        """End the thread, finished or not."""
        self._stopped.set()
        self._pool.shutdown(wait=True)


@dataclass(frozen=True)
class Job:
    """One conversion into an open workspace."""

    source: str
    checkpoint: Checkpoint
    conversion: Conversion
    plan: Plan
    options: ResolvedOptions
    hashes: Hashes

    @property
    def layout(self) -> str:
        """Name of the layout, for the record."""
        return "mlx-lm"

    @property
    def usage(self) -> str:
        """How the output is used, for its model card; empty for mlx-lm's way."""
        return ""

    def run(self, workspace: Workspace, report: ConvertReport) -> ConvertReport:
        """Write what is missing, verify, publish."""
        with make_progress(
            self.plan.nbytes, f"converting {self.checkpoint.name}", quiet=self.options.quiet
        ) as progress:
            resumed = self._shards(workspace, self._program(workspace, progress), progress)
            written = {shard.filename: workspace.done[shard.filename] for shard in self.plan.shards}
            findings = self._check_findings(written, progress)
            carried = self._side_files(workspace.folder)
            report = replace(report, resumed=resumed, findings=findings)
            report = self._distill(workspace, report, progress)
            written = {name: workspace.done[name] for name in written}
            progress.stage("hashing the source", 0)
            inputs = self.hashes.result()
            report = self._check_activations(workspace.folder, report, progress)
            report = self._verify(workspace.folder, report, progress)
        self._record(workspace.folder, report, inputs, written)
        carried |= self._last_files(workspace.folder)
        report, pages = self._report(workspace, report)
        carried |= pages
        keep = {*written, *carried, "config.json", INDEX, RECORD, "README.md"}
        workspace.publish(keep, overwrite=self.options.overwrite)
        return report

    def _program(self, workspace: Workspace, progress: Progress) -> Program:
        """What computes the tensors of the shards."""
        return self.conversion.program

    def _shards(self, workspace: Workspace, program: Program, progress: Progress) -> tuple[str, ...]:
        """Write every shard that is not recorded yet; a recorded one whose bytes differ is written again."""
        from mlxport.output.shards import write_shard

        resumed = []
        for shard in self.plan.shards:
            path = workspace.folder / shard.filename
            known = workspace.done.get(shard.filename)
            if known is not None:
                if path.is_file() and path.stat().st_size == known.nbytes and hash_file(path) == known.sha256:
                    resumed.append(shard.filename)
                    progress.advance(shard.nbytes)
                    continue
                workspace.forget(shard.filename)
            written = write_shard(program, shard, path, advance=progress.advance)
            workspace.record(shard.filename, written)
        if resumed:
            progress.message(f"resumed: {len(resumed)} of {len(self.plan.shards)} shards were finished already")
        return tuple(resumed)

    def _check_findings(self, written: Mapping[str, Written], progress: Progress) -> Findings:
        """Name values that are not finite; refuse an overflow that was not allowed."""
        from mlxport.output.blocks import Findings

        findings = Findings()
        for shard in written.values():
            findings.merge(shard.findings)
        if findings.nonfinite:
            total = sum(findings.nonfinite.values())
            progress.message(f"warning: the source has {total} NaN or infinite values: {_counts(findings.nonfinite)}")
        if findings.overflowed:
            total = sum(findings.overflowed.values())
            message = f"{total} values overflow {self.plan.dtype}: {_counts(findings.overflowed)}"
            if not self.options.allow_overflow:
                hint = "use --dtype bfloat16 (or float32), or accept infinities with --allow-overflow"
                raise NumericsError(message, hint=hint)
            progress.message(f"warning: {message}")
        return findings

    def _distill(self, workspace: Workspace, report: ConvertReport, progress: Progress) -> ConvertReport:
        """Train scales and biases, where that was asked for; the shards are those of the workspace afterwards."""
        if self.options.training is None:
            return report
        from mlxport.distill.resumable import distill_output

        progress.stage("distilling", 0)
        distilled = distill_output(
            workspace,
            self.checkpoint,
            self.conversion.config,
            self.options.training,
            text=self.options.calibration.text if self.options.calibration is not None else None,
            trust_remote_code=self.options.trust_remote_code,
            say=progress.message,
        )
        progress.message(distilled.summary())
        return replace(report, distilled=distilled)

    def _check_activations(self, folder: Path, report: ConvertReport, progress: Progress) -> ConvertReport:
        """Find what the model computes beyond float16; refuse it where the cast is ours, unless it was allowed."""
        if self.plan.dtype != "float16" or self.layout != "mlx-lm":
            return report
        cast = any(ref.dtype in _WIDE for ref in self.checkpoint.tensors.values())
        if not cast and self.options.verify == "none":
            return report
        from mlxport.parity.overflow import largest_activations

        progress.stage("looking for activations that overflow", 0)
        shapes = {name: output.shape for name, output in self.conversion.program.outputs.items()}
        config, trust = self.conversion.config, self.options.trust_remote_code
        try:
            found = largest_activations(folder, config, embedding_rows(config, shapes) or 1, trust_remote_code=trust)
        except VerificationError as error:
            progress.message(f"warning: activations were not checked for overflow: {error.message}")
            return report
        if found.beyond and cast and not self.options.allow_overflow:
            hint = "use --dtype bfloat16 (or float32), or accept infinities with --allow-overflow"
            raise NumericsError(found.summary(), hint=hint)
        if found.summary():
            progress.message(f"warning: {found.summary()}; --dtype bfloat16 holds them")
        return replace(report, activations=found)

    def _side_files(self, folder: Path) -> set[str]:
        """Config, index, and every other file of the source that the output needs, byte for byte."""
        write_json(folder / "config.json", self.conversion.config)
        weight_map = {tensor.name: shard.filename for shard in self.plan.shards for tensor in shard.tensors}
        metadata = {"total_size": self.plan.nbytes, "total_parameters": self.plan.parameters}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
        carried = self._own_files(folder)
        if self.options.allocation is not None and (recipe := self.options.allocation.recipe()):
            (folder / RECIPE).write_text(recipe, encoding="utf-8")
            carried.add(RECIPE)
        for path in self.checkpoint.side_files:
            relative = path.relative_to(self.checkpoint.root)
            if path.name == "README.md" or (path.suffix == ".py" and not self.options.trust_remote_code):
                continue
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)
            carried.add(str(relative))
        return carried

    def _own_files(self, folder: Path) -> set[str]:
        """Write what this layout adds; names of the files."""
        return set()

    def _own_record(self, folder: Path) -> dict[str, Any]:
        """What this layout adds to the record."""
        return {}

    def _last_files(self, folder: Path) -> set[str]:
        """Write what needs the finished model; names of the files."""
        return set()

    def _report(self, workspace: Workspace, report: ConvertReport) -> tuple[ConvertReport, set[str]]:
        """Write the quality report, where it was asked for; names of its files."""
        if not self.options.report:
            return report, set()
        from mlxport.quality.make_report import make_report, named_or_here
        from mlxport.quality.report_files import write_report

        with make_progress(0, f"measuring {self.checkpoint.name}", quiet=self.options.quiet) as progress:
            quality = make_report(
                workspace.folder,
                self.checkpoint,
                name=workspace.destination.name,
                source=self.source,
                same=True,
                machine=named_or_here(self.options.report_device),
                trust_remote_code=self.options.trust_remote_code,
                on_progress=progress.message,
            )
        names = {path.name for path in write_report(quality, workspace.folder)}
        return replace(report, quality=quality), names

    def _verify(self, folder: Path, report: ConvertReport, progress: Progress) -> ConvertReport:
        """Parity and the tokenizer's round trip; raises VerificationError where the output differs."""
        from mlxport import parity as verification

        if self.options.verify == "none":
            return replace(report, not_verified="not verified: --verify none")
        if reason := verification.unavailable():
            progress.message(f"warning: {reason}")
            return replace(report, not_verified=reason)
        progress.stage("verifying against PyTorch", 0)
        try:
            return self._compare(folder, report, progress)
        except UnsupportedError as error:
            # Asked for by name, a verification must happen; by default the output is said not to be verified.
            if self.options.verify != "auto":
                raise
            progress.message(f"warning: not verified: {error.message}")
            return replace(report, not_verified=f"not verified: {error.message}")

    def _compare(self, folder: Path, report: ConvertReport, progress: Progress) -> ConvertReport:
        from mlxport import parity as verification
        from mlxport.parity.tokenizer import check_tokenizer
        from mlxport.transform import invert

        trust = self.options.trust_remote_code
        tokenizer = check_tokenizer(folder, self.checkpoint, trust_remote_code=trust)
        parity = verification.verify(
            folder,
            self.checkpoint,
            mode=self.options.verify,
            invert=functools.partial(invert, self.conversion.program),
            trained=frozenset(report.distilled.modules if report.distilled is not None else ()),
            trust_remote_code=trust,
            on_progress=progress.message,
        )
        if not parity.passed:
            hint = f"the output is left in {folder} for inspection; please report this architecture"
            raise VerificationError(parity.failure_message(), hint=hint)
        return replace(report, parity=parity, tokenizer=tokenizer)

    def _record(
        self, folder: Path, report: ConvertReport, inputs: Mapping[str, str], written: Mapping[str, Written]
    ) -> None:
        from mlxport.output.card import model_card

        # Equal conversions leave equal records: how long it took stays out.
        parity = {k: v for k, v in report.parity.to_json().items() if k != "seconds"} if report.parity else None
        record = make_record(
            self.source,
            self.checkpoint,
            self.plan,
            options={**self.options.recorded(), "layout": self.layout},
            inputs=inputs,
            written=written,
            notes=report.notes,
            parity=parity,
            tokenizer=report.tokenizer.to_json() if report.tokenizer else None,
            not_verified=report.not_verified,
            distilled=report.distilled.to_json() if report.distilled else None,
            activations=report.activations.to_json() if report.activations else None,
            generation=self.options.kv.options() if self.options.kv is not None else None,
            allocation=self.options.allocation.to_json() if self.options.allocation else None,
        )
        write_json(folder / RECORD, {**record, **self._own_record(folder)})
        card = model_card(self.checkpoint, self.plan, parity, __version__, usage=self.usage)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _counts(found: Mapping[str, int], most: int = 8) -> str:
    names = [f"{name} ({count})" for name, count in list(found.items())[:most]]
    more = f" and {len(found) - most} more tensors" if len(found) > most else ""
    return ", ".join(names) + more


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as the other JSON files of the output are written."""
    path.write_text(json.dumps(data, indent=4, ensure_ascii=True), encoding="utf-8")
