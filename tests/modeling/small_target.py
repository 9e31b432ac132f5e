"""A random Llama of six layers to draft for."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 61


def make_target(seed=0, **fields):
    torch.manual_seed(seed)
    config = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
                  num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**config, **fields})).eval()
