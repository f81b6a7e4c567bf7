"""Tiny GGUF files of random weights."""

import gguf
import numpy as np

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
SHAPE = {"hidden": 32, "heads": 4, "kv_heads": 2, "inner": 48, "layers": 1}


def list_byte_letters():
    """Return the 256 letters that byte-level tokenizers write bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def write_gguf(path, seed=0):
    """Write a tiny Llama with float32 weights and a byte-level tokenizer."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *list_byte_letters(), "Ġt", "Ġth"]
    generator = np.random.default_rng(seed)
    hidden, inner = SHAPE["hidden"], SHAPE["inner"]
    key_rows = hidden // SHAPE["heads"] * SHAPE["kv_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(SHAPE["layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(SHAPE["heads"])
    writer.add_head_count_kv(SHAPE["kv_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // SHAPE["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name, *shape):
        writer.add_tensor(name, generator.normal(0, 0.3, shape).astype(np.float32))

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    for block in range(SHAPE["layers"]):
        for name, shape in {
            "attn_q": (hidden, hidden),
            "attn_k": (key_rows, hidden),
            "attn_v": (key_rows, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
        }.items():
            add(f"blk.{block}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
