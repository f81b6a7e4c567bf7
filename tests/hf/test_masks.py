"""Masks: the same visible keys as in the boolean tensor that transformers would make."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import NllbMoeModel, masking_utils

import keywise
from keywise.hf.mask_arguments import is_causal_without_mask, read_mask
from keywise.hf.masks import LazyMask, make_mask

BATCH, KEYS = 3, 12


def make_positions(*lengths):
    return torch.cat([torch.arange(length) for length in lengths])[None].expand(BATCH, -1)


# Older versions of transformers compare positions in the batch, newer ones those in the documents.
remap = getattr(masking_utils, "remap_positions_for_packed_sequence", lambda function, _positions: function)


def pack_documents(function, *, documents_first=True):
    """Return the mask function of three packed documents; versions of transformers join its parts in either order."""
    positions = make_positions(5, 4, 3)
    documents = masking_utils.packed_sequence_mask_function(masking_utils.find_packed_sequence_indices(positions))
    parts = [documents, remap(function, positions)]
    return masking_utils.and_masks(*(parts if documents_first else reversed(parts)))


# name: closure, whether there is a mask of linear size
PATTERNS = {
    "causal": (masking_utils.causal_mask_function, True),
    "window": (masking_utils.sliding_window_causal_mask_function(4), True),
    "window of one": (masking_utils.sliding_window_causal_mask_function(1), True),
    "both ways": (masking_utils.bidirectional_mask_function, True),
    "window both ways": (masking_utils.sliding_window_bidirectional_mask_function(2), True),
    "chunked": (masking_utils.chunked_causal_mask_function(5, torch.tensor([0, 1, 2])), False),
    "prefix": (masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, q, k: k < 3), False),
    "every other": (
        masking_utils.and_masks(masking_utils.causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0),
        False,
    ),
}
PACKED = {
    "packed": pack_documents(masking_utils.causal_mask_function),
    "packed window": pack_documents(masking_utils.sliding_window_causal_mask_function(3)),
    "packed last": pack_documents(masking_utils.causal_mask_function, documents_first=False),
    "packed window last": pack_documents(masking_utils.sliding_window_causal_mask_function(3), documents_first=False),
}
# queries, keys, position of the first query, of the first key
PLACES = {
    "prefill": (KEYS, KEYS, 0, 0),
    "chunk": (5, KEYS, 7, 0),
    "decoding": (1, KEYS, 11, 0),
    "static prefill": (5, KEYS, 0, 0),
    "static decoding": (1, KEYS, 6, 0),
    "sliding cache": (2, KEYS, 20, 10),
    "other side": (4, KEYS, 0, 0),
}
PADDINGS = {
    "none": None,
    "left": [0, 3, 7],
    "right": [0, -2, -6],
    "both sides": [0, 3, -4],
    "all": [0, 1, 99],
}


def make_padding(name, keys):
    if PADDINGS[name] is None:
        return None
    padding = torch.ones(BATCH, keys, dtype=torch.bool)
    for row, count in enumerate(PADDINGS[name]):
        if count > 0:
            padding[row, :count] = False
        elif count < 0:
            padding[row, count:] = False
    return padding


def find_visible(mask, queries, keys):
    """Return which keys each query sees, by attention itself: equal scores, one value axis per key."""
    query, key = torch.zeros(BATCH, 1, queries, 4), torch.zeros(BATCH, 1, keys, 4)
    value = torch.eye(keys).expand(BATCH, 1, -1, -1)
    return keywise.attend(query, key, value, mask=mask) > 0


def check_mask(function, place, padding):
    queries, keys, first_query, first_key = place
    arguments = {
        "q_offset": first_query,
        "kv_offset": first_key,
        "mask_function": function,
        "attention_mask": padding,
        "allow_is_causal_skip": False,
    }
    expected = masking_utils.sdpa_mask(BATCH, queries, keys, **arguments)
    mask = make_mask(BATCH, queries, keys, **arguments)
    assert mask.shape == expected.shape
    assert torch.equal(find_visible(mask.mask, queries, keys), expected)
    return mask


@pytest.mark.parametrize("padding_name", PADDINGS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PATTERNS)
def test_visible_keys_equal_those_of_transformers(name, place, padding_name):
    function, _ = PATTERNS[name]
    check_mask(function, PLACES[place], make_padding(padding_name, PLACES[place][3] + KEYS))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("padding_name", PADDINGS)
def test_packed_documents_stay_apart(name, padding_name):
    mask = check_mask(PACKED[name], PLACES["prefill"], make_padding(padding_name, KEYS))
    assert mask.mask.documents is not None


@pytest.mark.skipif(
    not hasattr(masking_utils, "remap_positions_for_packed_sequence"),
    reason=f"transformers {transformers.__version__} compares positions in the batch, not in the documents",
)
def test_documents_whose_positions_jump_are_evaluated():
    """Causal order goes by a document's own positions; where these do not rise by one, the tensor decides."""
    positions = torch.tensor([0, 2, 4, 1, 3, 5, 0, 1, 2, 3, 4, 5]).expand(BATCH, -1)
    documents = torch.tensor([0] * 6 + [1] * 6).expand(BATCH, -1)
    function = masking_utils.and_masks(
        masking_utils.packed_sequence_mask_function(documents), remap(masking_utils.causal_mask_function, positions)
    )
    check_mask(function, PLACES["prefill"], None)


