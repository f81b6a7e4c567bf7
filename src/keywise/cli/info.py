"""`keywise info`: what runs here."""

from dataclasses import asdict

import keywise
from benchmarks.machine import available_cpus, cpu_name
from keywise.cli.options import AsJson
from keywise.cli.terminal import write, write_json
from keywise.errors import ModelError
from keywise.models.sources import HOW_TO_GET_THE_DEFAULT, list_models


def info(as_json: AsJson = False) -> None:
    """Show version, CPU, kernels that run here and why the others do not, threads, and models found."""
    explanation = keywise.explain()
    cpu = f"{cpu_name()}, {len(available_cpus())} CPUs"
    model_error = None
    try:
        models = list_models()
    except ModelError as error:
        models, model_error = list_models(environment=False), str(error)
    if as_json:
        write_json(
            {
                "version": keywise.__version__,
                "cpu": cpu,
                "target": explanation.target,
                "targets": explanation.reasons,
                "threads": explanation.threads,
                "models": [asdict(found) for found in models],
                "model_error": model_error,
            }
        )
        return
    write(f"keywise {keywise.__version__}\ncpu     {cpu}\n{explanation}\nmodels\n")
    for found in models:
        size = f"{found.size_bytes / 1e6:,.0f} MB" if found.size_bytes is not None else "on the hub"
        write(f"  {found.name}  ({found.origin}, {size})\n")
    if model_error:
        write(f"  {model_error}\n")
    elif not models:
        write(f"  none: {HOW_TO_GET_THE_DEFAULT}\n")
