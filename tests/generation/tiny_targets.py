"""Tiny random targets and prompts for the decoding loop."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB_SIZE = 64
FAMILIES = ("llama", "qwen3", "mistral", "gemma3_text")
_SLIDING = {"mistral": {"sliding_window": 8}, "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8}}


def make_target(family="llama", vocab_size=VOCAB_SIZE, seed=0, **overrides):
    """A random float32 target whose argmax varies from position to position.

    Windows of mistral and gemma3 are shorter than most prompts.
    """
    torch.manual_seed(seed)
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    fields |= _SLIDING.get(family, {}) | overrides
    config_cls = CONFIG_MAPPING[family]
    if isinstance(vars(config_cls).get("head_dim"), property):
        del fields["head_dim"]
    config = config_cls(**fields)
    return AutoModelForCausalLM.from_config(config).eval()


def make_prompt(length, seed=0, batch_size=1, vocab_size=VOCAB_SIZE):
    """Random ids without the padding token, `(batch, length)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, (batch_size, length), generator=generator)


def padded_prompts(lengths, side="left", seed=0):
    """Rows of different lengths, padded with 0, and their mask."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = make_prompt(length, seed=seed + row)[0]
    return ids, (ids != 0).long()
