"""Write docs/targets.md: how every causal language model of transformers does as a target, found by running each.

    python benchmarks/list_targets.py > docs/targets.md
    python benchmarks/list_targets.py llama bamba        # some, to look at

Each is a tiny random model in float64. Two prompts of different lengths are answered with a random drafter and lookup
beside it, and compared with plain `generate()`. A column more is a line in COLUMNS.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from dspark_hf import DSparkModel, PromptLookup, SpeculationConfig
from dspark_hf.generation.decode import SpeculativeLoop

VOCAB, NEW_TOKENS, MOST_PARAMETERS = 64, 12, 20_000_000
# Sizes by the names that configs have for them. A config without a name keeps its own value.
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim_model": 32, "emb_dim": 32,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "decoder_layers": 4, "encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "n_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attention_head_size": 8, "d_kv": 8,
    "intermediate_size": 48, "ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "dim_ff": 48, "dff": 48,
    "n_inner": 48, "ffn_hidden_size": 48, "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256,
    "max_seq_len": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "sliding_window": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "ssm_state_size": 8, "state_size": 8, "conv_kernel": 4, "chunk_size": 8, "expand": 2, "n_groups": 1,
    "lru_width": 32, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB, "global_head_dim": 8,
    "rotary_dim": 4, "word_embed_proj_dim": 32, "embedding_size": 32, "initializer_range": 0.3, "init_std": 0.3,
}  # fmt: skip
WITHOUT = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 1}
# What a type needs besides, or otherwise.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba"], "position_embedding_type": "rope",
                         "shared_intermediate_size": 32},
    "nemotron_h": {"hybrid_override_pattern": "M*M-", "initializer_range": 0.2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "conv"], "num_dense_layers": 1},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "deepseek_v4": {
        "num_key_value_heads": 1, "head_dim": 16, "moe_intermediate_size": 32, "num_experts_per_tok": 4,
        "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 64, "hc_mult": 2,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
                        "compressed_sparse_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "mlp_layer_types": ["moe"] * 4, "partial_rotary_factor": 0.5, "initializer_range": 0.2,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"], "router_hidden_size": 16,
             "num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
               "num_key_value_heads": 4, "n_mamba_heads": 4},
    "kimi_linear": {"num_key_value_heads": 4, "q_lora_rank": None, "qk_rope_head_dim": 4, "linear_num_heads": 4,
                    "linear_head_dim": 8},
    "bailing_hybrid": {"num_key_value_heads": 4, "q_lora_rank": 16, "qk_rope_head_dim": 4},
    "qwen3_next": {"num_experts": 0, "mlp_only_layers": [0, 1, 2, 3]},
    "gpt_oss": {"num_local_experts": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "xmod": {"default_language": "en_XX"},
    **{name: {"bos_token_id": 1} for name in ("cwm", "emu3", "mllama", "modernbert-decoder")},
    **{name: {"num_key_value_heads": 4} for name in ("dots3_note", "dots3_note_text",
       "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32",
       "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu")},
}  # fmt: skip
_LINEAR = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
OWN |= {
    name: {**OWN.get(name, {}), "layer_types": _LINEAR}
    for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear", "bailing_hybrid")
}


@dataclass
class Found:
    """What was found of a model type.

    Attributes:
        name (`str`): The model type.
        rows (`str`): How rows of a batch grow: `ragged`, `in step`, `in step, prompts of one length`, `batch 1`,
            `refused`, or `not tried`.
        why (`str`): Of the last two, why.
    """

    name: str
    rows: str
    why: str = ""


# Titles, and what stands in them.
COLUMNS: list[tuple[str, Callable[[Found], str]]] = [
    ("model type", lambda found: f"`{found.name}`"),
    ("rows of a batch", lambda found: found.rows),
    ("why", lambda found: found.why),
]


def tiny_config(model_type: str) -> Any:
    """A config of a model type with a few small layers."""
    config_cls = CONFIG_MAPPING[model_type]
    names = {field.name for field in fields(config_cls)}
    known = names | set(getattr(config_cls, "attribute_map", {}))
    chosen = {**SIZES, **WITHOUT, **OWN.get(model_type, {})}
    own = {name: value for name, value in chosen.items() if name in known}
    if "text_config" in names and "text_config" in config_cls.sub_configs:
        default = config_cls().get_text_config()
        if default.model_type != model_type:
            own["text_config"] = {**tiny_config(default.model_type).to_dict(), "model_type": default.model_type}
    own = {name: value for name, value in own.items() if not isinstance(vars(config_cls).get(name), property)}
    config = config_cls(**own)
    config.is_decoder, config.is_encoder_decoder = True, False
    return config


def try_target(model_type: str) -> Found:
    """Run a tiny model of a type with a drafter, and say how."""
    try:
        torch.manual_seed(0)
        config = tiny_config(model_type)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            raise ValueError(f"the smallest made here has {size / 1e6:.0f}M parameters")
        model = AutoModelForCausalLM.from_config(config).double().eval()
        model.set_experts_implementation("eager")  # grouped products are not made of doubles
        plain = generate(model, prompts(model, uneven=False)[:1])
    except Exception as error:
        return Found(model_type, "not tried", f"no tiny model of it generates: {_first_line(error)}")
    kinds = (("", True, 2), ("in step, prompts of one length", False, 2), ("batch 1", False, 1))
    for rows, uneven, num_rows in kinds:
        ids = prompts(model, uneven)[:num_rows]
        try:
            expected = generate(model, ids)
        except Exception:
            continue  # plain generate() cannot, either
        try:
            with watched() as loops:
                drafted = generate(model, ids, draft=True)
        except ValueError as error:
            why = _first_line(error)
            continue
        except Exception as error:
            return Found(model_type, "refused", f"without a word: {type(error).__name__}: {_first_line(error)}")
        if not torch.equal(drafted, expected):
            return Found(model_type, "WRONG", "other tokens than plain generate()")
        return Found(model_type, rows or ("in step" if loops[-1].transcript.in_step else "ragged"))
    del plain
    return Found(model_type, "refused", why)


def prompts(model: PreTrainedModel, uneven: bool) -> torch.Tensor:
    """Two rows of ids, the second shorter by its padding at the left if asked for."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (2, 9), generator=generator).repeat(1, 2)[:, :14]
    if uneven:
        ids[1, :5] = 0
    return ids


