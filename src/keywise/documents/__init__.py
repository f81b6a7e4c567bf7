"""Read documents once, ask many questions: answers with the sentences that mattered."""

from keywise.documents.evidence import Evidence
from keywise.documents.files import Source, read_file
from keywise.documents.reader import Answer, Document, Reader

__all__ = ["Answer", "Document", "Evidence", "Reader", "Source", "read_file"]
