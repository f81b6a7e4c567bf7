"""One module per fuzzed interface.

Each has ``make_seeds() -> list[bytes]``, valid inputs to mutate, and ``execute(data: bytes) -> None``, which raises
anything but an error of keywise if the input shows a fault.
"""

TARGETS = (
    "arrays",
    "cache_file",
    "html",
    "pdf",
    "docx",
    "terminal",
    "tuned_heads",
)
"""Names of the modules."""

CONVERTED = ("html", "pdf", "docx")
"""Targets that run in the process of `keywise.documents.conversion`, which takes milliseconds each time."""
