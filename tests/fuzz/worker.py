"""Fuzz one target with atheris: ``python -m tests.fuzz.worker TARGET LIBFUZZER_OPTIONS...``."""

import sys

import atheris

with atheris.instrument_imports(include=["keywise"], enable_loader_override=False):
    import importlib

    module = importlib.import_module(f"tests.fuzz.targets.{sys.argv[1]}")

atheris.Setup([sys.argv[0], *sys.argv[2:]], module.execute)
atheris.Fuzz()
