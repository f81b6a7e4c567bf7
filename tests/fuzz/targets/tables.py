"""CSV files: text, or `FormatError`, within the limits of the conversion."""

from tests.fuzz.targets.conversions import convert


def make_seeds() -> list[bytes]:
    """Return tables with commas, semicolons and tabs, with quotes and line ends in cells."""
    return [
        b'lamp,fee\nred,"2,100"\n"blue\nor ""grey""",7\n',
        b"\xef\xbb\xbfa;b;c\r\n1,5;2;x\r\r\n;;\r\n'3;'4;\"\r\n",
        b"one\ttwo\n1\t2\n\xe9\t\x85\n",
    ]


def execute(data: bytes) -> None:
    """Convert a file."""
    convert(data, ".csv")
