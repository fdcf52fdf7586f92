"""Where the bytes are: one seam, `Backend`, and what stands behind it."""

from kimberlite.storage.backend import BLOCK, Backend, Done, File, Mode
from kimberlite.storage.probe import Choice, open_backend

__all__ = ["BLOCK", "Backend", "Choice", "Done", "File", "Mode", "open_backend"]
