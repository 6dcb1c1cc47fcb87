"""``python -m decoding``, the same as the command ``decoding``."""

from decoding.evals.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
