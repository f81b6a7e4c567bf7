"""Every mask that transformers can ask for says the same as the boolean tensor transformers would make."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils as theirs

import keywise
from keywise.hf.masks import lazy_mask_class, make_mask

BATCH, KEYS = 3, 12


def positions(*lengths):
    return torch.cat([torch.arange(length) for length in lengths])[None].expand(BATCH, -1)


def packed(function):
    own = positions(5, 4, 3)
    return theirs.packed_sequence_compatibility_function(function, own, theirs.find_packed_sequence_indices(own))


# name: closure, whether a mask of linear size must come of it
PATTERNS = {
    "causal": (theirs.causal_mask_function, True),
    "window": (theirs.sliding_window_causal_mask_function(4), True),
    "window of one": (theirs.sliding_window_causal_mask_function(1), True),
    "both ways": (theirs.bidirectional_mask_function, True),
    "window both ways": (theirs.sliding_window_bidirectional_mask_function(2), True),
    "chunked": (theirs.chunked_causal_mask_function(5, torch.tensor([0, 1, 2])), False),
    "prefix": (theirs.or_masks(theirs.causal_mask_function, lambda b, h, q, k: k < 3), False),
    "every other": (theirs.and_masks(theirs.causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0), False),
}
PACKED = {
    "packed": packed(theirs.causal_mask_function),
    "packed window": packed(theirs.sliding_window_causal_mask_function(3)),
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


def padding(name, keys):
    if PADDINGS[name] is None:
        return None
    real = torch.ones(BATCH, keys, dtype=torch.bool)
    for row, count in enumerate(PADDINGS[name]):
        if count > 0:
            real[row, :count] = False
        elif count < 0:
            real[row, count:] = False
    return real


def visible(mask, queries, keys):
    """Which keys each query sees, by attention itself: equal scores, one value axis per key."""
    query, key = torch.zeros(BATCH, 1, queries, 4), torch.zeros(BATCH, 1, keys, 4)
    value = torch.eye(keys).expand(BATCH, 1, -1, -1)
    return keywise.attend(query, key, value, mask=mask) > 0


def check(function, place, real):
    queries, keys, first_query, first_key = place
    asked = {"q_offset": first_query, "kv_offset": first_key, "mask_function": function, "attention_mask": real}
    expected = theirs.sdpa_mask(BATCH, queries, keys, **asked, allow_is_causal_skip=False)
    mask = make_mask(BATCH, queries, keys, **asked, allow_is_causal_skip=False)
    assert mask.shape == expected.shape
    assert torch.equal(visible(mask.mask, queries, keys), expected)
    return mask


@pytest.mark.parametrize("spared", PADDINGS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PATTERNS)
def test_the_mask_is_transformers_mask(name, place, spared):
    function, _ = PATTERNS[name]
    check(function, PLACES[place], padding(spared, PLACES[place][3] + KEYS))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("spared", PADDINGS)
def test_packed_documents(name, spared):
    mask = check(PACKED[name], PLACES["prefill"], padding(spared, KEYS))
    assert mask.mask.documents is not None


def test_documents_whose_positions_jump():
    """Causal order is by a document's own positions, so where these do not rise one by one the tensor decides."""
    own = torch.tensor([0, 2, 4, 1, 3, 5, 0, 1, 2, 3, 4, 5]).expand(BATCH, -1)
    documents = torch.tensor([0] * 6 + [1] * 6).expand(BATCH, -1)
    function = theirs.packed_sequence_compatibility_function(theirs.causal_mask_function, own, documents)
    check(function, PLACES["prefill"], None)


def test_a_padding_mask_shorter_than_the_cache():
    check(theirs.causal_mask_function, PLACES["static prefill"], padding("left", 5 + 4)[:, :5])
    check(theirs.bidirectional_mask_function, PLACES["other side"], torch.ones(BATCH, 7, dtype=torch.bool))


def linear(mask):
    allowed = mask.mask.allowed
    return allowed is None or allowed.shape[2] == 1


@pytest.mark.parametrize("spared", PADDINGS)
@pytest.mark.parametrize("name", PATTERNS)
def test_size_is_linear_where_it_can_be(name, spared):
    function, expected = PATTERNS[name]
    mask = make_mask(
        BATCH, KEYS, KEYS, mask_function=function, attention_mask=padding(spared, KEYS), allow_is_causal_skip=False
    )
    assert linear(mask) == expected


def test_padding_holes_stay_linear():
    real = torch.ones(BATCH, KEYS, dtype=torch.bool)
    real[:, 4:6] = False
    assert linear(check(theirs.causal_mask_function, PLACES["prefill"], real))


@pytest.mark.parametrize(
    ("none", "asked"),
    [
        (True, {}),
        (True, {"attention_mask": torch.ones(BATCH, KEYS, dtype=torch.bool)}),
        (True, {"local_size": KEYS}),
        (False, {"attention_mask": padding("left", KEYS)}),
        (False, {"local_size": KEYS - 1}),
        (False, {"allow_is_causal_skip": False}),
        (False, {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True}),
        (False, {"q_offset": torch.tensor(0), "kv_length": KEYS + 4}),
        (False, {"kv_offset": 2, "q_offset": 2}),
    ],
)
def test_none_means_causal_at_the_last_key_and_nothing_else(none, asked):
    arguments = {"batch_size": BATCH, "q_length": KEYS, "kv_length": KEYS, **asked}
    assert (make_mask(**arguments) is None) == none


def test_in_the_hands_of_a_model_it_is_the_tensor():
    asked = {"mask_function": theirs.causal_mask_function, "attention_mask": padding("left", KEYS)}
    expected = theirs.sdpa_mask(BATCH, KEYS, KEYS, **asked, allow_is_causal_skip=False)
    mask = make_mask(BATCH, KEYS, KEYS, **asked)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bool
    assert mask.contiguous() is mask
    assert torch.equal(mask[:, :, 2:5], expected[:, :, 2:5])
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(expected, 0.0, -1.0))
    tensors = [torch.randn(BATCH, 1, KEYS, 4) for _ in range(3)]
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(*tensors, attn_mask=mask), attend(*tensors, attn_mask=expected), equal_nan=True)


def test_what_a_model_writes_into_it_counts():
    mask = make_mask(BATCH, KEYS, KEYS, attention_mask=padding("left", KEYS))
    mask[:, :, 0, 5] = True
    seen = visible(mask.mask, KEYS, KEYS)
    assert seen[:, 0, 0].nonzero().tolist() == [[0, 0], [0, 5], [1, 5], [2, 5]]
    assert isinstance(mask, lazy_mask_class())
