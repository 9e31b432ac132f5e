"""What a round of a pair in the shape of Qwen3-4B takes at least on an H100, by kernels and by torch: predicted.

python benchmarks/predict_round.py             prints the table
python benchmarks/predict_round.py --write     writes it into docs/kernels.md

Eight rows with blocks of seven, of which 0 to 7 drafts are verified, drawn, each of 512 candidates: the cases of
docs/kernels.json, whose counted bytes these are. Products read each weight once, and their inputs and outputs; what
stands between products (norms, rotary embeddings, activations, the residual) and launches are left out both ways.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from h100 import least_us
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dspark_hf import DSparkModel

DOCS = Path(__file__).resolve().parents[1] / "docs"
TARGET = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
          "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
# As examples/recipes/qwen3-4b.yaml has it.
DRAFTER = {"num_hidden_layers": 5, "block_size": 7, "markov_rank": 256, "mask_token_id": 151669,
           "target_layer_ids": [1, 9, 17, 25, 33]}  # fmt: skip
# Drafted slots, and tokens that the target reads: a row's last one and its drafts, 0 to 7.
NUM_SLOTS, NUM_VERIFIED = 8 * 7, sum(range(1, 9))
_SIZE = 2  # bytes of bfloat16


class Part(NamedTuple):
    """Bytes and microseconds of a part of the round, by kernels and by torch."""

    name: str
    kernel_bytes: float
    torch_bytes: float
    kernel_us: float
    torch_us: float


def products(name: str, layers: Iterable[nn.Linear], num_tokens: int) -> Part:
    """Linear layers over so many tokens, which are the same both ways."""
    total, time = 0, 0.0
    for layer in layers:
        num_outputs, num_inputs = layer.weight.shape
        num_bytes = _SIZE * (num_outputs * num_inputs + num_tokens * (num_outputs + num_inputs))
        total, time = total + num_bytes, time + least_us(num_bytes, 2 * num_tokens * num_outputs * num_inputs)
    return Part(name, total, total, time, time)


def counted(name: str, rows: list[dict], kernel: str, case: str, times: int = 1) -> Part:
    """A kernel's case of docs/kernels.json, so many times."""
    row = next(row for row in rows if (row["kernel"], row["case"]) == (kernel, case))
    ways = [row["moved"], row["torch"]]
    return Part(name, *(times * way for way in ways), *(times * least_us(way, row["flops"]) for way in ways))


def linears(*modules: nn.Module) -> list[nn.Linear]:
    """The linear layers inside."""
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]


def parts(rows: list[dict]) -> list[Part]:
    """The round, in order."""
    with torch.device("meta"):
        target = Qwen3ForCausalLM(Qwen3Config(**TARGET))
        drafter = DSparkModel.from_target(target, **DRAFTER)
    of_context = [part for layer in drafter.layers for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)]
    logits = _SIZE * NUM_SLOTS * target.config.vocab_size
    return [
        products("drafter: keys and values of what was verified", [drafter.fc, *of_context], NUM_VERIFIED),
        products("drafter: products of its layers", linears(drafter.layers), NUM_SLOTS),
        counted("drafter: attention", rows, "row_attention", "draft 8 rows", len(drafter.layers)),
        products("drafter: output head", [target.lm_head], NUM_SLOTS),
        Part("drafter: best 512 logits, by torch", logits, logits, least_us(logits), least_us(logits)),
        counted("drafter: sequential stage", rows, "markov_block", "8 rows"),
        products("target: products of its layers", linears(target.model.layers), NUM_VERIFIED),
        counted("target: attention", rows, "row_attention", "verify 8 rows", len(target.model.layers)),
        products("target: output head", [target.lm_head], NUM_VERIFIED),
        counted("verification", rows, "verify", "8 rows"),
    ]


def table(found: list[Part]) -> str:
    """The parts and their sum."""
    whole = Part("**whole round**", *map(sum, zip(*(part[1:] for part in found), strict=True)))
    heads = ("part", "kernels, MB", "torch, MB", "kernels, predicted us", "torch, predicted us")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for part in [*found, whole]:
        cells = [part.name, *(f"{number / 1e6:,.1f}" for number in part[1:3]), *(f"{time:,.1f}" for time in part[3:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, rows: list[dict]) -> str:
    """The page with the table in its place."""
    return re.sub("(<!-- round -->\n).*?(<!-- end -->)", rf"\g<1>\n{table(parts(rows))}\n\n\g<2>", page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Write the table into docs/kernels.md.")
    arguments = parser.parse_args()
    rows = json.loads((DOCS / "kernels.json").read_text(encoding="utf-8"))["bytes"]
    print(table(parts(rows)))
    if arguments.write:
        page = DOCS / "kernels.md"
        page.write_text(with_table(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
