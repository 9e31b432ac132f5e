"""Time of a verification round, packed and padded, with random keys and values in place of a text.

python benchmarks/measure_rounds.py --batch_size 16 --context 256 --keep 0.6 --dtype bfloat16
"""

import argparse
import random
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.generation.target.layout import PromptLayout
from dspark_hf.generation.target.runner import TargetRunner
from dspark_hf.hub.embedded import resolve_target


def prepared(runner_class, target, ids, taps, num_rounds, num_slots):
    """A runner whose cache holds all columns of `ids` but the last, which it has processed."""
    config, (batch_size, num_columns) = target.config, ids.shape
    cache = DynamicCache(config=config)
    shape = (batch_size, config.num_key_value_heads, num_columns - 1, config.head_dim)
    for layer_id in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, dtype=target.dtype) for _ in range(2)), layer_id)
    positions = torch.arange(num_columns).expand(batch_size, -1)
    model_kwargs = {"past_key_values": cache, "position_ids": positions, "use_cache": True}
    layout = PromptLayout(batch_size, num_columns, num_columns, num_columns - 1)
    runner = runner_class(target, taps, model_kwargs, layout, num_columns + num_rounds * (num_slots + 1) + 1)
    for _ in runner.prefill(ids):
        list(runner.take_prompt())
    return runner


def round_seconds(runner, ids, lens, offers, accepted):
    """CPU seconds of one round, and the rows' new lengths."""
    begin = time.process_time()
    runner.verify(ids, lens, offers).max(-1)
    taken = [count + 1 for count in accepted]
    runner.take_features(max(taken))
    lens = [length + count for length, count in zip(lens, taken, strict=True)]
    runner.commit([max(offers) + 1 - count for count in taken], lens)
    return time.process_time() - begin, lens


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--num_slots", type=int, default=5)
    parser.add_argument("--keep", type=float, default=0.6, help="chance that a slot is offered if all before it are")
    parser.add_argument("--num_rounds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    target = AutoModelForCausalLM.from_pretrained(resolve_target(args.target), dtype=args.dtype).eval()
    taps = [target.config.num_hidden_layers // 2]
    shape = (args.batch_size, args.context + (args.num_rounds + 1) * (args.num_slots + 1) + 1)
    ids = torch.randint(target.config.vocab_size, shape)
    prompt = ids[:, : args.context]
    runners = [
        prepared(kind, target, prompt, taps, args.num_rounds + 1, args.num_slots)
        for kind in (FlatRunner, TargetRunner)
    ]
    lens, seconds, num_tokens = [[args.context + 1] * args.batch_size] * 2, [[], []], [0, 0]
    for index in range(args.num_rounds + 1):
        offers = [0] * args.batch_size
        for row in range(args.batch_size):
            while offers[row] < args.num_slots and rng.random() < args.keep:
                offers[row] += 1
        accepted = [rng.randint(0, count) for count in offers]
        for way, runner in enumerate(runners):
            elapsed, lens[way] = round_seconds(runner, ids, lens[way], offers, accepted)
            if index > 0:
                seconds[way].append(elapsed)
        if index > 0:
            num_tokens[0] += sum(offers) + len(offers)
            num_tokens[1] += (max(offers) + 1) * len(offers)
    packed, padded = map(statistics.median, seconds)
    print(
        f"tokens a round: packed {num_tokens[0] / args.num_rounds:.1f}, padded {num_tokens[1] / args.num_rounds:.1f}"
    )
    print(f"time a round: packed / padded = {packed / padded:.2f}, packed {1e3 * packed:.0f} ms")


if __name__ == "__main__":
    main()
