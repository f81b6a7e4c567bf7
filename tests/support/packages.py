"""Office documents and books as ZIP archives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any


def write_zip(parts: Mapping[str, str | bytes]) -> bytes:
    """Return an archive of parts by their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def save_to_bytes(document: Any) -> bytes:
    """Return the file that a document of python-docx, python-pptx or openpyxl saves."""
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()
