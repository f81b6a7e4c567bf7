"""The files of a model's folder: which are read, that they lie inside, and that their sizes are sane.

transformers opens whatever a folder's files name. Therefore it is given a folder of links to the files that are listed
and checked here, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from keywise.models.safetensors_files import HeaderSummary, ModelFileError, summarise_headers

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_config.json"
TEMPLATES: Final = "additional_chat_templates"

# Suffixes of the files beside the weights that transformers can read.
_OTHER_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_PARSED = (CONFIG, "generation_config.json", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")

MAX_CONFIG_BYTES: Final = 1 << 24
MAX_OTHER_BYTES: Final = 1 << 28
MAX_STRING_CHARACTERS: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_NUMBER: Final = 1 << 53
MAX_PARTS: Final = 4096

# Entries that name code, kernels or other files. Without them transformers uses its own implementations.
_DROPPED_ENTRIES = frozenset(
    {
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "custom_pipelines",
        "distributed_config",
        "fusion_config",
        "kernel_config",
    }
)
_REFUSED_ENTRIES = ("transformers_weights", "gguf_file")
# Python's loops run this often while a model is built.
_PART_COUNT = re.compile(r"layers?$|blocks?$|block_count|depths?$|experts$|stages?$")
_POSITIVE_ENTRIES = frozenset(
    {
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "n_embd",
        "n_head",
        "n_layer",
        "n_positions",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
    }
)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model's folder that are read.

    Attributes
    ----------
    folder
        The folder, without links.
    weights
        The safetensors files, by their names in the folder.
    others
        Configurations, tokenizer and chat templates, by their names in the folder.
    """

    folder: Path
    weights: Mapping[str, Path]
    others: Mapping[str, Path]


def list_model_files(folder: Path) -> ModelFiles:
    """Return the files of a model that are read, after a check that they lie in its folder.

    A snapshot in the hub's cache may link to the ``blobs`` beside it.

    Parameters
    ----------
    folder : pathlib.Path
        A folder with ``config.json`` and safetensors.

    Raises
    ------
    ModelFileError
        The index names a file that is no safetensors file or lies elsewhere, a file is a link that leads out of the
        folder, or the folder holds an adapter.
    OSError
        A file cannot be read.
    """
    root = folder.resolve()
    roots = _list_roots(root)
    names = sorted(os.listdir(root))
    if ADAPTER in names:
        raise ModelFileError(
            f"{ADAPTER} belongs to an adapter, which changes the model; merge it into the weights with "
            "merge_and_unload() of peft and save the whole model"
        )
    weights = {name: _locate(root, name, roots) for name in names if name.endswith(".safetensors")}
    if WEIGHTS not in weights:
        if INDEX not in names:
            raise ModelFileError(f"it has neither {WEIGHTS} nor {INDEX}")
        for name in _read_index(_locate(root, INDEX, roots)):
            weights[name] = _locate(root, name, roots)
    others = {}
    for name in names:
        # Folders may have any name.
        if name.endswith(_OTHER_SUFFIXES) and not (root / name).is_dir():
            others[name] = _locate(root, name, roots)
    if (root / TEMPLATES).is_dir():
        for name in sorted(os.listdir(root / TEMPLATES)):
            if name.endswith(".jinja"):
                others[f"{TEMPLATES}/{name}"] = _locate(root, f"{TEMPLATES}/{name}", roots)
    for name, path in others.items():
        limit = MAX_CONFIG_BYTES if name in _PARSED or name.endswith(".jinja") else MAX_OTHER_BYTES
        if path.stat().st_size > limit:
            raise ModelFileError(f"{name} must have at most {limit:,} bytes, got {path.stat().st_size:,}")
    return ModelFiles(root, weights, others)


