"""Values for inputs of other sizes, like those of an example."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["values_like"]


def values_like(
    example: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, scaled: Mapping[int, int]
) -> torch.Tensor:
    """Values like the example's: noise for floats, a sequence for a sequence, otherwise values that occur in it.

    Rows of floats that ascend stay so. Ascending integers are taken for places in another input: they stay so, up to
    its length if they went that far. A list of integers of which the largest is a size is taken for lengths.
    """
    count = int(torch.Size(shape).numel())
    if example.numel() == 0 or count == 0:
        return example.new_zeros(shape)
    if example.is_floating_point():
        wide = example.float()
        if not torch.isfinite(wide).all() or (wide.unique().numel() == 2 and wide.numel() > 2):  # a mask
            return _resampled(example, shape, generator)
        spread = wide.std() if example.numel() > 1 else torch.tensor(1.0)
        noise = torch.randn(shape, generator=generator) * (spread if spread > 0 else 0.1)
        if wide.ndim and wide.shape[-1] > 2 and spread > 0 and bool((wide.diff(dim=-1) >= 0).all()):
            noise = noise.sort(-1).values  # rows in order: the edges of bins, what is searched
        return (noise + wide.mean()).to(example.dtype)  # also where all were equal, as a state of zeros is
    if example.ndim and example.dtype is torch.int64 and example.shape[-1] > 1:
        steps = torch.arange(example.shape[-1])
        if torch.equal(example - example[..., :1], steps.expand(example.shape)):
            return (torch.arange(shape[-1]) + example.reshape(-1)[0]).expand(shape).contiguous()
        if example.ndim == 1 and (example.diff() >= 0).all():
            places = _resampled(example, shape, generator).sort().values
            last = int(example[-1])
            places[0], places[-1] = example[0], scaled.get(last, last)
            return places.clamp(max=int(places[-1]))
        if example.ndim == 1 and (longest := scaled.get(int(example.max()))) is not None and int(example.min()) > 0:
            return _resampled(example, shape, generator).clamp(max=longest)
    return _resampled(example, shape, generator)


def _resampled(example: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    index = torch.randint(0, example.numel(), (count,), generator=generator)
    return example.reshape(-1)[index].reshape(shape)