def test_a_padding_mask_may_be_shorter_than_the_cache():
    check_mask(masking_utils.causal_mask_function, PLACES["static prefill"], make_padding("left", 5 + 4)[:, :5])
    check_mask(masking_utils.bidirectional_mask_function, PLACES["other side"], torch.ones(BATCH, 7, dtype=torch.bool))


def is_linear(mask):
    allowed = mask.mask.allowed
    return allowed is None or allowed.shape[2] == 1


@pytest.mark.parametrize("padding_name", PADDINGS)
@pytest.mark.parametrize("name", PATTERNS)
def test_masks_of_linear_size_are_found(name, padding_name):
    function, expected = PATTERNS[name]
    mask = make_mask(
        BATCH,
        KEYS,
        KEYS,
        mask_function=function,
        attention_mask=make_padding(padding_name, KEYS),
        allow_is_causal_skip=False,
    )
    assert is_linear(mask) == expected


def test_padding_with_holes_is_linear():
    padding = torch.ones(BATCH, KEYS, dtype=torch.bool)
    padding[:, 4:6] = False
    assert is_linear(check_mask(masking_utils.causal_mask_function, PLACES["prefill"], padding))


@pytest.mark.parametrize(
    ("is_none", "options"),
    [
        (True, {}),
        (True, {"attention_mask": torch.ones(BATCH, KEYS, dtype=torch.bool)}),
        (True, {"local_size": KEYS}),
        (False, {"attention_mask": make_padding("left", KEYS)}),
        (False, {"local_size": KEYS - 1}),
        (False, {"allow_is_causal_skip": False}),
        (False, {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True}),
        (False, {"q_offset": torch.tensor(0), "kv_length": KEYS + 4}),
        (False, {"kv_offset": 2, "q_offset": 2}),
    ],
)
def test_no_mask_means_causal_at_the_last_key(is_none, options):
    arguments = {"batch_size": BATCH, "q_length": KEYS, "kv_length": KEYS, **options}
    assert (make_mask(**arguments) is None) == is_none


def test_operations_on_a_lazy_mask_equal_those_on_the_tensor():
    arguments = {"mask_function": masking_utils.causal_mask_function, "attention_mask": make_padding("left", KEYS)}
    expected = masking_utils.sdpa_mask(BATCH, KEYS, KEYS, **arguments, allow_is_causal_skip=False)
    mask = make_mask(BATCH, KEYS, KEYS, **arguments)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bool
    assert mask.contiguous() is mask
    assert torch.equal(mask[:, :, 2:5], expected[:, :, 2:5])
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(expected, 0.0, -1.0))
    tensors = [torch.randn(BATCH, 1, KEYS, 4) for _ in range(3)]
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(*tensors, attn_mask=mask), attend(*tensors, attn_mask=expected), equal_nan=True)


