"""Calls that change in place what a tensor is, not only its values: ``x.t_()``, ``x.unsqueeze_(0)``, ``x.resize_(4)``.

torch.export follows a new shape of a tensor that the forward made itself, but not of an input. A view of an input can
be reshaped instead: what is written to it afterwards still reaches the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["CallsInPlace"]

_RESHAPING = frozenset(["t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "as_strided_"])
_RESIZING = frozenset(["resize_", "resize_as_"])
_ASSIGNS_DATA, _READS_DATA = torch.Tensor.data.__set__, torch.Tensor.data.__get__  # type: ignore[attr-defined]


class CallsInPlace(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, notes such calls, and takes others for what torch.export follows.

    Attributes:
        reshaping: The last that gave a tensor another shape; empty if there was none.
        hint: What to write instead of one that torch.export does not follow; empty if there was none.
        assigns_data: Whether the forward assigned to ``.data``, which torch.export passes over in silence.
        reshaped_inputs: Whether an input has another shape after the call, which a port does not give it.
    """

    def __init__(self) -> None:
        """Nothing noted yet."""
        super().__init__()
        self.reshaping, self.hint = "", ""
        self.assigns_data = self.reshaped_inputs = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note a call, and make it."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _RESHAPING:
            self.reshaping = name
            plain = name.rstrip("_")
            self.hint = self.hint or (
                f"{name} of a buffer or a parameter cannot be captured: use {plain}, which gives a new tensor"
            )
        elif name in _RESIZING:
            self.hint = f"{name} cannot be captured: use reshape, slicing or torch.cat, which give a new tensor"
        elif func == _ASSIGNS_DATA:
            self.assigns_data = True
        elif func == _READS_DATA:
            return args[0].detach()  # the same without gradients; torch.export cannot follow .data
        elif name == "fill_diagonal_" and len(args) == 2 and not kwargs and args[0].ndim == 2:
            args[0].diagonal().fill_(args[1])  # torch does so by strides, which are numbers only where sizes are
            return args[0]
        return func(*args, **kwargs)

    @contextmanager
    def views_of_inputs(self, module: torch.nn.Module) -> Iterator[None]:
        """Let the forward of ``module`` find views in the place of its inputs."""
        given: list[tuple[torch.Tensor, torch.Tensor]] = []

        def viewed(tensor: torch.Tensor) -> torch.Tensor:
            given.append((tensor, tensor.view_as(tensor)))
            return given[-1][1]

        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return pytree.tree_map_only(torch.Tensor, viewed, (args, kwargs))

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        self.reshaped_inputs = any(_layout(tensor) != _layout(view) for tensor, view in given)


def _layout(tensor: torch.Tensor) -> str:
    """Sizes and strides as text: to compare symbolic ones would add conditions to the export."""
    return f"{tuple(tensor.shape)}, {tensor.stride()}"
