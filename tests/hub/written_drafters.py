"""Random drafters, and checkpoints of them in the layouts of others."""

import json

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dspark_hf import AutoDrafter, DSparkModel, Eagle3Model

TAPS, VOCAB = [0, 2, 3], 61
HEADS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


def make_target():
    """A random Llama of six layers."""
    torch.manual_seed(0)
    config = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
                  num_key_value_heads=2, initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def make(target, model_cls=DSparkModel, **fields):
    defaults = {"target_layer_ids": TAPS, "family": "qwen3", "initializer_range": 0.3, "mask_token_id": 7}
    if model_cls is not Eagle3Model:
        defaults |= {"num_hidden_layers": 2, "block_size": 5}
    else:
        del defaults["mask_token_id"]
    if model_cls is DSparkModel:
        defaults["markov_rank"] = 8
    drafter = model_cls.from_target(target, **{**defaults, **fields}).eval()
    if "draft_vocab_size" in fields:
        drafter.choose_vocabulary(range(1, 60, 3))
    return drafter


def write(folder, config, drafter, rename=lambda name: name, **more):
    tensors = {rename(name): tensor.clone() for name, tensor in drafter.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return AutoDrafter.from_pretrained(folder)


def decoder_fields(drafter):
    return drafter.config.decoder_config.to_diff_dict()


def speculators_config(drafter, kind, **fields):
    """config.json as speculators writes it; fields with the value None are left out."""
    config = {
        "architectures": [{"dspark": "DSparkSpeculator", "dflash": "DFlashSpeculator"}.get(kind, "Eagle3Speculator")],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "transformer_layer_config": decoder_fields(drafter),
        "draft_vocab_size": drafter.config.draft_vocab_size or VOCAB,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": drafter.config.num_slots}],
            "verifier": {"name_or_path": "org/Target", "architectures": ["LlamaForCausalLM"]},
        },
    } | fields  # fmt: skip
    return {name: value for name, value in config.items() if value is not None}


def assert_same(drafter, other, target):
    assert type(other) is type(drafter) and other.config.num_slots == drafter.config.num_slots
    other.config.target_name_or_path = None
    other.bind(target)
    features, ids, anchor = torch.randn(2, 6, 32 * len(TAPS)), torch.randint(VOCAB, (2, 6)), torch.tensor([4, 5])
    proposals = []
    for model in (drafter, other):
        state = model.start(2)
        model.extend(state, features, ids=ids)
        proposals.append(model.propose(state, anchor))
    first, second = proposals
    assert torch.equal(first.ids, second.ids)
    if first.confidence_logits is not None:
        torch.testing.assert_close(first.confidence_logits, second.confidence_logits)
