"""One module per fuzzed interface.

Each has ``make_seeds() -> list[bytes]``, valid inputs to mutate, and ``execute(data: bytes) -> None``, which raises
anything but an error of keywise if the input shows a fault.
"""

TARGETS = (
    "arrays",
    "masks",
    "cache_file",
    "safetensors_header",
    "gguf_header",
    "model_folder",
    "chat_template",
    "tokenizer_files",
    "html",
    "pdf",
    "docx",
    "xlsx",
    "pptx",
    "odt",
    "epub",
    "rtf",
    "mail",
    "json_records",
    "tables",
    "plain_text",
    "markdown",
    "terminal",
    "tuned_heads",
    "alignment_heads",
    "ct2_weights",
    "squad",
    "where",
)
"""Names of the modules."""

SLOWER = {
    **dict.fromkeys(("html", "pdf", "docx", "xlsx", "pptx"), 50),
    **dict.fromkeys(("odt", "epub", "rtf", "mail", "json_records", "tables", "plain_text", "markdown"), 50),
    **dict.fromkeys(("chat_template", "model_folder", "tokenizer_files", "where"), 10),
}
"""Targets that take milliseconds each time, and how much fewer executions they get."""
