"""Speed by the clock of drafts as they pay, or of other policies, to plain, with a good, a poor and a useless drafter.

python benchmarks/measure_scheduler.py --data prompts.jsonl --limit 8 --batch_sizes 1 8 --policies auto fixed
python benchmarks/measure_scheduler.py --data prompts.jsonl --quality useless --first_calls --dtype float32

Ways go in turns, batch by batch. Ratios are of all tokens over all seconds, with 95% bootstrap intervals over batches.
"""

import argparse
import json
import warnings
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, SpeculationConfig
from dspark_hf.evaluation import DecodingSettings, encode_prompts, generate_plain, generate_speculative, load_prompts
from dspark_hf.evaluation.figures.intervals import bootstrap
from dspark_hf.evaluation.lengths.sweep import QUALITIES, drafter_of_quality
from dspark_hf.hub.embedded import resolve_drafter, resolve_target


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--limit", type=int, default=10, help="prompts of each file")
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded", help="the good one; others are made of it")
    parser.add_argument("--quality", nargs="+", default=QUALITIES, choices=QUALITIES)
    parser.add_argument("--policies", nargs="+", default=["auto"], choices=["auto", "lagged", "early_stop", "fixed"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--first_calls", action="store_true", help="each call with a drafter nothing is known of")
    parser.add_argument("--json", help="append each point's figures to this file")
    return parser.parse_args()


def main():
    args = arguments()
    warnings.filterwarnings("ignore", message="Hardly any draft")
    path = resolve_target(args.target)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    # Every answer is as long as asked for.
    target.generation_config.eos_token_id = None
    good = AutoDrafter.from_pretrained(resolve_drafter(args.drafter), dtype=target.dtype).bind(target)
    tokenizer, settings = AutoTokenizer.from_pretrained(path), DecodingSettings(args.max_new_tokens, args.temperature)
    prompts = mixed([load_prompts(path, args.limit) for path in args.data])
    if len(prompts) < max(args.batch_sizes):
        raise SystemExit(f"{len(prompts)} prompts make no batch of {max(args.batch_sizes)} rows: raise --limit.")
    for size in args.batch_sizes:
        starts = range(0, len(prompts) - size + 1, size)
        batches = [encode_prompts(prompts[start : start + size], tokenizer) for start in starts]
        for quality in args.quality:
            drafter = drafter_of_quality(good, quality)
            rows = measure(target, drafter, batches, settings, args)
            for name in args.policies:
                pairs = [[row["plain"], row[name]] for row in rows]
                ratio, interval = pooled(np.array(pairs)), bootstrap(pooled, pairs)
                between = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
                point = f"{args.dtype}, T = {args.temperature:g}, {quality}, {size} rows, {name}"
                print(f"{point}: {ratio:.3f}{between}, {len(rows)} batches", flush=True)
                if args.json:
                    made_with = {
                        **vars(args),
                        "batch_size": size,
                        "quality": quality,
                        "policy": name,
                        "seconds": pairs,
                    }
                    with open(args.json, "a", encoding="utf-8") as file:
                        file.write(json.dumps({**made_with, "ratio": ratio, "interval": interval}) + "\n")


def mixed(lists):
    """Prompts of all files in turn, so that each batch has some of each."""
    return [one for group in zip_longest(*lists) for one in group if one is not None]


def measure(target, drafter, batches, settings, args):
    """Seconds of each way, batch by batch."""

    def run(name, inputs, settings):
        if name == "plain":
            return generate_plain(target, inputs, settings).seconds
        if args.first_calls:
            drafter.bind(target)  # What is known of it is forgotten.
        speculation = SpeculationConfig(prompt_lookup=False, policy=name)
        return generate_speculative(target, drafter, inputs, settings, speculation).seconds

    ways, rows = ["plain", *args.policies], []
    for name in ways:
        run(name, batches[0], replace(settings, max_new_tokens=min(16, settings.max_new_tokens)))
    drafter.bind(target)
    for number, inputs in enumerate(batches):
        order = ways if number % 2 == 0 else ways[::-1]
        rows.append({name: run(name, inputs, settings) for name in order})
    return rows


def pooled(pairs):
    """Times as fast as plain over all batches."""
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


if __name__ == "__main__":
    main()
