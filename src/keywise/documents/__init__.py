"""Read documents once, ask many questions: answers with the sentences that mattered."""

from keywise.documents.ablation import Ablation
from keywise.documents.answer import Answer, AnswerWord
from keywise.documents.document import Document
from keywise.documents.evidence import Evidence
from keywise.documents.files import Source, read_file
from keywise.documents.heads import Heads
from keywise.documents.reader import Reader

__all__ = ["Ablation", "Answer", "AnswerWord", "Document", "Evidence", "Heads", "Reader", "Source", "read_file"]
