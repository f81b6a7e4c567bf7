"""Inputs for any model: made from the names of its arguments and its configuration, shapes found by trying."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tests.families import settings

BATCH = 2
TOKENS = 14
REAL_TOKENS = 9
TARGETS = 7
REAL_TARGETS = 5
SOURCES = 11
SIDES = (None, "right", "left")

_PICTURES = ("pixel_values", "pixel_values_videos", "hidden_states", "image", "flattened_patches", "patch_embeds")
_SOUNDS = ("input_features", "input_values", "audio_values", "input_sound")
_MELS = (
    "num_mel_bins",
    "feature_size",
    "n_mels",
    "mel_bins",
    "input_feat_size",
    "num_mels",
    "input_feat_per_channel",
    "feature_projection_input_dim",
    "input_dim",
    "input_channels",
    "mel_dim",
    "input_size",
    "audio_in_channel",
)
_MARKED = ("ForSequenceClassification", "ForQuestionAnswering")
_MODALITIES = ("image", "video", "audio")
_PLACEHOLDERS = {
    "image": (
        "image_token_id",
        "image_token_index",
        "img_token_id",
        "media_token_id",
        "image_pad_token_id",
        "im_patch_id",
    ),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index", "speech_token_id", "sound_token_id", "audio_pad_token_id"),
}


@dataclass(frozen=True)
class Plan:
    """What the signature does not tell.

    Attributes
    ----------
    names : tuple of str
        The pictures and sounds to pass.
    shapes : dict
        The alternative of each.
    placeholders : dict
        Tokens per row that stand for pictures, videos and sounds.
    """

    names: tuple[str, ...] = ()
    shapes: dict[str, int] = field(default_factory=dict)
    placeholders: dict[str, int] = field(default_factory=dict)


@dataclass
class Inputs:
    """Arguments of a model's forward, and which positions of an axis of this length are actual."""

    arguments: dict[str, Any]
    actual: dict[int, Any]
    sounds: bool = False


def find(config: Any, *names: str, default: Any = None, parts: tuple[str, ...] = ()) -> Any:
    """Return the first value that a configuration or one of its parts has under one of the names."""
    queue = [config]
    seen: list[Any] = []
    while queue:
        current = queue.pop(0)
        seen.append(current)
        subs = getattr(current, "sub_configs", {}) or {}
        queue += [part for name in subs if (part := getattr(current, name, None)) is not None and part not in queue]
    preferred = [each for each in seen if any(part in type(each).__name__.lower() for part in parts)]
    for each in [*preferred, *seen]:
        for name in names:
            value = vars(each).get(name) if name in vars(each) else _get_attribute(each, name)
            if value is not None and not callable(value):
                return value
    return default


def _get_attribute(config: Any, name: str) -> Any:
    # A configuration with settings per layer raises an error of its own.
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001
        return None


def list_parameters(model: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a model's forward."""
    parameters = inspect.signature(model.forward).parameters
    return {n: p for n, p in parameters.items() if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}}


