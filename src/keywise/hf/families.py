"""The model families of the installed transformers: which keywise serves, which it refuses, which were tested."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Final, NamedTuple

from keywise.hf.compatibility import list_model_types
from keywise.hf.parts import import_transformers

TABLE: Final = Path(__file__).with_name("families.json")
"""Results of tests/families, which builds every family and compares it with eager attention."""


class FamilySupport(NamedTuple):
    """What keywise does with the models of a family.

    Attributes
    ----------
    status : str
        ``"served"``: `use` accepts the models. ``"refused"``: it raises an error. ``"partly"``: some classes are
        served, others refused. ``"no attention"``: there is nothing to serve. ``"unknown"``: the source calls
        transformers' attention interface, but no model was tested.
    reason : str
        Why models are refused or were not tested; empty otherwise.
    tested : str or None
        The version of transformers with which a model of the family was compared with eager attention.

    Examples
    --------
    >>> import keywise.hf
    >>> keywise.hf.supported()["llama"].status
    'served'
    """

    status: str
    reason: str
    tested: str | None


def supported() -> dict[str, FamilySupport]:
    """List the model families of the installed transformers and what keywise does with them.

    No model is built or imported: the list combines the installed families with the table of those that were tested.
    `use` decides for each model; a model that only combines others, such as an image encoder with a language model, is
    served if its parts are.

    Returns
    -------
    dict of str to FamilySupport
        Keys are the values of ``config.model_type``, sorted.

    Raises
    ------
    ModelError
        torch or transformers is not installed.

    Examples
    --------
    >>> import keywise.hf
    >>> families = keywise.hf.supported()
    >>> families["llama"].status, families["xlnet"].status
    ('served', 'refused')
    """
    return dict(_list_families())


@functools.cache
def _list_families() -> dict[str, FamilySupport]:
    version = import_transformers().__version__
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    is_walked = version == table["transformers"]
    families = {}
    for name, folder in sorted(list_model_types().items()):
        entry = table["families"].get(name)
        if entry is None or entry["status"] == "unknown":
            reason = entry["reason"] if entry else f"not in the table for transformers {table['transformers']}"
            families[name] = _judge_source(folder, reason)
        elif not is_walked and _has_fixed_attention(folder):
            families[name] = FamilySupport("refused", f"its attention cannot be exchanged in {version}", None)
        elif not is_walked and entry["status"] == "refused" and _calls_interface(_read_models(folder)):
            reason = f"not tested; refused with transformers {table['transformers']}: {entry['reason']}"
            families[name] = FamilySupport("unknown", reason, None)
        else:
            families[name] = FamilySupport(entry["status"], entry["reason"], table["transformers"])
    return families


def _judge_source(folder: Path, reason: str) -> FamilySupport:
    if _calls_interface(_read_models(folder)):
        return FamilySupport("unknown", f"not tested: {reason}", None)
    return FamilySupport("refused", "its source does not call transformers' attention interface", None)


def _has_fixed_attention(folder: Path) -> bool:
    """Return whether a family has attention layers of its own that do not call the attention interface."""
    source = _read_models(folder)
    return re.search(r"^class \w+Attention\b", source, re.MULTILINE) is not None and not _calls_interface(source)


def _calls_interface(source: str) -> bool:
    # transformers decides by the same text whether set_attn_implementation() may change a model.
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in source


def _read_models(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("modeling_*.py")))