def test_elements_written_to_a_lazy_mask_count():
    mask = make_mask(BATCH, KEYS, KEYS, attention_mask=make_padding("left", KEYS))
    mask[:, :, 0, 5] = True
    visible = find_visible(mask.mask, KEYS, KEYS)
    assert visible[:, 0, 0].nonzero().tolist() == [[0, 0], [0, 5], [1, 5], [2, 5]]
    assert isinstance(mask, LazyMask)


@pytest.mark.parametrize("work", [lambda mask: mask[:, :, 2:7], lambda mask: mask.all(-1), lambda mask: ~mask])
def test_a_mask_that_is_evaluated_by_vmap_has_the_elements_of_transformers(work):
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    function = masking_utils.or_masks(
        masking_utils.causal_mask_function, lambda batch, head, q, k: groups[q] == groups[k]
    )
    arguments = {"mask_function": function, "use_vmap": True, "attention_mask": make_padding("right", KEYS)}
    expected = masking_utils.sdpa_mask(BATCH, KEYS, KEYS, **arguments, allow_is_causal_skip=False)
    mask = make_mask(BATCH, KEYS, KEYS, **arguments, allow_is_causal_skip=False)
    assert torch.equal(find_visible(mask.mask, KEYS, KEYS), expected)
    assert torch.equal(work(mask), work(expected))


@pytest.mark.parametrize("padding_name", ["none", "left"])
@pytest.mark.parametrize("name", ["causal", "both ways", "prefix"])
def test_models_for_eager_attention_get_its_additive_masks(name, padding_name):
    """NLLB-MoE's router and DeepSeek's compressor read the elements."""
    function, _ = PATTERNS[name]
    arguments = {"mask_function": function, "attention_mask": make_padding(padding_name, KEYS)}
    config = NllbMoeModel.config_class()
    expected = masking_utils.eager_mask(BATCH, KEYS, KEYS, **arguments)
    mask = make_mask(BATCH, KEYS, KEYS, **arguments, config=config)
    assert mask.dtype == torch.float32
    assert torch.equal(find_visible(mask.mask, KEYS, KEYS), expected == 0)
    assert torch.equal(mask + 0, expected)
    # Once the elements were used, they are the mask.
    visible, bias = read_mask(torch.nn.Identity(), mask, causal=False)
    assert torch.equal(visible.allowed, expected == 0)
    assert bias is None


@pytest.mark.parametrize("padding_name", PADDINGS)
def test_no_mask_means_no_mask_for_models_of_eager_attention(padding_name):
    padding = make_padding(padding_name, KEYS)
    arguments = {"mask_function": masking_utils.bidirectional_mask_function, "attention_mask": padding}
    mask = make_mask(
        BATCH, KEYS, KEYS, **arguments, allow_is_bidirectional_skip=True, config=NllbMoeModel.config_class()
    )
    assert (mask is None) == (padding is None)
    layer = torch.nn.Identity()
    layer.config, layer.is_causal = NllbMoeModel.config_class(), True
    assert not is_causal_without_mask(layer, None)


def test_a_mask_for_one_query_serves_all_queries():
    padding = make_padding("right", KEYS)
    mask = make_mask(BATCH, 1, KEYS, mask_function=masking_utils.bidirectional_mask_function, attention_mask=padding)
    visible, _ = read_mask(torch.nn.Identity(), mask, causal=False, shape=(BATCH, 5, KEYS))
    expected = padding[:, None, None].expand(-1, 1, 5, -1)
    assert torch.equal(find_visible(visible, 5, KEYS), expected)
