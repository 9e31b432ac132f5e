"""Algorithms and families, each a line: `tests/modeling/test_matrix.py` runs the same checks on every pair."""

from collections.abc import Iterator

import torch
from generation.tiny_targets import make_target
from transformers import PreTrainedModel

from dspark_hf.modeling import DFlashModel, DraftModel, DSparkModel, Eagle3Model
from dspark_hf.modeling.families import get_family

# The class, and fields of its config.
ALGORITHMS = {
    "dspark": (DSparkModel, {"markov_rank": 8, "block_size": 4, "num_hidden_layers": 2}),
    "gated": (DSparkModel, {"markov_rank": 8, "block_size": 4, "num_hidden_layers": 1, "markov_head_type": "gated"}),
    "rnn": (DSparkModel, {"markov_rank": 8, "block_size": 4, "num_hidden_layers": 1, "markov_head_type": "rnn"}),
    "domino": (DSparkModel, {"markov_rank": 8, "block_size": 4, "num_hidden_layers": 1, "markov_head_type": "domino"}),
    "dflash": (DFlashModel, {"block_size": 5, "num_hidden_layers": 2, "sample_from_anchor": False}),
    "eagle3": (Eagle3Model, {"ttt_length": 4}),
}
# Fields of a tiny target of this family, besides the usual ones.
FAMILIES = {
    "deepseek_v4": {},
    "gemma4_text": {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
                    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 8},
    "llama": {},
    "qwen3": {},
    "qwen3_5_text": {},
}  # fmt: skip


def pairs() -> Iterator[tuple[str, str]]:
    """The names of every algorithm with every family that it can be made of."""
    for algorithm, (model_cls, _) in ALGORITHMS.items():
        yield from (
            (algorithm, family) for family in FAMILIES if model_cls is not Eagle3Model or get_family(family).has_eagle3
        )


def make_pair(algorithm: str, family: str) -> tuple[DraftModel, PreTrainedModel]:
    """A random drafter, and the random target of its family that it is bound to, both in evaluation mode."""
    target = make_target(family, **FAMILIES[family])
    model_cls, fields = ALGORITHMS[algorithm]
    torch.manual_seed(1)
    drafter = model_cls.from_target(target, family=family, target_layer_ids=[0, 2], initializer_range=0.3, **fields)
    return drafter.eval(), target
