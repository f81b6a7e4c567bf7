"""Question answering over documents, with the sentences that support each answer."""

from keywise.documents.ablation import Ablation
from keywise.documents.answer import Answer, AnswerWord
from keywise.documents.document import Document
from keywise.documents.evidence import Evidence
from keywise.documents.files import Source, read_file
from keywise.documents.heads import Heads
from keywise.documents.reader import Reader
from keywise.documents.store import PrefillStore

__all__ = [
    "Ablation",
    "Answer",
    "AnswerWord",
    "Document",
    "Evidence",
    "Heads",
    "PrefillStore",
    "Reader",
    "Source",
    "read_file",
]
