"""Training steps of a language model on keywise and on transformers' sdpa: equal losses, and time per step."""

# ruff: noqa: PLC0415  (torch is slow to import: only the process that measures needs it)

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.markdown import format_number, format_table, format_threads
from benchmarks.processes import run_in_process
from benchmarks.results import Run
from keywise.errors import OptionError
from keywise.util.optional_imports import require_modules

SDPA, KEYWISE = "sdpa", "keywise"
METHODS = ("full", "lora")
DTYPES = ("float32", "bfloat16")
LEARNING_RATE = 1e-4
LORA_RANK = 8
FIRST_TOKENS = 100
"""Ids from here on are words of the default model's vocabulary."""


class TrainingTask(NamedTuple):
    """What is trained.

    Attributes
    ----------
    method
        ``"full"`` for all weights, ``"lora"`` for adapters of rank `LORA_RANK` at the query and value projections.
    dtype
        Of the weights.
    tokens
        Length of the text of every step.
    """

    method: str
    dtype: str
    tokens: int


def select_tasks(
    methods: Sequence[str] | None, dtypes: Sequence[str] | None, tokens: Sequence[int] | None
) -> list[TrainingTask]:
    """Return the tasks of the named methods, dtypes and lengths; None for all.

    Parameters
    ----------
    methods, dtypes, tokens
        Names and lengths.

    Raises
    ------
    OptionError
        A name is unknown.
    """
    for name, chosen, known in (("method", methods, METHODS), ("dtype", dtypes, DTYPES)):
        for each in chosen or ():
            if each not in known:
                raise OptionError(name, f"must be {' or '.join(known)}", got=each)
    return [
        TrainingTask(method, dtype, length)
        for method in methods or METHODS
        for dtype in dtypes or DTYPES
        for length in tokens or (1024, 2048)
    ]


def run_tasks(model: str | None, tasks: Sequence[TrainingTask], steps: int, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the losses and times of each task, each measured in a process of its own.

    Parameters
    ----------
    model
        The language model; None for the default.
    tasks
        What to train.
    steps
        Number of steps.
    threads
        Number of threads.

    Raises
    ------
    ModelError
        LoRA is asked for and peft is not installed.
    """
    if any(task.method == "lora" for task in tasks):
        require_modules("bench", "peft")
    for task in tasks:
        yield from run_in_process(_measure_task, model, task, steps, threads, threads=threads)


def _measure_task(model: str | None, task: TrainingTask, steps: int, threads: int) -> Iterator[dict[str, Any]]:
    """Train two copies of the model in turns, so that other load on the machine meets both."""
    import torch

    trainings = {attention: _prepare(model, task, attention) for attention in (SDPA, KEYWISE)}
    losses: dict[str, list[float]] = {attention: [] for attention in trainings}
    seconds: dict[str, list[float]] = {attention: [] for attention in trainings}
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        # Lines that repeat can be learnt in a few steps.
        line = torch.randint(FIRST_TOKENS, 10_000, (1, 64), generator=generator)
        ids = line.repeat(1, -(-task.tokens // 64))[:, : task.tokens]
        for attention, (trained, optimizer) in trainings.items():
            start = time.perf_counter()
            loss = trained(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds[attention].append(time.perf_counter() - start)
            losses[attention].append(loss.item())
    yield {**task._asdict(), "threads": threads, "losses": losses, "seconds_per_step": seconds}


def _prepare(name: str | None, task: TrainingTask, attention: str) -> tuple[Any, Any]:
    import torch

    import keywise.hf
    from keywise.models.loading import load_model

    model = load_model(name, dtype=task.dtype, weights="expanded").model
    if attention == KEYWISE:
        keywise.hf.use(model)
    else:
        model.set_attn_implementation(attention)
    model.requires_grad_(True).train()
    if task.method == "lora":
        import peft

        torch.manual_seed(0)  # of the adapters' weights
        config = peft.LoraConfig(r=LORA_RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.AdamW(parameters, LEARNING_RATE)


def format_tables(runs: Sequence[Run]) -> str:
    """Format one table of losses and times per run."""
    return "\n\n".join(_format_steps(run.results) for run in runs)


def _format_steps(results: Sequence[dict[str, Any]]) -> str:
    columns = [
        "training",
        "steps",
        "first loss",
        "last loss",
        "largest difference of losses",
        "sdpa, s/step",
        "keywise, s/step",
        "sdpa ÷ keywise",
    ]
    rows = []
    for result in results:
        losses, seconds = result["losses"], result["seconds_per_step"]
        differences = [abs(first - second) for first, second in zip(losses[SDPA], losses[KEYWISE], strict=True)]
        medians = {attention: statistics.median(seconds[attention]) for attention in (SDPA, KEYWISE)}
        method = "all weights" if result["method"] == "full" else f"LoRA of rank {LORA_RANK}"
        rows.append(
            [
                f"{method}, {result['dtype']}, {result['tokens']} tokens, {format_threads(result['threads'])}",
                str(len(losses[KEYWISE])),
                f"{losses[KEYWISE][0]:.4f}",
                f"{losses[KEYWISE][-1]:.4f}",
                f"{max(differences):.2g}",
                format_number(medians[SDPA]),
                format_number(medians[KEYWISE]),
                f"{medians[SDPA] / medians[KEYWISE]:.2f}",
            ]
        )
    return format_table(columns, rows)
