"""JSON files and files with a JSON value per line: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return records, nested values, and a value per line."""
    return [
        b'[{"lamp": "red", "size": {"m": 2.50, "tags": ["a", null, true]}}, {"lamp": "bl\\u00fce\\ud83d"}]',
        b'{"a": {"b": [[1, 2], {"c": "x"}]}, "d": 1e999, "e": "' + b"It is lit. " * 40 + b'"}',
        b'{"n": 1}\n{"n": -0}\r\n\xef\xbb\xbf{"n": NaN}\n',
    ]


def execute(data: bytes) -> None:
    """Convert a file."""
    convert(data, ".json")
