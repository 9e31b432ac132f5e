"""Hash what decoding makes and print what training loses: equal before and after a change that changes nothing.

Random tiny targets of several kinds, drafters of every kind and none but lookup, batches of several sizes, greedy and
seeded; then three training steps. Run it on both commits, with as many threads, and compare:

OMP_NUM_THREADS=1 python benchmarks/print_outputs.py
"""

import hashlib
import json
import tempfile
import warnings

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dspark_hf import (
    DFlashModel,
    DraftTrainer,
    DraftTrainingArguments,
    DSparkModel,
    Eagle3Model,
    PromptLookup,
    SpeculationConfig,
)

VOCAB_SIZE = 64
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "qwen3_next": {
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "num_experts": 0,
        "mlp_only_layers": [0, 1, 2, 3],
    },
}
BATCH_SIZES = (1, 2, 5, 8)
ANSWER_LEN = 48


def make_target(family: str) -> AutoModelForCausalLM:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, **FAMILIES[family],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def make_drafters(target: AutoModelForCausalLM) -> dict:
    fields = {"num_hidden_layers": 1, "block_size": 4, "target_layer_ids": [0, 2], "mask_token_id": 3}
    torch.manual_seed(1)
    drafters = {"lookup": PromptLookup()}
    if target.config.model_type == "qwen3_next":
        return drafters
    return drafters | {
        "dspark": DSparkModel.from_target(target, markov_rank=8, **fields).eval(),
        "dflash": DFlashModel.from_target(target, **fields).eval(),
        "eagle3": Eagle3Model.from_target(target, target_layer_ids=[0, 1, 2]).eval(),
    }


def options_of(name: str) -> dict[str, tuple[SpeculationConfig, dict]]:
    threshold = {"confidence_threshold": 0.3} if name == "dspark" else {"max_draft_len": 2}
    lookup = {} if name == "lookup" else {"prompt_lookup": True}
    filters = {"repetition_penalty": 1.2, "temperature": 0.8, "top_p": 0.9}
    return {
        "greedy": (SpeculationConfig(policy="fixed"), {"do_sample": False}),
        "net": (SpeculationConfig(), {"do_sample": False}),
        "short": (SpeculationConfig(**threshold, **lookup), {"do_sample": False, "repetition_penalty": 1.3}),
        "drawn": (SpeculationConfig(seed=7, policy="fixed", **lookup), {"do_sample": True, **filters}),
    }


def hash_outputs(target: AutoModelForCausalLM, drafter, options: dict) -> str:
    digest = hashlib.sha256()
    for batch_size in BATCH_SIZES:
        torch.manual_seed(batch_size)
        ids = torch.randint(4, VOCAB_SIZE, (batch_size, 11))
        mask = torch.ones_like(ids)
        for row in range(batch_size):
            mask[row, : row % 4] = 0
        ids = torch.where(mask.bool(), ids, 0)
        for speculation, arguments in options.values():
            out = target.generate(
                ids, attention_mask=mask, assistant_model=drafter, speculation=speculation, max_new_tokens=ANSWER_LEN,
                **arguments,
            )  # fmt: skip
            stats = drafter.last_stats
            digest.update(json.dumps([out.tolist(), stats.rounds, stats.verified_lens, stats.accepted_lens]).encode())
            digest.update(json.dumps([[value.hex() for value in row] for row in stats.confidences]).encode())
    return digest.hexdigest()[:16]


def train_losses(target: AutoModelForCausalLM) -> list[str]:
    torch.manual_seed(2)
    rows = [
        {"input_ids": torch.randint(4, VOCAB_SIZE, (20 + index,)).tolist(), "loss_mask": [True] * (20 + index)}
        for index in range(8)
    ]
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=8, mask_token_id=3)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DraftTrainingArguments(
            folder, max_steps=3, num_anchors=6, logging_steps=1, seed=3, save_strategy="no", report_to="none",
            disable_tqdm=True, num_eval_prompts=0, per_device_train_batch_size=4, learning_rate=3e-3,
        )  # fmt: skip
        trainer = DraftTrainer(drafter, target, arguments, train_dataset=rows)
        trainer.train()
        history = trainer.state.log_history
    return [float(entry["loss"]).hex() for entry in history if "loss" in entry]


def main() -> None:
    warnings.simplefilter("ignore")
    for family in FAMILIES:
        target = make_target(family)
        for name, drafter in make_drafters(target).items():
            print(f"{family:12} {name:7} {hash_outputs(target, drafter, options_of(name))}")
    print("losses      ", *train_losses(make_target("llama")))


if __name__ == "__main__":
    main()
