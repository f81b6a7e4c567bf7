"""Every code with its severity, stage, reason and remedy."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Stage(IntEnum):
    """Stages of an examination: a finding of an earlier one explains findings of later ones."""

    INPUTS = 0
    """Inputs, settings, determinism."""
    CALL = 1
    """One call of attention compared with the definition."""
    PROBES = 2
    """Outputs compared after a change that must not matter."""
    UNEXPLAINED = 3
    """Differences that no hypothesis explains."""
    STATISTICS = 4
    """Keys, values, weights and log-sum-exp."""


class Code(NamedTuple):
    """The description of one code.

    Attributes
    ----------
    severity : str
        ``"error"`` cannot be intended, ``"warning"`` probably is not, ``"note"`` is a fact to know.
    stage : Stage
        The stage in which it is looked for.
    why : str
        Why it matters.
    remedy : str
        What to do.
    """

    severity: Severity
    stage: Stage
    why: str
    remedy: str


# Ordered by cause: a code explains those below it.
CODES: dict[str, Code] = {
    "input-not-finite": Code(
        "error",
        Stage.INPUTS,
        "NaN or infinity in a query, a visible key or its value spreads to every output that depends on it",
        "find the earlier layer that produced it: overflow in half precision, or a division by zero",
    ),
    "dropout-active": Code(
        "error",
        Stage.INPUTS,
        "with dropout the same input gives different outputs",
        "call model.eval(), and pass dropout 0 where the function is called directly",
    ),
    "not-deterministic": Code(
        "error",
        Stage.INPUTS,
        "the same input gives different outputs, so no other comparison is meaningful",
        "look for dropout that ignores evaluation mode, uninitialised memory, or a race",
    ),
    "inputs-modified": Code(
        "error",
        Stage.INPUTS,
        "the function writes to its inputs, which in a decoder are the cached keys and values",
        "use out-of-place operations (masked_fill, not masked_fill_) on query, key and value",
    ),
    "setting-changed": Code(
        "error",
        Stage.INPUTS,
        "a setting of an attention layer differs from the model's configuration",
        "restore the setting, or change the configuration and load the model again",
    ),
    "output-shape": Code(
        "error",
        Stage.INPUTS,
        "the output is not [batch, heads, queries, value_dim], so the next layer misreads it",
        "return the output in the layout of the query",
    ),
    "hidden-nan-leak": Code(
        "error",
        Stage.CALL,
        "weight 0 times NaN is NaN: a masked NaN reaches the output",
        "zero the values of hidden keys before the product, or skip hidden keys",
    ),
    "dead-row-nan": Code(
        "error",
        Stage.CALL,
        "a query without a visible key gives NaN, which spreads to every token in the next layer",
        "return output 0 where no key is visible",
    ),
    "dead-row-uniform": Code(
        "error",
        Stage.CALL,
        "a query without a visible key averages all values, hidden and future ones included",
        "mask with -inf and return output 0 where no key is visible, instead of adding the dtype's lowest number",
    ),
    "strides-misread": Code(
        "error",
        Stage.CALL,
        "inputs that are not contiguous, which most models pass, are read as if they were",
        "respect strides, or call .contiguous() first",
    ),
    "axes-misread": Code(
        "error",
        Stage.CALL,
        "the axes of heads and of tokens are confused",
        "order the axes [batch, heads, tokens, head_dim] with transpose(1, 2), not with view or reshape",
    ),
    "mask-lost": Code(
        "error",
        Stage.CALL,
        "the mask is never applied: padding, windows and packed documents are all visible",
        "register the mask function under the attention's name (AttentionMaskInterface.register) and apply its mask",
    ),
    "mask-inverted": Code(
        "error",
        Stage.CALL,
        "the mask is inverted: hidden keys are visible and visible keys are hidden",
        "True means 'may attend'; invert the mask for a function in which True means 'hidden'",
    ),
    "mask-added-as-numbers": Code(
        "error",
        Stage.CALL,
        "a mask of zeros and ones is added to the scores, which hides nothing",
        "convert it to booleans, or to 0 and -inf",
    ),
    "causal-top-left": Code(
        "error",
        Stage.CALL,
        "with fewer queries than keys the causal mask is aligned at the first key: a decoding step sees key 0 only",
        "align it at the last key: query i of Q sees key j when j <= N - Q + i",
    ),
    "causal-mask-lost": Code(
        "error",
        Stage.CALL,
        "queries see later keys: the model sees the tokens that it should predict",
        "apply the causal mask",
    ),
    "causal-off-by-one": Code(
        "error",
        Stage.CALL,
        "the causal mask ends one key too early or too late: the query's own key is hidden, or the next one visible",
        "let query i see the keys up to and including its own position",
    ),
    "future-leak": Code(
        "error",
        Stage.PROBES,
        "a later token changes earlier outputs: the model sees the tokens that it should predict",
        "apply the causal mask in every layer, and mix tokens nowhere else",
    ),
    "hidden-key-leak": Code(
        "error",
        Stage.PROBES,
        "a hidden key changes the output",
        "mask with -inf before the softmax, and normalise over visible keys only",
    ),
    "batch-leak": Code(
        "error",
        Stage.PROBES,
        "one item of the batch changes the output of another",
        "sum and normalise within one batch item",
    ),
    "document-leak": Code(
        "error",
        Stage.CALL,
        "packed documents see one another, so each output depends on the other documents",
        "mask the keys of other documents; with transformers, pass position_ids with use_cache=False and no "
        "attention_mask",
    ),
    "padding-visible": Code(
        "error",
        Stage.CALL,
        "padding takes weight from real tokens, so the output depends on the padding of the batch",
        "pass the padding mask, and apply it",
    ),
    "window-dropped": Code(
        "error",
        Stage.CALL,
        "the sliding window is not applied: the model sees more keys than in training",
        "apply the window of the configuration",
    ),
    "window-off-by-one": Code(
        "error",
        Stage.CALL,
        "the sliding window has the wrong size",
        "a causal window of w keys includes the query's own (flash-attention writes it (w - 1, 0))",
    ),
    "window-leak": Code(
        "error",
        Stage.PROBES,
        "a token beyond the reach of all windows changes the output",
        "apply the window in every sliding layer, in caches too",
    ),
    "positions-not-shifted": Code(
        "warning",
        Stage.PROBES,
        "with left padding the first real token is not at position 0, so the same text gives another output",
        "derive position_ids from the attention mask: (mask.cumsum(-1) - 1).clamp(min=0)",
    ),
    "position-offset": Code(
        "error",
        Stage.PROBES,
        "a token decoded with a cache has another position than the same token in one pass",
        "count positions by the tokens seen so far, not by the keys in the cache or the tokens in the call",
    ),
    "prefill-decode-disagree": Code(
        "error",
        Stage.PROBES,
        "decoding with a cache differs from one pass over the same tokens",
        "compare the keys in the cache with those of one pass, then the mask of the step",
    ),
    "heads-grouped-wrong": Code(
        "error",
        Stage.CALL,
        "query heads use the keys of the wrong group",
        "query head h uses key head h // (Hq / Hkv): repeat_interleave, not repeat or tile",
    ),
    "scale-missing": Code(
        "error",
        Stage.CALL,
        "scores are not scaled, so the softmax is too sharp",
        "multiply the scores by the scale, usually 1 / sqrt(head_dim)",
    ),
    "scale-twice": Code(
        "error",
        Stage.CALL,
        "the scale is applied twice, so the weights are too uniform",
        "scale the queries or the scores, not both",
    ),
    "scale-not-rooted": Code(
        "error",
        Stage.CALL,
        "scores are divided by head_dim instead of its square root, so the weights are too uniform",
        "divide by sqrt(head_dim)",
    ),
    "scale-wrong-size": Code(
        "error",
        Stage.CALL,
        "the scale is computed from the wrong size (model width, number of heads or keys)",
        "use the size of one head: query.shape[-1]",
    ),
    "scale-inverted": Code(
        "error",
        Stage.CALL,
        "scores are multiplied instead of divided, so one key takes all the weight",
        "divide by sqrt(head_dim)",
    ),
    "softcap-dropped": Code(
        "error",
        Stage.CALL,
        "the scores are not bounded by the softcap that the model was trained with",
        "apply softcap * tanh(score / softcap) before bias and mask",
    ),
    "softcap-after-mask": Code(
        "error",
        Stage.CALL,
        "the softcap bounds the mask too: hidden keys get a score of -softcap instead of -inf",
        "apply the softcap before the mask",
    ),
    "sinks-dropped": Code(
        "error",
        Stage.CALL,
        "the sinks take no weight, so the weights of the keys are larger than in training",
        "append the sink's score as a column before the softmax and drop the column afterwards",
    ),
    "bias-dropped": Code(
        "error",
        Stage.CALL,
        "the additive bias (relative positions, ALiBi) is not applied",
        "add the bias to the scores",
    ),
    "bias-scaled": Code(
        "error",
        Stage.CALL,
        "the bias is multiplied by the scale together with the scores",
        "scale the scores first, then add the bias",
    ),
    "key-value-swapped": Code(
        "error",
        Stage.CALL,
        "keys and values are exchanged",
        "pass query, key, value in this order",
    ),
    "softmax-wrong-axis": Code(
        "error",
        Stage.CALL,
        "the softmax runs over the queries instead of the keys: a query's weights do not sum to 1",
        "take the softmax over the last axis of the scores",
    ),
    "key-order-matters": Code(
        "error",
        Stage.PROBES,
        "reordering keys and values together changes the output, although attention is a sum over keys",
        "look for an index that depends on a key's place",
    ),
    "softmax-overflow": Code(
        "error",
        Stage.PROBES,
        "large scores overflow the exponential",
        "subtract each query's largest score before the exponential",
    ),
    "float16-overflow": Code(
        "error",
        Stage.CALL,
        "query . key exceeds 65504, the largest float16, and becomes infinite",
        "scale the query before the product, sum in float32, or use bfloat16",
    ),
    "float16-range": Code(
        "warning",
        Stage.STATISTICS,
        "query . key exceeds 65504 before scaling: attention that stores the product in float16 overflows",
        "use bfloat16 or float32, or an attention that scales the query first",
    ),
    "output-not-finite": Code(
        "error",
        Stage.UNEXPLAINED,
        "the output is NaN or infinite where attention is finite",
        "look at the queries listed: overflow, or a query whose keys are all hidden",
    ),
    "output-differs": Code(
        "error",
        Stage.UNEXPLAINED,
        "the output is not that of attention, and none of the known faults explains it",
        "compare with keywise.attention.reference on one of the queries listed",
    ),
    "inexact": Code(
        "warning",
        Stage.UNEXPLAINED,
        "the output is that of attention, but its error is larger than rounding in its dtype explains",
        "sum in float32, and keep the softmax in float32",
    ),
    "keys-identical": Code(
        "error",
        Stage.STATISTICS,
        "all keys of a head are identical: every weight is 1/n, and the head computes a mean",
        "look at the key projection (zero, or not loaded) and at the code that writes the cache",
    ),
    "rank-collapse": Code(
        "warning",
        Stage.STATISTICS,
        "the states of all tokens are nearly the same vector, so later layers cannot tell them apart",
        "look for missing residual connections, missing positions, or a layer that averages",
    ),
    "softmax-saturated": Code(
        "warning",
        Stage.STATISTICS,
        "for nearly every query of every head one key takes all the weight, so gradients vanish",
        "look at the scale and at the size of query and key (norms missing, wrong dtype)",
    ),
    "weights-uniform": Code(
        "warning",
        Stage.STATISTICS,
        "nearly every query of every head gives every key the same weight, so the layer selects nothing",
        "look at the scale and at the size of query and key (projection zero or not loaded)",
    ),
    "head-dead": Code(
        "warning",
        Stage.STATISTICS,
        "a head's values are all zero: it contributes nothing",
        "look at the value projection; a head pruned on purpose can be removed",
    ),
    "lse-base": Code(
        "error",
        Stage.STATISTICS,
        "the log-sum-exp is in base 2, so merging it with one in base e is wrong",
        "multiply it by ln 2",
    ),
    "lse-differs": Code(
        "error",
        Stage.STATISTICS,
        "the log-sum-exp is not that of these scores",
        "compute it from the scores after softcap, bias and mask, sinks included",
    ),
    "rows-without-keys": Code(
        "note",
        Stage.STATISTICS,
        "some queries see no key; their output should be 0",
        "nothing if they are padding; otherwise look at the mask",
    ),
    "attention-sink": Code(
        "note",
        Stage.STATISTICS,
        "the first key takes much of the weight, as in most language models (an attention sink)",
        "nothing; keep the first tokens when a cache drops keys",
    ),
    "scale-unusual": Code(
        "note",
        Stage.STATISTICS,
        "the configuration sets a scale other than 1 / sqrt(head_dim)",
        "nothing; pass the scale to any other implementation of this model's attention",
    ),
}
