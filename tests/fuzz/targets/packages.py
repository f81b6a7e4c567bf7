"""Office documents and books for targets: packages whose main part is mutated."""

import io
import zipfile
import zlib
from collections.abc import Mapping

from tests.fuzz.targets.conversions import convert


def pack(parts: Mapping[str, str | bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a package with these parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def convert_part(data: bytes, suffix: str, parts: Mapping[str, str | bytes], name: str) -> None:
    """Convert a package, or the package that has this content as its part of this name."""
    if not data.startswith(b"PK"):
        try:
            data = pack({**parts, name: data})
        except zlib.error:
            return
    convert(data, suffix)
