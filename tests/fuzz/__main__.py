"""Fuzz targets one after the other: ``python -m tests.fuzz [TARGET ...]``.

Inputs that fail are kept in build/fuzz/TARGET; add them to tests/fuzz/seeds/TARGET when the fault is mended.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import SLOWER, TARGETS

ROOT = Path(__file__).parent.parent.parent
SEEDS = Path(__file__).parent / "seeds"
MEMORY_MEBIBYTES = 4096
HANG_SECONDS = 10
MEMORY_FOLDER = "/dev/shm"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz keywise with atheris.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default all")
    parser.add_argument(
        "--executions", type=int, default=200_000, help="of each target; slow ones run a 10th or a 50th of it"
    )
    parser.add_argument("--seconds", type=int, default=0, help="longest time of each target; default no limit")
    parser.add_argument("--seed", type=int, default=1, help="of the random mutations; 0 takes another one every time")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"TARGET must be one of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    failed = 0
    for target in arguments.targets or TARGETS:
        executions = max(1, arguments.executions // SLOWER.get(target, 1))
        failed += not fuzz(target, executions, arguments.seconds, arguments.seed)
    return int(failed > 0)


def fuzz(target: str, executions: int, seconds: int, seed: int) -> bool:
    """Fuzz one target, print a line, and return whether nothing failed."""
    folder = ROOT / "build" / "fuzz" / target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "tests.fuzz.worker", target),
        *(f"-runs={executions}", f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG_SECONDS}"),
        f"-rss_limit_mb={MEMORY_MEBIBYTES}",
        *(f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)),
    ]
    if (SEEDS / target).is_dir():
        command.append(str(SEEDS / target))
    # Targets replace files, which is faster in memory.
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if os.path.isdir(MEMORY_FOLDER) else None) as scratch:
        environment = {**os.environ, "TMPDIR": scratch}
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    counted = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    times = re.search(r"Done \d+ runs in (\d+) second", ended.stderr)
    outcome = "no failure" if ended.returncode == 0 else f"FAILED, input in {folder}"
    count = int(counted[1]) if counted else 0
    print(f"{target:<18} {count:>10,} executions {times[1] if times else '?':>6} s  {outcome}", flush=True)
    if ended.returncode:
        print(ended.stderr[-3000:])
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
