"""Language models: find, load, convert and fingerprint them.

Importing this package loads neither torch nor transformers; they are imported by the first call that needs them.
"""

from keywise.models.fingerprints import fingerprint
from keywise.models.loading import LoadedModel, load_model
from keywise.models.sentence_encoder import Encoder, SentenceEncoder
from keywise.models.sources import ModelSource, find_model, list_models

__all__ = [
    "Encoder",
    "LoadedModel",
    "ModelSource",
    "SentenceEncoder",
    "find_model",
    "fingerprint",
    "list_models",
    "load_model",
]
