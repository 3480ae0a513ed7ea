"""``python -m mlxport``, and the command ``mlxport``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is an answer from the first import on."""
    try:
        from mlxport.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("error: stopped\nhint: run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
