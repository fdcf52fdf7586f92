"""A disk that can lose power, and the backend over it."""

from kimberlite.storage.memory.backend import Fault, MemoryBackend, MemoryFile
from kimberlite.storage.memory.disk import Disk

__all__ = ["Disk", "Fault", "MemoryBackend", "MemoryFile"]
