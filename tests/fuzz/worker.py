"""Fuzz one target with atheris: ``python -m tests.fuzz.worker TARGET LIBFUZZER_OPTIONS... CORPUS [SEEDS]``.

The target's own seeds are written to the folder CORPUS first. An allocation fails when the process has taken a gigabyte
more than its modules did; most targets fail then.
"""

import sys
from pathlib import Path

import atheris

ALLOCATION_BYTES = 1 << 30
# libFuzzer ends hangs; this is the limit of the whole run.
CPU_SECONDS = 1 << 20

with atheris.instrument_imports(include=["keywise"], enable_loader_override=False):
    import importlib

    from keywise.documents.conversion_worker import set_limits

    module = importlib.import_module(f"tests.fuzz.targets.{sys.argv[1]}")

corpus = Path(next(argument for argument in sys.argv[2:] if not argument.startswith("-")))
for number, content in enumerate(module.make_seeds()):
    (corpus / f"seed-{number}").write_bytes(content)
# libFuzzer measures the time of the first input too: what the seeds start or import must not count.
for content in module.make_seeds():
    module.execute(content)
set_limits(ALLOCATION_BYTES, CPU_SECONDS)
atheris.Setup([sys.argv[0], *sys.argv[2:]], module.execute)
atheris.Fuzz()