def list_encoder_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Return the files of a sentence encoder in a folder and its subfolders, after the same checks.

    Parameters
    ----------
    folder : pathlib.Path
        A folder of sentence-transformers.
    patterns : iterable of str
        The files that are read, such as ``"*.json"``.

    Returns
    -------
    dict of str to pathlib.Path
        The files without links, by their names in the folder.

    Raises
    ------
    ModelFileError
        A file, or what an index or ``modules.json`` names, lies elsewhere, is no safetensors file or is damaged, or a
        module is not one of sentence-transformers.
    OSError
        A file cannot be read.
    """
    root = folder.resolve()
    roots = _list_roots(root)
    found = sorted({path for pattern in patterns for path in root.rglob(pattern) if not path.is_dir()})
    files = {name: _locate(root, name, roots) for name in (path.relative_to(root).as_posix() for path in found)}
    summarise_headers({name: path for name, path in files.items() if name.endswith(".safetensors")})
    for name, path in files.items():
        parent = PurePosixPath(name).parent
        file_name = PurePosixPath(name).name
        if file_name == ADAPTER:
            raise ModelFileError(f"{name} belongs to an adapter")
        if file_name.endswith(".safetensors.index.json"):
            for shard in _read_index(path):
                _locate(root, str(parent / shard) if _is_inside(shard) else shard, roots)
        if file_name == CONFIG and _names_weights(read_json(path)):
            raise ModelFileError(f"{name} must not name other files of weights")
        if file_name == "modules.json":
            _check_modules(root, read_json(path), roots)
    return files


@contextmanager
def stage_files(files: ModelFiles) -> Iterator[tuple[Path, HeaderSummary]]:
    """Yield a temporary folder of links to a model's files, whose contents are within limits.

    Parameters
    ----------
    files : ModelFiles
        From `list_model_files`.

    Yields
    ------
    folder : pathlib.Path
        Has the model's files and nothing else. Entries of ``config.json`` and ``tokenizer_config.json`` that name code
        or other files are left out.
    headers : HeaderSummary
        What the safetensors files hold.

    Raises
    ------
    ModelFileError
        A file is damaged, or its numbers are out of bounds.
    """
    headers = summarise_headers(files.weights)
    configs = {name: read_json(files.others[name]) for name in _PARSED if name in files.others}
    if CONFIG not in configs:
        raise ModelFileError(f"it has no {CONFIG}")
    for name, config in configs.items():
        if not isinstance(config, dict):
            raise ModelFileError(f"{name} must be a JSON object")
    check_config(configs[CONFIG], max_parts=max(MAX_PARTS, headers.tensors, headers.largest_size))
    with tempfile.TemporaryDirectory(prefix="keywise-") as scratch:
        staged = Path(scratch)
        for name, path in {**files.weights, **files.others}.items():
            link = staged / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if name == CONFIG:
                link.write_text(json.dumps(_drop_entries(configs[CONFIG])), encoding="utf-8")
            elif name == _TOKENIZER_CONFIG:
                link.write_text(json.dumps(_drop_paths(configs[_TOKENIZER_CONFIG])), encoding="utf-8")
            else:
                link.symlink_to(path)
        try:
            yield staged, headers
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(staged), str(files.folder))) from error


def read_json(path: Path) -> Any:
    """Return the value of a small JSON file.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Raises
    ------
    ModelFileError
        The file is too large, no JSON, nested too deeply, repeats a name, or has a number or a string that is too
        large.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ModelFileError(f"{path.name} must have at most {MAX_CONFIG_BYTES:,} bytes")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_check_unique_names)
    except RecursionError:
        raise ModelFileError(f"{path.name} is nested too deeply") from None
    except ModelFileError as error:
        raise ModelFileError(f"{path.name} {error}") from None
    except ValueError as error:
        raise ModelFileError(f"{path.name} must be JSON: {error}") from error
    for depth, inner in _walk(value):
        if depth > MAX_DEPTH:
            raise ModelFileError(f"{path.name} is nested too deeply")
        if isinstance(inner, str) and len(inner) > MAX_STRING_CHARACTERS:
            raise ModelFileError(f"{path.name} has a string of {len(inner):,} characters")
        if isinstance(inner, float) and math.isnan(inner):
            raise ModelFileError(f"{path.name} has a number that is NaN")
    return value


def check_config(config: Mapping[str, Any], *, max_parts: int) -> None:
    """Raise an error if a number of a model's configuration is out of bounds.

    Parameters
    ----------
    config : mapping
        The parsed ``config.json``.
    max_parts : int
        Most layers, blocks or experts, from the tensors in the files.

    Raises
    ------
    ModelFileError
        A number is out of bounds, or an entry names other weights.

    Examples
    --------
    >>> check_config({"num_hidden_layers": 30}, max_parts=300)
    """
    for name in _REFUSED_ENTRIES:
        if config.get(name) is not None:
            raise ModelFileError(f"{name} of {CONFIG} must be absent, got {config[name]!r:.80}")
    for _, inner in _walk(config):
        if not isinstance(inner, dict):
            continue
        for name, value in inner.items():
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if type(number) is not int:
                    continue
                if abs(number) > MAX_NUMBER:
                    raise ModelFileError(f"{name:.80} of {CONFIG} must be at most 2**53, got {number!r:.40}")
                if number < 1 and name in _POSITIVE_ENTRIES:
                    raise ModelFileError(f"{name} of {CONFIG} must be 1 or more, got {number}")
                if number > max_parts and _PART_COUNT.search(name):
                    rule = f"must be at most {max_parts:,}, as the weights have no more, got {number:,}"
                    raise ModelFileError(f"{name:.80} of {CONFIG} {rule}")