def generate(model: PreTrainedModel, ids: torch.Tensor, draft: bool = False) -> torch.Tensor:
    """Greedy tokens, with a random drafter and lookup beside it or without."""
    options: dict[str, Any] = {}
    if draft:
        layers = model.config.get_text_config().num_hidden_layers
        family = "deepseek_v4" if model.config.model_type == "deepseek_v4" else "qwen3"
        torch.manual_seed(0)
        drafter = DSparkModel.from_target(
            model, family=family, num_hidden_layers=1, target_layer_ids=[0] if layers < 4 else [0, 2], block_size=4,
            markov_rank=4,
        )  # fmt: skip
        options = {"assistant_model": drafter,
                   "speculation": SpeculationConfig(prompt_lookup=PromptLookup(), policy="fixed")}  # fmt: skip
    mask = (ids != 0).long()
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **options)


@contextmanager
def watched() -> Iterator[list[SpeculativeLoop]]:
    """The loops that run inside."""
    loops, run = [], SpeculativeLoop.run

    def watch(loop: SpeculativeLoop) -> Any:
        loops.append(loop)
        return run(loop)

    SpeculativeLoop.run = watch
    try:
        yield loops
    finally:
        SpeculativeLoop.run = run


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()).split(". ")[0].split("; ")[0]
    return text.replace("|", "/")[:160]


HEAD = """# Targets

Every causal language model type of transformers {version}, found by running a tiny random model of each with a
drafter, against plain `generate()`. *Ragged* rows accept as many drafts as stand in each; rows *in step* go at the
pace of the slowest ([batches](concepts.md#batches)). *Not tried* says that no tiny model was made, nothing about a
real one. Types whose models see images are made without them.

`python benchmarks/list_targets.py > docs/targets.md` writes this page.
"""


def table(found: list[Found]) -> str:
    """The findings as a table."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(cell(one) for _, cell in COLUMNS) + " |" for one in found)])


def main() -> None:
    """Print the page, or of some types the table."""
    import transformers

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for name in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found.append(try_target(name))
        print(f"{name}: {found[-1].rows} {found[-1].why}", file=sys.stderr, flush=True)
    if len(sys.argv) == 1:
        print(HEAD.format(version=".".join(transformers.__version__.split(".")[:2])))
        counts = {rows: sum(one.rows == rows for one in found) for rows in dict.fromkeys(one.rows for one in found)}
        print(", ".join(f"{count} {rows}" for rows, count in sorted(counts.items())) + ".\n")
    print(table(found))


if __name__ == "__main__":
    main()
