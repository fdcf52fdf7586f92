"""`kimberlite`, with machine code of its own for each Python function."""

from __future__ import annotations

import sys

from benches import frames
from kimberlite.cli.main import main

if __name__ == "__main__":
    frames.install()
    sys.exit(main())