def _read_index(path: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    if path.stat().st_size > MAX_OTHER_BYTES:
        raise ModelFileError(f"{INDEX} must have at most {MAX_OTHER_BYTES:,} bytes")
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{INDEX} must be JSON with a weight_map of file names") from error
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise ModelFileError(f"{INDEX} must name .safetensors files, got {name!r:.80}")
    return sorted(names)


def _check_modules(root: Path, modules: Any, roots: list[Path]) -> None:
    """Check what the ``modules.json`` of a sentence encoder names."""
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelFileError("modules.json must be a list of objects")
    for module in modules:
        kind, place = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise ModelFileError(f"modules.json must name modules of sentence_transformers, got {kind!r:.80}")
        if not isinstance(place, str):
            raise ModelFileError(f"modules.json must name folders, got {place!r:.80}")
        # Modules without settings need no folder.
        if place and not (_is_inside(place) and not os.path.lexists(root / place)):
            _resolve(root, place, roots)


def _list_roots(root: Path) -> list[Path]:
    """Return the folders in which the files of a model may lie: its own, and the blobs beside a snapshot of the hub."""
    if root.parent.name != "snapshots":
        return [root]
    return [root, (root.parent.parent / "blobs").resolve()]


def _names_weights(config: Any) -> bool:
    return isinstance(config, dict) and any(config.get(entry) is not None for entry in _REFUSED_ENTRIES)


def _is_inside(name: str) -> bool:
    """Return whether a name leads neither up nor to the root, and has no character that systems read differently."""
    path = PurePosixPath(name)
    return bool(path.parts) and not {"\0", "\\"} & set(name) and ".." not in path.parts and not path.is_absolute()


def _locate(root: Path, name: str, roots: list[Path]) -> Path:
    """Return a file of the folder without links; raise an error if it lies elsewhere."""
    path = _resolve(root, name, roots)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelFileError(f"{name!r:.80} must be a file")
    return path


def _resolve(root: Path, name: str, roots: list[Path]) -> Path:
    """Return a file or folder of the folder without links; raise an error if it lies elsewhere."""
    if not _is_inside(name):
        raise ModelFileError(f"file names must stay inside the folder, got {name!r:.80}")
    try:
        path = (root / name).resolve(strict=True)
    except RuntimeError as error:  # links in a circle
        raise ModelFileError(f"{name!r:.80} is a link to itself") from error
    except UnicodeEncodeError as error:  # JSON can name half a character
        raise ModelFileError(f"{name!r:.80} is no name of a file") from error
    except OSError as error:
        raise ModelFileError(f"{name!r:.80} cannot be read: {error.strerror}") from error
    if not any(path.is_relative_to(allowed) for allowed in roots):
        raise ModelFileError(f"files must lie inside the folder, but {name!r:.80} is a link to {str(path)!r:.200}")
    return path


def _drop_entries(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_entries(inner) for name, inner in value.items() if name not in _DROPPED_ENTRIES}
    if isinstance(value, list):
        return [_drop_entries(inner) for inner in value]
    return value


def _drop_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's configuration without arguments that name files or code."""
    # transformers finds the files of a tokenizer by their usual names.
    return {
        name: value
        for name, value in _drop_entries(config).items()
        if name not in {"init_inputs", "tokenizer_object", "fast_tokenizer_files", "name_or_path"}
        and not name.endswith(("_file", "_files"))
    }


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Yield every value inside a JSON value with its depth, itself included."""
    pending = [(0, value)]
    while pending:
        depth, inner = pending.pop()
        yield depth, inner
        if isinstance(inner, dict):
            pending += [(depth + 1, each) for each in inner.values()]
        elif isinstance(inner, list):
            pending += [(depth + 1, each) for each in inner]


def _check_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ModelFileError("repeats a name in an object")
    return values
