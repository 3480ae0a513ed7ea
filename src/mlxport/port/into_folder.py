"""Port a module of the user's own into a folder, say how it was ported, and load such a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport import parity
from mlxport.convert.convert import carry_out
from mlxport.convert.convert_report import ConvertReport
from mlxport.convert.resolved_options import resolve_port
from mlxport.convert.source_hashes import Hashes
from mlxport.errors import SourceError, UsageError, system_errors
from mlxport.layouts.table import layout_of, named
from mlxport.options.keywords import with_keywords
from mlxport.options.size_spec import asked_sizes
from mlxport.output.record import read_record
from mlxport.output.surroundings import check_surroundings, nothing_left_by_torch
from mlxport.output.workspace import absolute, check_destination
from mlxport.port.port_options import PortOptions
from mlxport.source.jsonfile import read_object
from mlxport.source.safe_files import refuse_special_files

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlxport.layouts.generated.weights_trace import GeneratedConversion

__all__ = ["explain", "load", "port_folder"]


@with_keywords(PortOptions)
@system_errors()
@nothing_left_by_torch()
def port_folder(factory: str | Callable[[], Any], destination: str | Path, options: PortOptions) -> ConvertReport:
    """Port a PyTorch module into a folder: ``model.py``, its weights, an example, and what was measured.

    Args:
        factory: ``"FILE.py:FACTORY"``, or a function; it returns (module, args), (module, kwargs) or both.
        destination: The output folder; it appears only when it is whole and verified.
        options: A keyword for each field.

    Raises:
        MlxportError: One of the tree in ``mlxport.errors``; nothing is left under ``destination``.
    """
    if reason := parity.unavailable():
        raise UsageError(f"port needs PyTorch: {reason}", hint="pip install 'mlxport[torch]'")
    from mlxport.layouts.generated.held_tensors import content_hash
    from mlxport.layouts.generated.own_module import load_factory, open_module
    from mlxport.layouts.generated.random_states import random_states_kept

    check_surroundings(destination)
    asked = resolve_port(options)
    if options.dynamic_shapes is not None:
        asked = replace(asked, dynamic=asked_sizes(options.dynamic, options.dynamic_shapes))
    target = absolute(destination)
    what = factory if isinstance(factory, str) else getattr(factory, "__qualname__", "the factory")
    check_destination(target, what.rpartition(":")[0] if isinstance(factory, str) else "", asked.overwrite)
    made = load_factory(factory) if isinstance(factory, str) else factory
    with random_states_kept():
        ported, checkpoint = open_module(made, asked, what=what)
        options.on_port(ported)
        if not asked.dry_run:
            checkpoint = replace(checkpoint, revision=content_hash(checkpoint))
        with Hashes(checkpoint, start=not asked.dry_run) as hashes:
            return carry_out(ported, what, checkpoint, target, named(asked.layout), asked, hashes)


def load(path: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The module of a converted folder, ready to be called with ``mx.array``s.

    Args:
        path: A folder that ``port`` or ``convert`` wrote. Of the generated layout, its ``model.py`` is run; of
            mlx-lm's, mlx-lm's own module is made.
        trust_remote_code: Run source of the folder that this installation did not write.

    Raises:
        SourceError: No such folder, or not a converted model.
        UnsafeError: The folder has source that this installation did not write, and ``trust_remote_code`` is not given.
    """
    folder = Path(path).expanduser()
    refuse_special_files(folder)
    if not (folder / "config.json").is_file():
        raise SourceError(f"{path} is not a converted model (no config.json)", hint="give the folder that port wrote")
    layout = layout_of(read_object(folder / "config.json", SourceError), read_record(folder))
    if layout.verification == "parts":
        from mlxport.layouts.generated.loading import load_parts

        return load_parts(folder, trust_remote_code=trust_remote_code)
    if layout.verification == "outputs" or (layout.verification == "sequences" and layout.not_generating is not None):
        from mlxport.layouts.generated.loading import load_port

        return load_port(folder, trust_remote_code=trust_remote_code)
    from mlxport.run.load import load_model, resolve

    return load_model(resolve(folder), trust_remote_code=trust_remote_code)[0]  # type: ignore[no-any-return]


def explain(ported: GeneratedConversion) -> str:
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
