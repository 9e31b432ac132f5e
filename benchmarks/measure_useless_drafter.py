"""The worst case: speed with a drafter of random weights, with drafts as they pay and with all of them, to plain.

python benchmarks/measure_useless_drafter.py --data prompts.jsonl --limit 10 --max_new_tokens 256
python benchmarks/measure_useless_drafter.py --data prompts.jsonl --limit 16 --batch_size 16 --dtype float32
"""

import argparse
import statistics
import warnings
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, SpeculationConfig
from dspark_hf.evaluation import DecodingSettings, encode_prompts, generate_plain, generate_speculative, load_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target


def random_drafter(target, name):
    """A drafter of the sizes of another, which nobody trained."""
    trained = AutoDrafter.from_pretrained(resolve_drafter(name), dtype=target.dtype)
    return type(trained)(trained.config).to(target.dtype).eval().bind(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded", help="whose sizes the random drafter has")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Hardly any draft")
    torch.manual_seed(0)
    path = resolve_target(args.target)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    # Every answer is as long as asked for.
    target.generation_config.eos_token_id = None
    drafter = random_drafter(target, args.drafter)
    prompts = load_prompts(args.data, args.limit)
    tokenizer = AutoTokenizer.from_pretrained(path)
    size, settings = args.batch_size, DecodingSettings(args.max_new_tokens)
    ways = {
        "plain": lambda inputs, settings: generate_plain(target, inputs, settings),
        "auto": lambda inputs, settings: generate_speculative(
            target, drafter, inputs, settings, SpeculationConfig(prompt_lookup=False)
        ),
        "all drafts": lambda inputs, settings: generate_speculative(
            target, drafter, inputs, settings, SpeculationConfig(prompt_lookup=False, policy="fixed")
        ),
    }
    ratios = {"auto": [], "all drafts": []}
    for start in range(0, len(prompts), size):
        inputs = encode_prompts(prompts[start : start + size], tokenizer)
        if start == 0:
            for run in ways.values():
                run(inputs, replace(settings, max_new_tokens=min(16, args.max_new_tokens)))
        order = list(ways) if start // size % 2 == 0 else list(reversed(ways))
        seconds = {name: ways[name](inputs, settings).seconds for name in order}
        for name, values in ratios.items():
            values.append(seconds["plain"] / seconds[name])
        print(f"prompts from {start}: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in ratios.items()))
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.3f}, least {min(values):.3f} times as fast as plain")


if __name__ == "__main__":
    main()
