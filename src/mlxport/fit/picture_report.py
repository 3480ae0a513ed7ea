"""What a plan says of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxport.layouts.mlx_vlm.picture_tokens import PictureTokens

__all__ = ["PicturePlan"]


@dataclass(frozen=True)
class PicturePlan:
    """Of a model of pictures and text.

    Attributes:
        picture: What one picture becomes.
        tower_bytes: Weights that only pictures need.
        workspace_bytes: What the tower holds besides weights while it reads one; None where that was not counted.
        runs: The command that asks the model, with DST for the folder.
        notes: Remarks.
    """

    picture: PictureTokens
    tower_bytes: int
    workspace_bytes: int | None
    runs: str
    notes: tuple[str, ...] = ()

    def notes_at(self, context: int) -> tuple[str, ...]:
        """Remarks, given the tokens that a prompt and its answer may have together."""
        if self.picture.all_tokens < context:
            return self.notes
        said = f"one picture takes {self.picture.all_tokens:,} tokens, and the context has {context:,}"
        return (*self.notes, f"{said}: plan with a longer --context")

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "picture": self.picture.to_json()}
