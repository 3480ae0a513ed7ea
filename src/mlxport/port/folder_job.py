"""The conversion of a port: its source, weights, examples and verification, into an open workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.convert.convert_report import ConvertReport
from mlxport.convert.job import Job, write_json
from mlxport.errors import UnsupportedError, VerificationError
from mlxport.graph.capture.examples import Example, leaf_names, output_arrays
from mlxport.graph.write.execute_source import load_folder
from mlxport.graph.write.port_weights import from_torch, to_mlx
from mlxport.model.memory import available_memory
from mlxport.port.port_source import PortSource
from mlxport.progress import Progress

__all__ = ["PortJob"]

_SMALL = 256 << 20  # bytes of weights
INPUTS, OUTPUTS, MLXFN = "example_inputs.safetensors", "example_outputs.safetensors", "model.mlxfn"
_USAGE = """\
## Use

```python
import sys

sys.path.insert(0, "PATH")
from model import load

model = load("PATH")
```

`PATH` is this folder. `model.py` needs nothing but `mlx`; `mlxport.load("PATH")` does the same.
The inputs and outputs of one call are in `example_inputs.safetensors` and `example_outputs.safetensors`, the exact
options, versions and hashes of source and output in `mlxport.json`."""


@dataclass(frozen=True)
class PortJob(Job):
    """One port into an open workspace.

    Attributes:
        ported: What was emitted, and the original to compare it with.
    """

    ported: PortSource = field(kw_only=True)

    @property
    def layout(self) -> str:
        """Name of the layout, for the record."""
        return "generated"

    @property
    def usage(self) -> str:
        """How the output is used, for its model card."""
        return _USAGE

    def _own_files(self, folder: Path) -> set[str]:
        (folder / "model.py").write_text(self.ported.port.source, encoding="utf-8")
        inputs = {name: from_torch(tensor) for name, tensor in self._example_tensors().items()}
        mx.save_safetensors(str(folder / INPUTS), inputs, {"format": "mlx"})
        return {"model.py", INPUTS}

    def _export(self, folder: Path, model: nn.Module) -> None:
        """Write ``model.mlxfn`` and note in the config in which order it takes and gives arrays."""
        outputs = export_function(folder / MLXFN, model, self.ported.example)
        order = {"inputs": [*self._example_tensors()], "outputs": outputs}
        write_json(folder / "config.json", {**self.conversion.config, "mlxfn": order})

    def _example_tensors(self) -> dict[str, torch.Tensor]:
        leaves = leaf_names(self.ported.port.captured.signature, self.ported.example)
        return {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}

    def _compare(self, folder: Path, report: ConvertReport, progress: Progress) -> ConvertReport:
        if self.plan.nbytes > (limit := available_memory() // 2):
            needed, free = (f"{size / 1e9:.1f} GB" for size in (self.plan.nbytes, limit))
            raise UnsupportedError(
                f"the port's {needed} of weights run in memory, of which {free} may be taken",
                hint="verify it on a machine with more memory: mlxport verify DST --against SRC",
            )
        bits = min((spec.bits for spec in self.plan.quantized.values()), default=None)
        parity = self.ported.compare(
            load_folder(folder), dtype=self.plan.dtype, bits=bits, on_outputs=self._keep_outputs(folder)
        )
        if not parity.passed:
            hint = f"the output is left in {folder} for inspection; please report this model"
            raise VerificationError(parity.failure_message(), hint=hint)
        return replace(report, parity=parity)

    def _keep_outputs(self, folder: Path) -> Callable[[Example, Mapping[str, mx.array]], None]:
        def keep(example: Example, outputs: Mapping[str, mx.array]) -> None:
            if example is self.ported.example:
                mx.save_safetensors(str(folder / OUTPUTS), dict(outputs), {"format": "mlx"})

        return keep

    def _last_files(self, folder: Path) -> set[str]:
        """Outputs of the example where no verification left them, of a small model: running one takes it whole."""
        made = (folder / OUTPUTS).exists()
        if not self.options.mlxfn and (made or self.plan.nbytes > _SMALL):
            return {OUTPUTS} if made else set()
        model, example = load_folder(folder), self.ported.example
        if not made:
            outputs = output_arrays(model(*to_mlx(example.args), **to_mlx(example.kwargs)))
            self._keep_outputs(folder)(example, outputs)
        if not self.options.mlxfn:
            return {OUTPUTS}
        self._export(folder, model)
        return {OUTPUTS, MLXFN}


def export_function(path: Path, model: nn.Module, example: Example) -> list[str]:
    """Write a file (``mx.export_function``) for C++ and Swift, and check it against the model.

    The function takes the tensors of the example in the order of the original's parameters, gives the outputs in the
    order of the original's, and has the example's sizes.

    Returns:
        The outputs' names, in order.

    Raises:
        UnsupportedError: MLX cannot export one of its primitives.
        VerificationError: The file gives other outputs than the model.
    """
    from torch.utils import _pytree as pytree

    mx.eval(model.parameters())  # a file that is still to be read cannot be exported
    leaves, structure = pytree.tree_flatten((to_mlx(example.args), to_mlx(example.kwargs)))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, mx.array)]
    arrays = [leaves[index] for index in places]

    def named(*given: mx.array) -> dict[str, mx.array]:
        filled = list(leaves)
        for index, value in zip(places, given, strict=True):
            filled[index] = value
        args, kwargs = pytree.tree_unflatten(filled, structure)
        return output_arrays(model(*args, **kwargs))

    try:
        mx.export_function(str(path), lambda *given: tuple(named(*given).values()), *arrays)
    except (ValueError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise UnsupportedError(
            f"--mlxfn: MLX cannot export this model: {error}", hint="port it without --mlxfn"
        ) from error
    imported: Any = mx.import_function(str(path))
    wanted = named(*arrays)
    for (name, theirs), ours in zip(wanted.items(), imported(*arrays), strict=True):
        if ours.shape != theirs.shape or not bool(mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)):
            raise VerificationError(
                f"output {name} of {path.name} differs from the model's", hint="port it without --mlxfn"
            )
    return list(wanted)
