"""Tiny GGUF files of random weights."""

import gguf
import numpy as np
import torch
import transformers

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
SHAPE = {"hidden": 32, "heads": 4, "kv_heads": 2, "inner": 64, "layers": 1}
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def list_byte_letters():
    """Return the 256 letters that byte-level tokenizers write bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_gguf(
    path, seed=0, *, architecture="llama", block_format="F32", extra=None, tensors_per_part=0, has_vocab_size=True
):
    """Write a tiny model with a byte-level tokenizer; matrices have the format, and other tensors are float32.

    With tensors_per_part, the file is split into parts, whose names are returned by `list_gguf_parts`.
    """
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *list_byte_letters(), "Ġt", "Ġth"]
    if architecture.startswith("gemma"):
        tokens.append("<unk>")  # older versions of transformers look for it
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    writer.add_name("tiny")
    writer.add_block_count(SHAPE["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(SHAPE["hidden"])
    writer.add_feed_forward_length(SHAPE["inner"])
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_find_head_dim(architecture))
    writer.add_layer_norm_rms_eps(1e-5)
    if has_vocab_size:
        writer.add_vocab_size(len(tokens))
    if architecture in {"qwen3", "gemma2", "gemma3"}:
        writer.add_key_length(_find_head_dim(architecture))
        writer.add_value_length(_find_head_dim(architecture))
    if architecture.startswith("gemma"):
        writer.add_sliding_window(32)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    _add_tokenizer(writer, tokens)
    for name, shape in {**_list_tensors(architecture, len(tokens)), **(extra or {})}.items():
        weights = generator.normal(0, 0.3, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType[block_format if len(shape) == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _find_head_dim(architecture):
    # transformers does not read the size of Qwen3's heads from a file, because all its models have the same.
    return 128 if architecture == "qwen3" else SHAPE["hidden"] // SHAPE["heads"]


def _add_tokenizer(writer, tokens):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _list_tensors(architecture, tokens):
    """Return the name and the shape of every tensor."""
    hidden, inner = SHAPE["hidden"], SHAPE["inner"]
    head_dim = _find_head_dim(architecture)
    query_rows, key_rows = head_dim * SHAPE["heads"], head_dim * SHAPE["kv_heads"]
    block = {
        "attn_q.weight": (query_rows, hidden),
        "attn_k.weight": (key_rows, hidden),
        "attn_v.weight": (key_rows, hidden),
        "attn_output.weight": (hidden, query_rows),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
    }
    if architecture == "qwen2":
        block |= {"attn_q.bias": (hidden,), "attn_k.bias": (key_rows,), "attn_v.bias": (key_rows,)}
    if architecture in {"qwen3", "gemma3"}:
        block |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
    if architecture.startswith("gemma"):
        block |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    if architecture == "phi3":
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
            del block[f"{name}.weight"]
        block |= {"attn_qkv.weight": (hidden + 2 * key_rows, hidden), "ffn_up.weight": (2 * inner, hidden)}
    tensors = {"token_embd.weight": (tokens, hidden), "output_norm.weight": (hidden,)}
    if architecture == "phi3":
        tensors["output.weight"] = (tokens, hidden)
    for number in range(SHAPE["layers"]):
        tensors |= {f"blk.{number}.{name}": shape for name, shape in block.items()}
    return tensors


def load_with_transformers(path):
    """Load the model of a GGUF file by transformers, as float32."""
    # Versions without GgufConfig always convert the weights to numbers.
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **options
    )
    return model.eval()
