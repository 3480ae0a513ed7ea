"""Sizes that a capture cannot follow are fixed, those of the batch stay free, and it is said."""

from __future__ import annotations

import torch
from torch.export import Dim

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.export import capture
from mlxport.graph.capture.free_sizes import free_sizes


class Padded(torch.nn.Module):
    """Layers on a picture that is padded to a multiple of three and halved, again and again."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % 3, 0, -x.shape[1] % 3))
            x = layer(x)[:, ::2, ::2]
        return x


def free_axes(captured: Captured) -> list[int]:
    """Axes of the input whose sizes are free."""
    shape = captured.inputs[0].meta["val"].shape
    return [axis for axis, size in enumerate(shape) if isinstance(size, torch.SymInt)]


def test_batches_stay_free_where_heights_and_widths_run_away():
    captured = capture(Padded(6), (torch.randn(2, 64, 96, 4),))
    (note,) = captured.notes
    assert note.startswith("only the first sizes of the inputs are free, the others are fixed to the example's")
    assert "sizes that follow from the inputs' " in note
    assert free_axes(captured) == [0]


def test_what_can_be_followed_is_free():
    captured = capture(Padded(2), (torch.randn(2, 32, 48, 4),))
    assert not captured.notes
    assert free_axes(captured) == [0, 1, 2]


def test_choices_go_from_most_to_fewest():
    picture, text = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)
    auto = Dim.AUTO
    free = [shapes for _, shapes in free_sizes((picture,), {"text": text})]
    assert free == [
        ((dict.fromkeys(range(4), auto),), {"text": {0: auto, 1: auto}}),
        (({0: auto},), {"text": {0: auto, 1: auto}}),
        (({0: auto},), {"text": {0: auto}}),
    ]
    assert len(free_sizes((text,), {})) == 2  # not the same twice
