"""Pictures that come as patches of their own shape (NaFlex, SigLIP 2): positions resized by arithmetic, not by shapes.

transformers resizes the table of positions to each picture's rows and columns in a loop over values, which no capture
follows. The same numbers are sums over the table, with weights that are functions of the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["PATCHES", "example_patches", "image_of_patches", "resized_positions"]

PATCHES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
"""What the processor makes of pictures: patches [b, n, values], which of them are none, rows and columns [b, 2]."""
_SHAPES = ((3, 4), (5, 2))  # of the example's pictures
_PATCHES = 15


def image_of_patches(model: Any, **inputs: Any) -> Any:
    """The vector of each picture."""
    embeddings = model.vision_model.embeddings
    embeddings.resize_positional_embeddings = resized_positions  # hides the class's own
    try:
        return model.get_image_features(**inputs).pooler_output
    finally:
        del embeddings.resize_positional_embeddings


def example_patches(model: Any) -> dict[str, Any]:
    """Two pictures of other shapes, both with patches that are none."""
    import torch

    seen = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    values = seen.num_channels * seen.patch_size**2
    shapes = torch.tensor(_SHAPES)
    mask = torch.arange(_PATCHES)[None] < shapes.prod(dim=1, keepdim=True)
    pixels = torch.randn(len(_SHAPES), _PATCHES, values, generator=generator)
    return {"pixel_values": pixels.to(model.dtype), "pixel_attention_mask": mask.long(), "spatial_shapes": shapes}


def resized_positions(positional_embeddings: Any, spatial_shapes: torch.Tensor, max_length: int) -> torch.Tensor:
    """Positions of the patches of each picture; of what is no patch those of the first one.

    As ``F.interpolate(mode="bilinear", antialias=True)`` resizes the table (ATen/native/cpu/UpSampleKernel.cpp).

    Args:
        positional_embeddings: [rows, columns, width].
        spatial_shapes: Rows and columns of each picture, [b, 2].
        max_length: Patches of each, n.

    Returns:
        [b, n, width].
    """
    import torch

    rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    places = torch.arange(max_length, device=spatial_shapes.device)[None]
    places = torch.where(places < rows * columns, places, 0)
    down = _shares(places // columns, rows, positional_embeddings.shape[0])
    across = _shares(places % columns, columns, positional_embeddings.shape[1])
    table = positional_embeddings.float()
    # [b, n, rows] by [rows, columns * width], then the columns of each: no more than n tables at once
    mixed = (down @ table.reshape(table.shape[0], -1)).unflatten(-1, table.shape[1:])
    return (across[..., None] * mixed).sum(dim=-2).to(positional_embeddings.dtype)


def _shares(places: torch.Tensor, counts: torch.Tensor, size: int) -> torch.Tensor:
    """What each of ``size`` entries adds to what is at ``places`` of ``counts``, [b, n, size]; the sum of each is 1."""
    import torch

    scale = size / counts
    centres = scale * (places + 0.5)
    entries = torch.arange(size, device=places.device) + 0.5
    apart = (entries - centres[..., None]).abs() / scale.clamp(min=1.0)[..., None]
    shares = (1 - apart).clamp(min=0)
    return shares / shares.sum(dim=-1, keepdim=True)
