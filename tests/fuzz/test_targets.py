"""Every fuzz target serves or refuses its seeds, the inputs that once failed, and mutations of them."""

import importlib
import random
from pathlib import Path

import pytest

from tests.fuzz.targets import SLOWER, TARGETS

SEEDS = Path(__file__).parent / "seeds"
MUTATIONS = 500


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_mutations_are_served_or_refused(name: str) -> None:
    target = importlib.import_module(f"tests.fuzz.targets.{name}")
    seeds = target.make_seeds()
    failures = sorted((SEEDS / name).glob("*")) if (SEEDS / name).is_dir() else []
    for content in [b"", *seeds, *(path.read_bytes() for path in failures)]:
        target.execute(content)
    random_numbers = random.Random(name)
    for _ in range(MUTATIONS // SLOWER.get(name, 1)):
        target.execute(mutate(random_numbers.choice(seeds), random_numbers))


def mutate(content: bytes, random_numbers: random.Random) -> bytes:
    """Change, remove or repeat a few bytes."""
    changed = bytearray(content)
    for _ in range(random_numbers.randint(1, 4)):
        start = random_numbers.randrange(len(changed) + 1)
        length = random_numbers.choice((1, 1, 1, 2, 8, 100))
        kind = random_numbers.randrange(3)
        if kind == 0:
            changed[start : start + length] = random_numbers.randbytes(length)
        elif kind == 1:
            del changed[start : start + length]
        else:
            changed[start:start] = changed[start : start + length]
    return bytes(changed)
