"""Share of a round's processor time that goes into deciding how much to draft and to verify.

python benchmarks/measure_decisions.py --data prompts.jsonl --batch_sizes 1 8 32 --dtype bfloat16

Rows are prompts of the file, taken over and over. Drafts are taken to cost little, so that every round decides.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dspark_hf import AutoDrafter, PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.evaluation import encode_prompts
from dspark_hf.generation.lengths.schedule import Schedule
from dspark_hf.generation.lengths.survival import Signals
from dspark_hf.generation.lengths.track_record import TrackRecord
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

DECISIONS = {
    Schedule: ("begin", "slots", "cut", "cuts_pay", "learn"), TrackRecord: ("predict",), Signals: ("read",),
}  # fmt: skip


class Watch:
    """Processor time inside some methods, those that they call counted once."""

    def __init__(self):
        self.seconds, self._is_inside = 0.0, False

    def over(self, owner, name):
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            if self._is_inside:
                return method(*args, **kwargs)
            self._is_inside, started = True, time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - started
                self._is_inside = False

        setattr(owner, name, timed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = resolve_target("embedded")
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    drafter = AutoDrafter.from_pretrained(resolve_drafter("embedded"), dtype=args.dtype).bind(target)
    with open(args.data, encoding="utf-8") as file:
        texts = [json.loads(line)["turns"][0] for line in file]
    cheap = StepCost([1, 512], [1], [[1.0, 1.4]], [1], [0.05])
    config = GenerationConfig(max_new_tokens=args.max_new_tokens, min_new_tokens=args.max_new_tokens, do_sample=False)
    watch = Watch()
    for owner, names in DECISIONS.items():
        for name in names:
            watch.over(owner, name)
    for size in args.batch_sizes:
        inputs = encode_prompts([texts[row % len(texts)] for row in range(size)], tokenizer)
        speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=cheap), prompt_lookup=False)
        for _ in range(2):  # The first call pays for what is made once.
            watch.seconds, started = 0.0, time.thread_time()
            target.generate(**inputs, assistant_model=drafter, generation_config=config, speculation=speculation)
        whole, stats = time.thread_time() - started, drafter.last_stats
        print(f"{size} rows: {stats.rounds} rounds, tau {stats.tau:.2f}, decisions {watch.seconds / whole:.2%}")


if __name__ == "__main__":
    main()
