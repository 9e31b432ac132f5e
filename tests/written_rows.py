"""A tiny target, and rows of text that it wrote, for training drafters."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NUM_PROMPT = 3


def make_target() -> LlamaForCausalLM:
    """A random Llama of four layers."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_rows(target: LlamaForCausalLM) -> list[dict]:
    """Sixteen rows of `input_ids` and `loss_mask`, of several lengths: prompts, and what a target answers."""
    torch.manual_seed(1)
    prompts = torch.randint(2, 97, (16, NUM_PROMPT))
    written = target.generate(prompts, max_new_tokens=30, do_sample=False, pad_token_id=0)
    lengths = [33 - index % 5 for index in range(16)]
    return [
        {"input_ids": ids[:length].tolist(), "loss_mask": [index >= NUM_PROMPT for index in range(length)]}
        for ids, length in zip(written, lengths, strict=True)
    ]
