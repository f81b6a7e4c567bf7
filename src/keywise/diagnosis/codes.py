"""What can be wrong with an attention: every code with its severity, why it matters and what to do."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]

INPUTS, CALL, BEHAVIOUR, UNEXPLAINED, STATISTICS = range(5)
"""Stages of examination: what an earlier one finds explains what a later one finds."""


class Code(NamedTuple):
    """One thing that can be wrong.

    Attributes
    ----------
    severity : str
        ``"error"`` cannot be intended, ``"warning"`` probably is not, ``"note"`` is a fact and no accusation.
    stage : int
        When it is looked for; see the constants of this module.
    why : str
        Why it matters.
    remedy : str
        What to do.
    """

    severity: Severity
    stage: int
    why: str
    remedy: str


# In the order of causes: what stands further up explains what stands below.
CODES: dict[str, Code] = {
    "input-not-finite": Code(
        "error",
        INPUTS,
        "a visible key, a value or a query that is NaN or infinite makes every row that sees it useless",
        "find the layer before that made it: overflow in half precision, or a division by zero",
    ),
    "dropout-active": Code(
        "error",
        INPUTS,
        "dropout is noise: with it the same input gives other outputs every time",
        "call model.eval(), and pass dropout 0 where the function is called directly",
    ),
    "not-deterministic": Code(
        "error",
        INPUTS,
        "the same input gives different outputs, so no other comparison means anything",
        "look for dropout that ignores evaluation mode, uninitialised memory, or a race",
    ),
    "inputs-modified": Code(
        "error",
        INPUTS,
        "the function writes to its inputs, which are the cache's own keys and values in a decoder",
        "use out-of-place operations (masked_fill, not masked_fill_) on query, key and value",
    ),
    "setting-changed": Code(
        "error",
        INPUTS,
        "an attention layer computes with a setting that is not the one its own configuration gives",
        "take the setting back to what the configuration says, or change the configuration and load again",
    ),
    "output-shape": Code(
        "error",
        INPUTS,
        "the output is not [batch, heads, queries, value_dim], so everything after it reads the wrong numbers",
        "return the output in the layout of the query",
    ),
    "hidden-nan-leak": Code(
        "error",
        CALL,
        "weight 0 times NaN is NaN: what a mask hides still poisons the rows that must not see it",
        "zero the values of hidden keys before the product, or skip hidden keys",
    ),
    "dead-row-nan": Code(
        "error",
        CALL,
        "a query that may see no key gives NaN, which spreads to every token in the next layer",
        "give output 0 where no key is visible",
    ),
    "dead-row-uniform": Code(
        "error",
        CALL,
        "a query that may see no key silently averages all values, hidden and future ones included",
        "hide by -inf and give output 0 where no key is visible, instead of adding the lowest number of the type",
    ),
    "strides-misread": Code(
        "error",
        CALL,
        "inputs that are not contiguous are read as if they were: models hand over such views all the time",
        "honour strides, or call .contiguous() first",
    ),
    "axes-misread": Code(
        "error",
        CALL,
        "heads and tokens are taken for one another",
        "order the axes [batch, heads, tokens, head_dim]: transpose(1, 2), do not view or reshape across",
    ),
    "mask-lost": Code(
        "error",
        CALL,
        "the mask is never applied: padding, windows and packed documents are all visible",
        "register the mask function under the attention's name (AttentionMaskInterface.register) and apply its mask",
    ),
    "mask-inverted": Code(
        "error",
        CALL,
        "the mask's meaning is turned round: what should be hidden is seen, and the other way round",
        "True means 'may attend' here; invert the mask for a function that hides where it is True",
    ),
    "mask-added-as-numbers": Code(
        "error",
        CALL,
        "a mask of zeros and ones is added to the scores, which hides nothing",
        "turn it into booleans, or into 0 and -inf, first",
    ),
    "causal-top-left": Code(
        "error",
        CALL,
        "with fewer queries than keys the causal mask is aligned at the first key: a decoding step sees key 0 only",
        "align at the last key: query i of Q sees key j when j <= N - Q + i",
    ),
    "causal-mask-lost": Code(
        "error",
        CALL,
        "queries see the keys behind them: the model reads what it is to predict",
        "apply the causal mask",
    ),
    "causal-off-by-one": Code(
        "error",
        CALL,
        "the causal mask ends one key too early or too late: the own key is hidden, or the next one visible",
        "query i sees keys up to and including its own position",
    ),
    "future-leak": Code(
        "error",
        BEHAVIOUR,
        "a later token changes what stands before it: the model reads what it is to predict",
        "apply the causal mask in every layer, and mix nothing else along the tokens",
    ),
    "hidden-key-leak": Code(
        "error",
        BEHAVIOUR,
        "a key that the mask hides changes the output",
        "hide by -inf before the softmax, and normalise over visible keys only",
    ),
    "batch-leak": Code(
        "error",
        BEHAVIOUR,
        "one item of the batch changes the output of another",
        "sum and normalise within one batch item",
    ),
    "document-leak": Code(
        "error",
        CALL,
        "packed documents see one another, so each answer depends on its neighbours",
        "hide the keys of other documents; with transformers, pass position_ids with use_cache=False and no "
        "attention_mask",
    ),
    "padding-visible": Code(
        "error",
        CALL,
        "padding takes weight from real tokens, so the result depends on how a batch was filled",
        "pass the padding mask, and apply it",
    ),
    "window-dropped": Code(
        "error",
        CALL,
        "the sliding window is not applied: the model sees keys that it was never trained to see",
        "apply the window of the configuration",
    ),
    "window-off-by-one": Code(
        "error",
        CALL,
        "the sliding window is of another size than it should be",
        "a causal window of w holds w keys, the query's own among them (flash-attention writes it (w - 1, 0))",
    ),
    "window-leak": Code(
        "error",
        BEHAVIOUR,
        "a token beyond the reach of all windows changes the output",
        "apply the window in every sliding layer, in caches too",
    ),
    "positions-not-shifted": Code(
        "warning",
        BEHAVIOUR,
        "with left padding the first real token does not stand at position 0: the same text gives another answer",
        "derive position_ids from the attention mask: (mask.cumsum(-1) - 1).clamp(min=0)",
    ),
    "position-offset": Code(
        "error",
        BEHAVIOUR,
        "a token decoded with a cache stands at another position than the same token in one pass",
        "count positions from the number of tokens seen, not from the keys kept or the tokens passed in",
    ),
    "prefill-decode-disagree": Code(
        "error",
        BEHAVIOUR,
        "decoding with a cache gives other numbers than one pass over the same tokens",
        "compare the keys in the cache with those of one pass, then the mask of the step",
    ),
    "heads-grouped-wrong": Code(
        "error",
        CALL,
        "query heads use the keys of another group",
        "query head h uses key head h // (Hq / Hkv): repeat_interleave, not repeat or tile",
    ),
    "scale-missing": Code(
        "error",
        CALL,
        "scores are not scaled, so the softmax is far too sharp",
        "multiply the scores by the scale, usually 1 / sqrt(head_dim)",
    ),
    "scale-twice": Code(
        "error",
        CALL,
        "the scale is applied twice, so the weights are far too even",
        "scale the queries or the scores, not both",
    ),
    "scale-not-rooted": Code(
        "error",
        CALL,
        "scores are divided by head_dim instead of its square root: the weights are far too even",
        "divide by sqrt(head_dim)",
    ),
    "scale-wrong-size": Code(
        "error",
        CALL,
        "the scale is computed from the wrong size (model width, number of heads or keys)",
        "use the size of one head: query.shape[-1]",
    ),
    "scale-inverted": Code(
        "error",
        CALL,
        "scores are multiplied where they should be divided: one key takes everything",
        "divide by sqrt(head_dim)",
    ),
    "softcap-dropped": Code(
        "error",
        CALL,
        "the scores are not bounded by the softcap that the model was trained with",
        "apply softcap * tanh(score / softcap) before bias and mask",
    ),
    "softcap-after-mask": Code(
        "error",
        CALL,
        "the softcap bounds the mask too: hidden keys get a score of -softcap instead of -inf",
        "apply the softcap before the mask",
    ),
    "sinks-dropped": Code(
        "error",
        CALL,
        "the sinks take no weight, so every row is larger than the model was trained with",
        "add one column with the sink's score before the softmax and drop it afterwards",
    ),
    "bias-dropped": Code(
        "error",
        CALL,
        "the additive bias (relative positions, ALiBi) is not applied",
        "add the bias to the scores",
    ),
    "bias-scaled": Code(
        "error",
        CALL,
        "the bias is multiplied by the scale together with the scores",
        "scale the scores first, then add the bias",
    ),
    "key-value-swapped": Code(
        "error",
        CALL,
        "keys and values are exchanged",
        "pass query, key, value in this order",
    ),
    "softmax-wrong-axis": Code(
        "error",
        CALL,
        "the softmax runs over the queries instead of the keys: columns sum to 1 and rows do not",
        "take the softmax over the last axis of the scores",
    ),
    "key-order-matters": Code(
        "error",
        BEHAVIOUR,
        "keys and values that change places together change the output, though attention is a sum over keys",
        "look for an index that depends on where a key stands",
    ),
    "softmax-overflow": Code(
        "error",
        BEHAVIOUR,
        "large scores overflow the exponential",
        "subtract each row's largest score before the exponential",
    ),
    "float16-overflow": Code(
        "error",
        CALL,
        "query . key passes 65504, the largest float16, and becomes infinite",
        "scale the query before the product, sum in float32, or use bfloat16",
    ),
    "float16-range": Code(
        "warning",
        STATISTICS,
        "query . key passes 65504 before it is scaled: attention that stores the product in float16 overflows",
        "use bfloat16 or float32, or an attention that scales the query first",
    ),
    "output-not-finite": Code(
        "error",
        UNEXPLAINED,
        "the output is NaN or infinite where attention is finite",
        "look at the rows named: overflow, or a row whose keys are all hidden",
    ),
    "output-differs": Code(
        "error",
        UNEXPLAINED,
        "the output is not that of attention, and none of the known faults explains it",
        "compare with keywise.attention.reference on one of the rows named",
    ),
    "inexact": Code(
        "warning",
        UNEXPLAINED,
        "the output is that of attention, but further off than its dtype explains",
        "sum in float32, and keep the softmax in float32",
    ),
    "keys-identical": Code(
        "error",
        STATISTICS,
        "all keys of a head are the same: every weight is 1/n, and the head only averages",
        "look at the key projection (zero, or not loaded) and at what writes the cache",
    ),
    "rank-collapse": Code(
        "warning",
        STATISTICS,
        "the tokens have become nearly the same vector, so no later layer can tell them apart",
        "look for missing residual connections, missing positions, or a layer that averages",
    ),
    "softmax-saturated": Code(
        "warning",
        STATISTICS,
        "in nearly every row of every head one key takes all: nothing is mixed, and gradients vanish",
        "look at the scale and at the size of query and key (norms missing, wrong dtype)",
    ),
    "weights-uniform": Code(
        "warning",
        STATISTICS,
        "nearly every row of every head gives every key the same weight: the layer looks at nothing",
        "look at the scale and at the size of query and key (projection zero or not loaded)",
    ),
    "head-dead": Code(
        "warning",
        STATISTICS,
        "a head's values are all zero: it contributes nothing",
        "look at the value projection; a head pruned on purpose can be removed",
    ),
    "lse-base": Code(
        "error",
        STATISTICS,
        "the log-sum-exp is in base 2, so merging it with natural ones is wrong",
        "multiply it by ln 2",
    ),
    "lse-differs": Code(
        "error",
        STATISTICS,
        "the log-sum-exp is not that of these scores",
        "compute it from the scores after softcap, bias and mask, sinks included",
    ),
    "rows-without-keys": Code(
        "note",
        STATISTICS,
        "some queries may see no key; their output should be 0",
        "nothing, when they are padding; otherwise look at the mask",
    ),
    "attention-sink": Code(
        "note",
        STATISTICS,
        "the first key takes much of the weight, as in most language models: a place to put weight not needed",
        "nothing; keep the first tokens when a cache drops keys",
    ),
    "scale-unusual": Code(
        "note",
        STATISTICS,
        "the model scales its scores by something else than 1 / sqrt(head_dim), as its configuration says",
        "nothing; hand the scale on to whatever computes this model's attention",
    ),
}
