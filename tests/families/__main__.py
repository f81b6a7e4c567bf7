# ruff: noqa: T201  (a command prints)
"""The command line: `python -m tests.families --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Walk the families, write the results and tables, and return 1 if a class is served and unequal."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("families", nargs="*", help="names of folders of transformers.models; default all")
    parser.add_argument("--only", metavar="CLASS", help="check this class alone and print its verdicts")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "families.json")
    parser.add_argument("--again", action="store_true", help="check families that are in the results too")
    parser.add_argument("--quick", action="store_true", help="leave out heads of classifiers and the like")
    parser.add_argument("--write", action="store_true", help="write docs/families.md and the table of the package")
    options = parser.parse_args()

    from tests.families import catalog, table, walk

    options.results.parent.mkdir(parents=True, exist_ok=True)
    families = options.families or catalog.list_families()
    if options.only and not options.families:
        families = [name for name in families if catalog.has_class(name, options.only)]
    results = walk.walk(families, options.results, only=options.only, again=options.again, quick=options.quick)
    for family in families if options.only or options.families else ():
        for verdict in results["families"].get(family, []):
            if walk.is_chosen(verdict["name"], options.only):
                print(table.describe(verdict))
    unequal = table.list_unequal(results)
    for verdict in unequal:
        print(f"unequal: {verdict['name']}: {verdict['reason']}", file=sys.stderr)
    print(table.count(results))
    if options.write:
        table.write(results, ROOT)
    return bool(unequal)


if __name__ == "__main__":
    sys.exit(main())
