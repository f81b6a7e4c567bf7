"""A file in memory, which is faster to replace than a file on a disk."""

import os


class MemoryFile:
    """A file with a path whose content can be replaced."""

    def __init__(self, suffix: str = "") -> None:
        self._descriptor = os.memfd_create("fuzz" + suffix)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def replace(self, content: bytes) -> str:
        """Store this content and return the path."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self.path
