"""What is wrong with this attention: arrays, functions and whole models, examined against the definition."""

from keywise.diagnosis.arrays import check
from keywise.diagnosis.behaviour import check_function
from keywise.diagnosis.finding import Check, Diagnosis, Finding, Where
from keywise.diagnosis.model import check_model

__all__ = ["Check", "Diagnosis", "Finding", "Where", "check", "check_function", "check_model"]
