"""Speed by the clock of drafts as they pay, or of other policies, to plain, with a good, a poor and a useless drafter.

python benchmarks/measure_scheduler.py --data prompts.jsonl --limit 8 --batch_sizes 1 8 --policies auto fixed
python benchmarks/measure_scheduler.py --data prompts.jsonl --quality useless --first_calls --dtype float32

Ways go in turns, step by step, each by a clock of its own (pip install greenlet). Ratios are of all tokens over all
seconds, with 95% bootstrap intervals over batches. Every answer is as long as asked for, also where the target would
end it, but with --natural_ends.
"""

import argparse
import copy
import json
import warnings
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from turns import Turns

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
    parser.add_argument("--natural_ends", action="store_true", help="answers end where the target ends them (greedy)")
    parser.add_argument("--first_calls", action="store_true", help="each call with a drafter nothing is known of")
    parser.add_argument("--json", help="append each point's figures to this file")
    args = parser.parse_args()
    if args.natural_ends and args.temperature > 0:
        parser.error("--natural_ends compares answers of one length, so it goes with --temperature 0.")
    return args


def main():
    args = arguments()
    warnings.filterwarnings("ignore", message="Hardly any draft")
    path = resolve_target(args.target)
    ways = ["plain", *args.policies]
    turns = Turns()
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    if not args.natural_ends:
        target.generation_config.eos_token_id = None
    targets = {name: twin(target, turns) for name in ways}
    drafter_path = resolve_drafter(args.drafter)
    good = {
        name: AutoDrafter.from_pretrained(drafter_path, dtype=target.dtype).bind(target)
        for name, target in targets.items()
        if name != "plain"
    }
    tokenizer, settings = AutoTokenizer.from_pretrained(path), DecodingSettings(args.max_new_tokens, args.temperature)
    prompts = mixed([load_prompts(path, args.limit) for path in args.data])
    if len(prompts) < max(args.batch_sizes):
        raise SystemExit(f"{len(prompts)} prompts make no batch of {max(args.batch_sizes)} rows: raise --limit.")
    for size in args.batch_sizes:
        starts = range(0, len(prompts) - size + 1, size)
        batches = [encode_prompts(prompts[start : start + size], tokenizer) for start in starts]
        for quality in args.quality:
            drafters = {name: drafter_of_quality(drafter, quality) for name, drafter in good.items()}
            rows = measure(turns, targets, drafters, batches, settings, args)
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


def twin(target, turns):
    """The same weights in other modules: what a way switches on in its target must not be on for the others."""
    other = copy.deepcopy(target, {id(tensor): tensor for tensor in (*target.parameters(), *target.buffers())})
    other.get_decoder().layers[0].register_forward_pre_hook(turns.step)
    return other


# A call that ends must not switch gradients on for the others.
@torch.no_grad()
def measure(turns, targets, drafters, batches, settings, args):
    """Seconds of each way, batch by batch."""

    def run(name, inputs, settings):
        if name == "plain":
            return generate_plain(targets[name], inputs, settings).seconds
        if args.first_calls:
            drafters[name].bind(targets[name])  # What is known of it is forgotten.
        speculation = SpeculationConfig(prompt_lookup=False, policy=name)
        return generate_speculative(targets[name], drafters[name], inputs, settings, speculation).seconds

    def all_ways(number, inputs, settings):
        # Whose prompt comes first finds more memory free.
        names = list(targets) if number % 2 == 0 else list(targets)[::-1]
        return turns.run({name: partial(run, name, inputs, settings) for name in names})

    all_ways(0, batches[0], replace(settings, max_new_tokens=min(16, settings.max_new_tokens)))
    for name, drafter in drafters.items():
        drafter.bind(targets[name])
    return [all_ways(*numbered, settings) for numbered in enumerate(batches)]


def pooled(pairs):
    """Times as fast as plain over all batches."""
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


if __name__ == "__main__":
    main()
