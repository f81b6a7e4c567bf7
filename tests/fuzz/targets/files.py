"""Files and folders of targets."""

import atexit
import os
from pathlib import Path
from tempfile import TemporaryDirectory


def make_folder() -> Path:
    """Return a new folder, which is removed when the process ends."""
    folder = TemporaryDirectory(prefix="keywise-fuzz-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


class MemoryFile:
    """A file in memory, which is faster to replace than a file on a disk."""

    def __init__(self, suffix: str = "") -> None:
        self._descriptor = os.memfd_create("fuzz" + suffix)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def replace(self, content: bytes) -> str:
        """Store this content and return the path."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self.path
