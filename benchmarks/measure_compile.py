"""CPU time of a round's passes, compiled and not, in turn, with random keys and values in place of a text.

python benchmarks/measure_compile.py --dtype bfloat16 --batch_size 1 --context 256
"""

import argparse
import statistics
import time

import torch
from measure_rounds import prepared
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.generation.target.compiled import CompiledRunner
from dspark_hf.generation.target.flat import FlatRunner
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.modeling.compiled_drafter import CompiledDrafter


class Way:
    """Target and drafter behind a context of random states, ready for rounds.

    Args: as of the command line; `runner_cls` and `drafter` say how passes are run.
    """

    def __init__(self, target, runner_cls, drafter, args):
        self.drafter, self.num_slots = drafter, drafter.config.num_slots
        self.lens = [args.context + 1] * args.batch_size
        most = self.lens[0] + (args.num_rounds + 2) * (self.num_slots + 1)
        self.ids = torch.randint(target.config.vocab_size, (args.batch_size, most + 1))
        taps, num_rounds = drafter.config.target_layer_ids, args.num_rounds + 2
        self.runner = prepared(runner_cls, target, self.ids[:, : args.context], taps, num_rounds, self.num_slots)
        self.state = drafter.start(args.batch_size)
        width = len(taps) * target.config.hidden_size
        drafter.extend(self.state, torch.randn(args.batch_size, args.context, width, dtype=target.dtype))

    def round(self, num_taken):
        """Milliseconds of drafter and target in a round of which `num_taken` tokens stand."""
        times = [time.process_time()]
        self.drafter.propose(self.state, self.ids[:, self.lens[0] - 1])
        times.append(time.process_time())
        self.runner.verify(self.ids, self.lens, [self.num_slots] * len(self.lens)).max(-1)
        times.append(time.process_time())
        features = self.runner.take_features(num_taken)
        self.lens = [length + num_taken for length in self.lens]
        self.runner.commit([self.num_slots + 1 - num_taken] * len(self.lens), self.lens)
        times.append(time.process_time())
        self.drafter.extend(self.state, features)
        times.append(time.process_time())
        steps = [1000 * (after - before) for before, after in zip(times, times[1:], strict=False)]
        return steps[0] + steps[3], steps[1] + steps[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--num_rounds", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    target = AutoModelForCausalLM.from_pretrained(resolve_target(args.target), dtype=args.dtype).eval()
    drafter = AutoDrafter.from_pretrained(resolve_drafter(args.drafter), dtype=args.dtype).bind(target).eval()
    with torch.no_grad():
        ways = [
            Way(target, CompiledRunner, CompiledDrafter(drafter), args),
            Way(target, FlatRunner, drafter, args),
        ]
        begin = time.process_time()
        ways[0].round(2)
        print(f"first compiled round: {time.process_time() - begin:.1f} s of this process", flush=True)
        ways[1].round(2)
        rounds = [[], []]
        for index in range(args.num_rounds):
            for way in (0, 1) if index % 2 == 0 else (1, 0):
                rounds[way].append(ways[way].round(1 + index % 3))
    medians = [[statistics.median(values) for values in zip(*way, strict=True)] for way in rounds]
    for name, *values in zip(("drafter", "target"), *medians, strict=True):
        print(f"{name}: {values[0]:.1f} ms compiled, {values[1]:.1f} ms without, ratio {values[0] / values[1]:.2f}")
    total = [sum(way) for way in medians]
    print(f"round: {total[0]:.1f} ms compiled, {total[1]:.1f} ms without, ratio {total[0] / total[1]:.2f}")


if __name__ == "__main__":
    main()
