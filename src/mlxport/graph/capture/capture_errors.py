"""What stops a capture, in the user's terms."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor

from mlxport.graph.capture.free_sizes import SizesTooLong
from mlxport.graph.capture.origin import raised_at
from mlxport.printable import words

__all__ = ["CaptureError", "first_line", "hint", "of_subclasses", "usage_hint"]


class CaptureError(Exception):
    """The module cannot be captured.

    Attributes:
        hint: What to do.
        usage: Whether the example inputs are to blame.
    """

    def __init__(self, message: str, hint: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.hint, self.usage = hint, usage


def first_line(error: BaseException) -> str:
    """What was raised, and where in the user's code, in one line."""
    lines = [line.strip() for line in words(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, SizesTooLong) else f"{type(error).__name__}: "
    text = f"{kind}{_sentence(lines)[:300]}"
    own = raised_at(error)
    return text if own is None else f"{text} (at {own.filename}:{own.lineno})"


def _sentence(lines: list[str]) -> str:
    """The first line, with the next where it only announces it."""
    return " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])


def hint(error: BaseException) -> str:
    """What to do about what stopped a capture."""
    if _of_packed_sequences(error):
        return (
            "what is done to a packed sequence there depends on the values of the lengths, which no export can follow; "
            "pack in the forward (pack_padded_sequence), or give the recurrent layer the padded batch and mask the rest"
        )
    if "functorch tensor" in words(error) or "fake tensor in the exported program constant" in words(error):
        return (
            "gradients that a forward asks for itself (torch.autograd.grad, torch.func.grad, jacrev) are not captured: "
            "write their formula out, or port the part before them"
        )
    if ".numpy()" in words(error):
        return (
            "its forward leaves torch for NumPy there, which no export can follow: write it with torch's functions "
            "(torch.sqrt for numpy.sqrt), or compute it once in __init__"
        )
    if "is mutated in the forward method" in words(error):
        return (
            "make the tensor a buffer (self.register_buffer in __init__), which the forward may write, "
            "or let the forward take it as an input and return it"
        )
    if "DataDependent" in type(error).__name__ or "data-dependent" in words(error):
        return "its control flow depends on values; use torch.where or torch.cond there, or port the part around it"
    return "see https://docs.pytorch.org/docs/stable/export.html for what can be captured; -v shows where it stops"


def usage_hint(error: BaseException) -> str:
    """What to do about what the module itself raises on the example."""
    if "combine_mode='pointwise'" in words(error):
        return 'write combine_mode="generic" there: it computes the same, on every device'
    return "give inputs that the module takes: call it on them in torch, in eval(), before it is ported"


def of_subclasses(tensors: Mapping[str, torch.Tensor]) -> str:
    """What to do about weights that are no plain tensors, as those that torchao quantizes; empty without such."""
    for name, tensor in tensors.items():
        kind = type(tensor.data)
        if kind is not torch.Tensor and not isinstance(tensor, FakeTensor) and tensor.device.type != "meta":
            own = kind.dequantize is not torch.Tensor.dequantize
            again = ", or with nn.Parameter(weight.dequantize()) in the place of each" if own else ""
            return (
                f"{name} is a {kind.__name__}, which is no plain tensor: port the module as it is before its weights "
                f"are quantized{again}, and quantize the port (-q 4)"
            )
    return ""


def _of_packed_sequences(error: BaseException) -> bool:
    """Whether it was raised by packing or unpacking, or by a recurrent layer that was given a packed sequence."""
    frames = [(Path(frame.f_code.co_filename), frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = {file.parts[-3:]: variables for file, variables in frames}
    layer = files.get(("nn", "modules", "rnn.py"), {})
    return ("nn", "utils", "rnn.py") in files or layer.get("batch_sizes") is not None
