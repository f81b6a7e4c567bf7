"""The conversion of a file and the sentences of its text."""

from keywise.documents import read_file
from keywise.errors import FormatError
from tests.fuzz.targets.files import make_folder

_FOLDER = make_folder()


def convert(data: bytes, suffix: str) -> None:
    """Read a file with this content, and split its text into sentences."""
    path = _FOLDER / f"file{suffix}"
    path.write_bytes(data)
    try:
        source = read_file(path)
    except FormatError as error:
        if "crashed" in str(error):
            raise AssertionError(str(error)) from error
        return
    end_before = 0
    for start, end in source.sentences:
        assert end_before <= start < end <= len(source.text), "sentences overlap"
        end_before = end
