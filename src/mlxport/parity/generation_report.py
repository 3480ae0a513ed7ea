"""What running an output as text is generated has shown: frozen, printable, and plain enough for the record."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Generation", "GenerationCheck"]


@dataclass(frozen=True)
class GenerationCheck:
    """One way in which text is generated, against the original's logits of the same tokens.

    Attributes:
        name: What was done: ``tokens`` one by one, ``chunks``, ``batch``, ``saved cache``, ``trim``, ``window``.
        relative: RMS of the difference over RMS of the reference's logits, each row centred; None where nothing ran.
        failure: What differs and at which token, empty when nothing does.
        limit: Why the output does not do it, which it may say of itself; empty where it does.
    """

    name: str
    relative: float | None = None
    failure: str = ""
    limit: str = ""


@dataclass(frozen=True)
class Generation:
    """An output run with mlx-lm's caches.

    Attributes:
        tokens: Tokens that were generated one by one.
        equal: How many of them are the original's; one that is not stands between logits that are as good as equal.
        checks: What was done, in order.
        reference: Where the logits are from.
    """

    tokens: int
    equal: int
    checks: tuple[GenerationCheck, ...]
    reference: str

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each check that failed."""
        return tuple(f"generation, {check.name}: {check.failure}" for check in self.checks if check.failure)

    def summary(self) -> str:
        """One line for a terminal."""
        few = self.equal < self.tokens
        said = [f"{self.equal} of {self.tokens} tokens equal" if few else f"{self.tokens} tokens equal"]
        others = [check for check in self.checks if check.name != "tokens"]
        if well := [check.name for check in others if not check.failure and not check.limit]:
            said.append(f"{', '.join(well)}: ok")
        if failed := [check.name for check in self.checks if check.failure]:
            said.append(f"{', '.join(failed)}: FAILED")
        said += [f"{check.name}: {check.limit}" for check in others if check.limit]
        return f"generation: {'; '.join(said)}"
