"""Models: find, load, convert and fingerprint them."""

from keywise.models.fingerprints import fingerprint
from keywise.models.loading import FoundModel, LoadedModel, find_model, load_model, models_found

__all__ = ["FoundModel", "LoadedModel", "find_model", "fingerprint", "load_model", "models_found"]
