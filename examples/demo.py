"""Convert the example model to 4 bits, verify it against PyTorch, and use it: what ``make demo`` runs.

python examples/demo.py [OUTPUT]
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from mlxport.cli.app import main as mlxport_command
from mlxport.parity import perplexity
from mlxport.source import open_checkpoint

HERE = Path(__file__).parent
SOURCE = HERE / "tiny-llama"
TEXT = (HERE / "heldout.txt").read_text(encoding="utf-8")
PROMPT = "def read_lines(path):\n"
SEED = "2"


def command(*arguments: str) -> None:
    """Show a command line and run it; ends the demonstration if it fails."""
    print(f"\n$ mlxport {shlex.join(arguments)}")
    sys.stdout.flush()
    try:
        mlxport_command(list(arguments))
    except SystemExit as exit:
        if exit.code:
            raise


def main() -> None:
    """Run the demonstration."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "demo-output"
    command("convert", os.path.relpath(SOURCE), os.path.relpath(output), "--quantize", "4", "--overwrite")
    before = perplexity(open_checkpoint(SOURCE), TEXT).value
    after = perplexity(output, TEXT).value
    print(f"\nperplexity on {len(TEXT.encode()):,} bytes of held-out text (examples/heldout.txt)")
    print(f"  original, PyTorch, bfloat16 weights  {before:.3f}")
    print(f"  converted, mlx-lm, 4-bit weights     {after:.3f}")
    command(
        "generate",
        os.path.relpath(output),
        "--prompt",
        PROMPT,
        "--max-tokens",
        "100",
        "--temp",
        "0.6",
        "--seed",
        SEED,
        "--ignore-chat-template",
    )


if __name__ == "__main__":
    main()
