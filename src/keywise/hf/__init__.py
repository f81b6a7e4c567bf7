"""The Hugging Face plug-in: keywise as the attention of a transformers model, and readings of that model at work."""

from keywise.hf.fingerprints import fingerprint
from keywise.hf.plugin import register, use
from keywise.hf.readings import LayerReading, Readings, reading

__all__ = ["LayerReading", "Readings", "fingerprint", "reading", "register", "use"]
