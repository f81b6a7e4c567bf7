"""`keywise tune --alignments`: choose the heads of a model that align words."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from keywise.alignment.align import list_candidates
from keywise.alignment.head_ranking import rank_heads
from keywise.alignment.heads import AlignmentHeads, locate_own_heads
from keywise.alignment.pairs import load_gold, load_pairs
from keywise.alignment.tune import GoldPair, make_gold_pair, tune_heads
from keywise.cli.align import load_reader
from keywise.cli.output_file import check_output_file
from keywise.cli.terminal import show_progress, write, write_json
from keywise.errors import OptionError

MAX_RANKED_PAIRS = 100


def tune_alignments(
    pairs: Path,
    gold: Path | None,
    *,
    model: str | None,
    reverse_model: str | None,
    languages: str | None,
    dtype: str | None,
    one_way: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Choose alignment heads from sentence pairs, with hand-made links or by agreement without them."""
    if out is not None:
        check_output_file("out", str(out), inputs=[str(pairs)])
    read = load_pairs(pairs)
    labels = None if gold is None else load_gold(gold)
    if labels is not None and len(labels) != len(read):
        raise OptionError("gold", f"must have {len(read)} lines, one for each pair", got=len(labels))
    notices = Console(stderr=True)
    loaded, reader = load_reader(notices, model, reverse_model, languages, dtype, one_way=one_way)
    all_heads = list_candidates(reader) if labels is None else reader.list_all_heads()
    shown = read if labels is not None else read[:MAX_RANKED_PAIRS]
    with show_progress(notices, "Reading", "pairs") as progress:
        weights = []
        for number, (source, target) in enumerate(shown):
            weights.append(reader.read(source, target, all_heads))
            progress(number + 1, len(shown))
    rates: dict[str, float] = {}
    if labels is None:
        heads = rank_heads(weights, all_heads)
    else:
        gold_pairs: list[GoldPair] = [make_gold_pair(*each, links) for each, links in zip(weights, labels, strict=True)]
        with show_progress(notices, "Choosing", "fits") as progress:
            result = tune_heads(gold_pairs, all_heads, tuned_on=f"{pairs.name}, {len(read)} pairs", progress=progress)
        heads, rates = result.heads, result.error_rates
    digests = loaded.fingerprint()
    path = out
    if path is None:
        path = locate_own_heads(digests)
        path.parent.mkdir(parents=True, exist_ok=True)
    heads.save(path, model=loaded.name, weights=digests["weights"])
    _show(heads, rates, path, len(shown), as_json=as_json)


def _show(heads: AlignmentHeads, rates: dict[str, float], path: Path, pairs: int, *, as_json: bool) -> None:
    if as_json:
        write_json({"file": str(path), "pairs": pairs, "error_rates": rates, "heads": asdict(heads)})
        return
    for label, chosen in (("forward heads", heads.forward), ("backward heads", heads.backward)):
        if chosen:
            names = ", ".join(f"{each.layer}.{each.head} ({each.row})" for each in chosen)
            write(f"{label:<16}{names}\n")
    for direction, rate in rates.items():
        write(f"{f'AER, {direction}':<16}{100 * rate:.2f} (four-fold)\n")
    if not heads.is_tuned:
        write(f"{'untuned':<16}ranked without labels\n")
    write(f"{'written to':<16}{path}\n")
