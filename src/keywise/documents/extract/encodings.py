"""The encoding of a text file."""

from __future__ import annotations

import codecs
import re
from typing import Final

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED: Final = re.compile(rb"""(?:charset\s*=\s*|encoding\s*=\s*)["']?\s*([\w.:-]{2,30})""", re.IGNORECASE)
SINGLE_BYTE_NAMES: Final = ("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii", "windows-1252", "cp1252")
"""Encodings that browsers read as Windows 1252."""

_DECLARATION_BYTES: Final = 4096
_SAMPLE_BYTES: Final = 100_000
# Where the guess is one of these, the text is read in the encoding that browsers take for them.
_WESTERN_NAMES: Final = "latin_1 iso8859_15 cp1252 cp1250 iso8859_2 cp858 cp850 cp437 mac_roman"
_WESTERN: Final = frozenset(_WESTERN_NAMES.split())
# A short text does not tell encodings apart.
_MIN_GUESSED_BYTES: Final = 64


def decode_text(content: bytes) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding.

    A byte order mark decides, then whether the file is UTF-8, then the frequencies of letters. The mark of UTF-8 stays
    in the text, so that the text's characters are those of the file.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    ValueError
        The encoding is unknown.

    Examples
    --------
    >>> decode_text("It is 5 °C.".encode()), decode_text("wide".encode("utf-16"))
    (('It is 5 °C.', 'utf-8'), ('wide', 'utf-16'))
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding), encoding
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return _decode_guessed(content)


def is_utf8(content: bytes) -> bool:
    """Return whether a file has characters beyond ASCII, and all of them are valid UTF-8.

    Parameters
    ----------
    content
        The file.

    Examples
    --------
    >>> is_utf8("café".encode()), is_utf8("café".encode("latin-1")), is_utf8(b"cafe")
    (True, False, False)
    """
    if content.isascii():
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def decode_markup(content: bytes) -> str:
    """Return the text of an HTML or XML file, in the encoding that it declares.

    Parameters
    ----------
    content
        The file.

    Raises
    ------
    ValueError
        The encoding is unknown.

    Examples
    --------
    >>> decode_markup('<meta charset="iso-8859-1"><p>café'.encode("latin-1"))[-4:]
    'café'
    """
    declared = _DECLARED.search(content[:_DECLARATION_BYTES])
    if declared and not content.startswith(tuple(mark for mark, _ in _MARKS)):
        encoding = declared[1].decode("ascii", "replace").lower()
        if encoding in SINGLE_BYTE_NAMES:  # often declared by default
            encoding = "utf-8" if is_utf8(content) else "cp1252"
        try:
            return content.decode(encoding)
        except (LookupError, UnicodeError):  # a wrong declaration
            pass
    return decode_text(content)[0].removeprefix("\ufeff")


def _decode_guessed(content: bytes) -> tuple[str, str]:
    from charset_normalizer import from_bytes  # noqa: PLC0415 - optional

    guess = from_bytes(content[:_SAMPLE_BYTES]).best() if len(content) >= _MIN_GUESSED_BYTES else None
    encoding = guess.encoding if guess else "cp1252"
    if encoding in _WESTERN:
        encoding = "cp1252"
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:
        if encoding != "cp1252":
            raise
        return content.decode("latin-1"), "latin-1"
