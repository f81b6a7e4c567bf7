"""Files of recorded statistics: safetensors, with the calls and a digest of everything in the metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.attention.stats import AttentionStats
from keywise.cache.safetensors_header import LENGTH_WORD, MAX_HEADER_BYTES, parse_header
from keywise.errors import FormatError, MissingFileError
from keywise.hf.layer_stats import STATISTICS, LayerStats, get_statistic
from keywise.util.atomic_write import atomic_write
from keywise.util.optional_imports import require_modules
from keywise.util.regular_files import open_regular

FORMAT: Final = "keywise.stats_record"
VERSION: Final = "1"
OPTIONAL: Final = ("key_mass", "segment_mass")
# Axes of each statistic after [B, Hq]; of those that are not here, the queries alone.
_LAST_AXES: Final = {"top_keys": 2, "top_weights": 2, "segment_mass": 2, "key_mass": 1}


def write_calls(record: Iterable[LayerStats], path: str | os.PathLike[str]) -> None:
    """Write recorded calls to a file, or replace a file by them.

    Parameters
    ----------
    record : iterable of LayerStats
        The calls.
    path : path
        The file.

    Raises
    ------
    FormatError
        The file cannot be written.
    ModelError
        safetensors is not installed.
    """
    require_modules("hf", "safetensors")
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    calls: list[dict[str, Any]] = []
    for number, call in enumerate(record):
        for name in STATISTICS:
            if getattr(call.stats, name) is not None:
                arrays[f"{number}.{name}"] = np.ascontiguousarray(get_statistic(call, name))
        calls.append(
            {
                "name": call.name,
                "layer": call.layer,
                "kind": call.kind,
                "step": call.step,
                "queries": call.queries,
                "heads": call.heads,
                "first_key": call.first_key,
            }
        )
    described = json.dumps(calls)
    metadata = {"format": FORMAT, "version": VERSION, "calls": described, "sha256": _digest(described, arrays)}
    try:
        with atomic_write(path) as file:
            file.write(save(arrays, metadata))
    except OSError as error:
        rule = "must name a file that can be written"
        raise FormatError("path", rule, got=os.fspath(path), remedy=str(error.strerror or error)) from error


def read_calls(path: str | os.PathLike[str]) -> list[LayerStats]:
    """Return the recorded calls in a file.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    MissingFileError, FormatError
        The file is missing, damaged or no record.
    ModelError
        safetensors is not installed.
    """
    require_modules("hf", "safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open_regular(path) as file:
            metadata, header = _read_header(file)
            # Other files may be models of many gigabytes.
            content = header + file.read() if metadata.get("format") == FORMAT else b""
    except FileNotFoundError as error:
        raise MissingFileError("path", "must name an existing file", got=os.fspath(path)) from error
    except OSError as error:
        raise _refuse(path, str(error.strerror or error)) from error
    except ValueError as error:
        raise _refuse(path, f"it is no safetensors file, or damaged: {error}") from error
    if not content:
        raise _refuse(path, "it is another safetensors file")
    if metadata.get("version") != VERSION:
        raise FormatError("path", f"{os.fspath(path)!r} was made by another build", remedy="record it again")
    try:
        arrays = load(content)
        is_intact = _digest(metadata["calls"], arrays) == metadata["sha256"]
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise _refuse(path, f"it is damaged: {error}") from error
    if not is_intact:
        raise _refuse(path, "it is damaged")
    try:
        return [
            _make_call(call, {name: arrays[key] for name in STATISTICS if (key := f"{number}.{name}") in arrays})
            for number, call in enumerate(json.loads(metadata["calls"]))
        ]
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise _refuse(path, f"its calls do not fit its arrays: {error}") from error


def _refuse(path: str | os.PathLike[str], reason: str) -> FormatError:
    rule = "must name a file of recorded statistics"
    return FormatError("path", rule, got=os.fspath(path), remedy=f"{reason}; write it with StatsRecord.save")


def _read_header(file: IO[bytes]) -> tuple[dict[str, str], bytes]:
    """Return the metadata of a safetensors file, and the bytes up to the end of its header."""
    length = file.read(LENGTH_WORD.size)
    header_bytes = LENGTH_WORD.unpack(length)[0] if len(length) == LENGTH_WORD.size else 0
    header = file.read(header_bytes) if header_bytes <= MAX_HEADER_BYTES else b""
    if not header or len(header) < header_bytes:
        raise ValueError("it is cut short, or its length is")
    return parse_header(header)[0], length + header


def _digest(calls: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(calls.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _make_call(call: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LayerStats:
    name, layer, kind = call["name"], call["layer"], call["kind"]
    heads = _check_numbers(call["heads"])
    first, last = _check_numbers(call["queries"])
    step, first_key = _check_numbers([call["step"], call["first_key"]])
    if not isinstance(name, str) or kind not in {"self", "cross"} or not (layer is None or type(layer) is int):
        raise ValueError("a name, layer or kind")
    missing = set(STATISTICS) - set(OPTIONAL) - arrays.keys()
    if missing:
        raise ValueError(f"there is no {', '.join(sorted(missing))}")
    batch = arrays["lse"].shape[0]
    for statistic, array in arrays.items():
        expected = [batch, len(heads)] + ([] if statistic == "key_mass" else [last - first])
        axes = 2 + _LAST_AXES.get(statistic, 1)
        if array.ndim != axes or list(array.shape[: len(expected)]) != expected:
            raise ValueError(f"the shape of {statistic} is {array.shape}")
        if array.dtype.name != ("int32" if statistic == "top_keys" else "float32"):
            raise ValueError(f"the dtype of {statistic} is {array.dtype.name}")
    stats = AttentionStats(output=None, **arrays)
    return LayerStats(name, layer, kind, step, (first, last), heads, first_key, stats)


def _check_numbers(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"numbers must be 0 or more, got {values!r:.40}")
    return tuple(values)