class Maker:
    """Makes the inputs of one model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        self.parameters = list_parameters(model)
        self.name = type(model).__name__

    # The choices

    def list_plans(self) -> Iterator[Plan]:
        """Yield plans, those with most kinds of input first."""
        known = [n for n in self.parameters if n in _PICTURES or n in _SOUNDS]
        if "input_ids" in self.parameters and "hidden_states" in known:
            known.remove("hidden_states")
        known = [n for n in known if n not in settings.LEFT_OUT.get(self.name, ())]
        required = [n for n in known if self.parameters[n].default is inspect.Parameter.empty]
        main = [self.model.main_input_name] if self.model.main_input_name in known else []
        groups = [
            known,
            [n for n in known if n != "pixel_values_videos"],
            sorted({*required, *main}),
            *[[n] for n in known],
        ]
        groups.append([])
        tried: set[tuple[str, ...]] = set()
        for group in groups:
            names = tuple(group)
            if names in tried:
                continue
            tried.add(names)
            counts = [range(len(list(self.list_shapes(name)))) for name in names]
            for combination in itertools.islice(itertools.product(*counts), 10):
                yield Plan(names, dict(zip(names, combination, strict=True)))

    def adjust(self, plan: Plan, error: str) -> Plan | None:
        """Return a plan with as many placeholders as an error of the model asks for."""
        match = re.search(r"tokens?:? ?(\d+)?.*?features?:? ?(?:torch\.Size\(\[)?(\d+)(?:, (\d+))?", error)
        if not match or "match" not in error:
            return None
        kind = next((m for m in _MODALITIES if m in error.lower()), "image")
        features = int(match.group(2))
        if "Size" in error and match.group(3):
            features *= int(match.group(3))
        wanted = max(features // BATCH, 1)
        width = find(self.config, "hidden_size", "d_model", default=1, parts=("text",))
        if isinstance(width, int) and wanted > 2 * width and wanted % width == 0:
            # Some models count the numbers of all features.
            wanted //= width
        if plan.placeholders.get(kind) == wanted or wanted > 300:
            return None
        return replace(plan, placeholders={**plan.placeholders, kind: wanted})

    def _placeholder(self, kind: str) -> int | None:
        value = find(self.config, *_PLACEHOLDERS[kind])
        return value if isinstance(value, int) else None

    def _count_placeholders(self, plan: Plan, kind: str) -> int:
        if kind in plan.placeholders:
            return plan.placeholders[kind]
        present = {
            "image": any(name in plan.names for name in ("pixel_values", "image", "flattened_patches")),
            "video": "pixel_values_videos" in plan.names,
            "audio": any(name in plan.names for name in _SOUNDS),
        }[kind]
        return 1 if present and self._placeholder(kind) is not None else 0

    # The inputs

    def make(self, plan: Plan, side: str | None) -> Inputs:
        """Make inputs; with a side the second row is padded there."""
        generator = torch.Generator().manual_seed(5)
        arguments: dict[str, Any] = {}
        actual: dict[int, Any] = {}
        for name in plan.names:
            arguments.update(list(self.list_shapes(name))[plan.shapes[name]](generator))
        has_sound = any(name in _SOUNDS for name in plan.names)
        if "input_ids" in self.parameters and not self._takes_only_sound(plan):
            self._add_text(plan, side, arguments, actual, generator)
        elif has_sound and side is not None:
            self._add_sound_masks(("attention_mask", *_SOUND_MASKS), side, arguments, actual)
        if has_sound and (side is None or "input_ids" in self.parameters):
            self._add_sound_masks(_SOUND_MASKS, side, arguments, actual)
        if side == "right" and "pixel_mask" in self.parameters and "pixel_values" in arguments:
            self._add_picture_mask("pixel_mask", arguments)
        if "decoder_input_ids" in self.parameters and not self.name.endswith(_MARKED):
            ids, mask = _draw_ids(TARGETS, REAL_TARGETS, side, generator, self._highest_id())
            arguments["decoder_input_ids"] = ids
            actual[TARGETS] = mask.bool()
            if side is not None and "decoder_attention_mask" in self.parameters:
                arguments["decoder_attention_mask"] = mask
        if getattr(self.config, "add_cross_attention", False) and "encoder_hidden_states" in self.parameters:
            width = find(self.config, "hidden_size", "d_model", "n_embd", default=32)
            arguments["encoder_hidden_states"] = torch.randn(BATCH, SOURCES, width, generator=generator)
            if side is not None and "encoder_attention_mask" in self.parameters:
                arguments["encoder_attention_mask"] = _mask_side(SOURCES, SOURCES - 4, side)
        self._add_others(arguments, generator)
        for name, make in settings.INPUTS.get(self.name, {}).items():
            value = make(self.config, arguments, side) if callable(make) else make
            if value is settings.OMIT:
                arguments.pop(name, None)
            else:
                arguments[name] = value
        return Inputs(arguments, actual if side is not None else {}, sounds=has_sound)

    def _takes_only_sound(self, plan: Plan) -> bool:
        return (
            bool(plan.names)
            and plan.names[0] in _SOUNDS
            and self.model.main_input_name in _SOUNDS
            and all(self._placeholder(kind) is None for kind in _MODALITIES)
        )

    def _highest_id(self) -> int:
        return max(min(int(find(self.config, "vocab_size", default=64) or 64), 95), 12)

    def _add_text(self, plan: Plan, side: str | None, arguments: Any, actual: Any, generator: Any) -> None:
        counts = {kind: self._count_placeholders(plan, kind) for kind in _MODALITIES}
        extra = sum(counts.values())
        ids, mask = _draw_ids(TOKENS + extra, REAL_TOKENS + extra, side, generator, self._highest_id())
        kinds = torch.zeros_like(ids)
        for row in range(BATCH):
            at = int(mask[row].nonzero()[0]) + 1
            for number, kind in enumerate(_MODALITIES, 1):
                if counts[kind]:
                    ids[row, at : at + counts[kind]] = self._placeholder(kind)
                    kinds[row, at : at + counts[kind]] = number
                    at += counts[kind]
        arguments["input_ids"] = ids
        actual[TOKENS + extra] = mask.bool()
        if side is not None and "attention_mask" in self.parameters:
            arguments["attention_mask"] = mask
        if extra and "mm_token_type_ids" in self.parameters:
            arguments["mm_token_type_ids"] = kinds
        if extra and "token_type_ids" in self.parameters:
            arguments["token_type_ids"] = (kinds > 0).long()
        if self.name.endswith(_MARKED):
            # The head reads the last token, which must be the end in every row.
            for row in range(BATCH):
                ids[row, int(mask[row].nonzero()[-1])] = find(self.config, "eos_token_id", default=2)
        if self.name.endswith("ForMultipleChoice"):
            for name in ("input_ids", "attention_mask"):
                if name in arguments:
                    arguments[name] = arguments[name][:, None].repeat(1, 2, 1)
        if "bbox" in self.parameters:
            corners = torch.randint(0, 40, (BATCH, TOKENS + extra, 2), generator=generator)
            arguments["bbox"] = torch.cat([corners, corners + 7], -1)

    def _add_sound_masks(self, names: tuple[str, ...], side: str | None, arguments: Any, actual: Any) -> None:
        sound = next(arguments[name] for name in _SOUNDS if name in arguments)
        length = sound.shape[1 if sound.ndim == 2 else self._find_time_axis(sound)]
        # Sounds are padded at their end: encoders shorten masks by the number of actual positions.
        mask = _mask_side(length, length * 5 // 8, None if side is None else "right")
        actual[length] = mask.bool()
        for name in names:
            if name in self.parameters:
                arguments[name] = mask

    def _find_time_axis(self, sound: Any) -> int:
        mels = self._count_mels()
        return 2 if sound.shape[1] in {mels, 1} else 1

    def _add_picture_mask(self, name: str, arguments: Any) -> None:
        height, width = arguments["pixel_values"].shape[-2:]
        mask = torch.ones(BATCH, height, width, dtype=torch.int64)
        mask[1, :, width * 5 // 8 :] = 0
        arguments[name] = mask

    def _add_others(self, arguments: Any, generator: Any) -> None:
        hidden = find(self.config, "hidden_size", "d_model", "encoder_hidden_dim", default=32)
        if not arguments and "inputs_embeds" in self.parameters:
            width = hidden if isinstance(hidden, int) else 32
            arguments["inputs_embeds"] = torch.randn(BATCH, TOKENS, width, generator=generator)
        for name, parameter in self.parameters.items():
            if name in arguments or parameter.default is not inspect.Parameter.empty:
                continue
            if name.endswith("input_ids"):
                arguments[name] = _draw_ids(TOKENS, REAL_TOKENS, None, generator, self._highest_id())[0]
            elif name in {"inputs_embeds", "hidden_states", "encoder_hidden_states"}:
                width = hidden if isinstance(hidden, int) else 32
                arguments[name] = torch.randn(BATCH, TOKENS, width, generator=generator)
            elif name == "attention_mask":
                arguments[name] = torch.ones(BATCH, TOKENS, dtype=torch.int64)

    # Shapes of pictures and sounds

    def list_shapes(self, name: str) -> Iterator[Any]:
        """Yield functions that make an input and those that belong to it, likely ones first."""
        if name in _SOUNDS:
            yield from self._list_sounds(name)
        elif name in {"hidden_states", "patch_embeds"} and "grid_thw" not in self.parameters:
            return
        else:
            yield from self._list_pictures(name)

    def _count_mels(self) -> int:
        names = (
            "num_mel_bins",
            "feature_size",
            "n_mels",
            "mel_bins",
            "input_feat_size",
            "num_mels",
            "input_feat_per_channel",
        )
        names += (
            "feature_projection_input_dim",
            "input_dim",
            "input_channels",
            "mel_dim",
            "input_size",
            "audio_in_channel",
        )
        value = find(self.config, *names, default=80, parts=("audio", "encoder", "speech"))
        return value if isinstance(value, int) else 80

    def _list_sounds(self, name: str) -> Iterator[Any]:
        mels = self._count_mels()
        positions = find(self.config, "max_source_positions", parts=("audio", "encoder"))
        frames = 2 * positions if isinstance(positions, int) and positions <= 200 and name == "input_features" else 64

        def make(*shape: int) -> Any:
            return lambda generator: {name: torch.randn(BATCH, *shape, generator=generator)}

        waves = [make(8000), make(1, 8000)]
        spectra = [make(mels, frames), make(frames, mels)]
        length = find(self.config, "max_length", "spec_size")
        if isinstance(length, int) and name == "input_values" and length > 8:
            spectra.append(make(length, mels))
        yield from (waves + spectra if name != "input_features" else spectra + waves)

    def _list_pictures(self, name: str) -> Iterator[Any]:
        config = self.config
        vision = ("vision", "image", "video", "vit", "encoder")
        size = find(config, "image_size", "img_size", "input_size", "pretrain_image_size", default=64, parts=vision)
        if isinstance(size, dict):
            size = [size.get("height", 32), size.get("width", 32)]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
        height, width = (height, width) if height <= 400 else (64, 64)
        channels = find(config, "num_channels", "in_channels", "in_chans", "image_channels", default=3, parts=vision)
        channels = channels if isinstance(channels, int) and channels <= 8 else 3
        patch = find(config, "patch_size", "spatial_patch_size", default=8, parts=vision)
        patch = patch if isinstance(patch, int) else 8
        steps = find(config, "temporal_patch_size", default=1, parts=vision)
        steps = steps if isinstance(steps, int) else 1
        frames = find(config, "num_frames", "max_frames", default=4, parts=vision)
        frames = frames if isinstance(frames, int) and frames <= 64 else 4
        video = name == "pixel_values_videos"
        batch = BATCH

        def draw(generator: Any, *shape: int) -> Any:
            return torch.randn(*shape, generator=generator)

        def make_picture(generator: Any) -> dict[str, Any]:
            return {name: draw(generator, batch, channels, height, width)}

        def make_sized_picture(generator: Any) -> dict[str, Any]:
            return {**make_picture(generator), "image_sizes": torch.tensor([[height, width]] * batch)}

        def make_patches(generator: Any) -> dict[str, Any]:
            grid = torch.tensor([[1, 4, 4]] * batch)
            found = {name: draw(generator, batch * 16, channels * steps * patch * patch)}
            names = {"pixel_values_videos": "video_grid_thw", "hidden_states": "grid_thw"}
            grid_name = names.get(name, "image_grid_thw" if "image_grid_thw" in self.parameters else "grid_thw")
            return {**found, grid_name: grid}

        def make_natural(generator: Any) -> dict[str, Any]:
            # Patches of pictures of any size, padded to the longest.
            found = {name: draw(generator, batch, 16, channels * patch * patch)}
            if "pixel_attention_mask" in self.parameters:
                found["pixel_attention_mask"] = torch.ones(batch, 16, dtype=torch.int64)
            if "spatial_shapes" in self.parameters:
                found["spatial_shapes"] = torch.tensor([[4, 4]] * batch)
            return found

        def make_tiles(generator: Any) -> dict[str, Any]:
            found = {
                name: draw(generator, batch, 3 if "image_sizes" in self.parameters else 1, channels, height, width)
            }
            if "image_sizes" in self.parameters:
                found["image_sizes"] = torch.tensor([[height, 2 * width]] * batch)
            return found

        def make_film(generator: Any) -> dict[str, Any]:
            return {name: draw(generator, batch, frames, channels, height, width)}

        def make_film_by_channel(generator: Any) -> dict[str, Any]:
            return {name: draw(generator, batch, channels, frames, height, width)}

        def make_large(generator: Any) -> dict[str, Any]:
            return {name: draw(generator, batch, channels, 64, 64)}

        def make_placed_patches(generator: Any) -> dict[str, Any]:
            positions = torch.cartesian_prod(torch.arange(6), torch.arange(6))[None].repeat(batch, 1, 1)
            ids_name = "pixel_position_ids" if "pixel_position_ids" in self.parameters else "image_position_ids"
            return {name: draw(generator, batch, 36, channels * patch * patch), ids_name: positions}

        if {"pixel_position_ids", "image_position_ids"} & set(self.parameters) and not video:
            yield make_placed_patches
        grids = {"image_grid_thw", "grid_thw", "video_grid_thw"} & set(self.parameters)
        if video:
            yield from ([make_patches] if grids else [])
            yield from (make_film, make_film_by_channel)
            return
        if grids:
            yield make_patches
        if "spatial_shapes" in self.parameters:
            yield make_natural
        if name == "hidden_states":
            return
        moves = hasattr(config, "num_frames") or hasattr(config, "tubelet_size")
        yield from ((make_film, make_film_by_channel, make_picture) if moves else (make_picture, make_tiles, make_film))
        if "image_sizes" in self.parameters:
            yield make_sized_picture
        yield make_large


_SOUND_MASKS = (
    "input_features_mask",
    "feature_attention_mask",
    "padding_mask",
    "audio_attention_mask",
    "audio_mel_mask",
)


def _mask_side(length: int, actual: int, side: str | None) -> Any:
    mask = torch.ones(BATCH, length, dtype=torch.int64)
    if side == "left":
        mask[1, : length - actual] = 0
    elif side == "right":
        mask[1, actual:] = 0
    return mask


def _draw_ids(length: int, actual: int, side: str | None, generator: Any, highest: int) -> tuple[Any, Any]:
    ids = torch.randint(10, highest, (BATCH, length), generator=generator)
    mask = _mask_side(length, actual, side)
    return ids * mask, mask
