"""``python -m mlxport``."""

from mlxport.cli import main

if __name__ == "__main__":
    main()
