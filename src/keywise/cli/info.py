"""`keywise info`: show the version, the CPU, the kernels and the models."""

from dataclasses import asdict

import keywise
from keywise.cli.options import AsJson
from keywise.cli.terminal import write, write_json
from keywise.errors import ModelError
from keywise.models.sources import HOW_TO_GET_THE_DEFAULT, list_models
from keywise.util.machine import list_available_cpus, read_cpu_name


def show_info(as_json: AsJson = False) -> None:
    """Show the version, the CPU, the kernels that can run, the threads and the models."""
    explanation = keywise.explain()
    cpu = f"{read_cpu_name()}, {len(list_available_cpus())} CPUs"
    model_error = None
    try:
        models = list_models()
    except ModelError as error:
        models = list_models(environment=False)
        model_error = str(error)
    if as_json:
        write_json(
            {
                "version": keywise.__version__,
                "cpu": cpu,
                "target": explanation.target,
                "targets": explanation.reasons,
                "threads": explanation.threads,
                "models": [asdict(model) for model in models],
                "model_error": model_error,
            }
        )
        return
    write(f"keywise {keywise.__version__}\ncpu     {cpu}\n{explanation}\nmodels\n")
    for model in models:
        size = "on the hub" if model.size_bytes is None else f"{model.size_bytes / 1e6:,.0f} MB"
        write(f"  {model.name}  ({model.origin}, {size})\n")
    if model_error:
        write(f"  {model_error}\n")
    elif not models:
        write(f"  none: {HOW_TO_GET_THE_DEFAULT}\n")
