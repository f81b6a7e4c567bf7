"""Word alignments: which source words a translation attends to, and when words are spoken.

Importing this package loads neither torch nor transformers; they are imported by the first call that needs them.
"""

from keywise.alignment.align import align, find_heads
from keywise.alignment.heads import AlignmentHead, AlignmentHeads
from keywise.alignment.result import Alignment
from keywise.alignment.speech import word_timestamps
from keywise.alignment.transcript import TimedWord, Transcript
from keywise.alignment.translate import Translation, translate

__all__ = [
    "Alignment",
    "AlignmentHead",
    "AlignmentHeads",
    "TimedWord",
    "Transcript",
    "Translation",
    "align",
    "find_heads",
    "translate",
    "word_timestamps",
]
