"""Time and peak memory of the training loss, streamed and by its formula, forward and backward, a process each.

python benchmarks/measure_loss.py --rows 2048 --vocab_size 151936 --hidden_size 512 --compile
"""

import argparse
import multiprocessing
import threading
import time
from pathlib import Path

import torch

from dspark_hf.ops.distill_loss import distill_loss, distill_loss_reference


class PeakMemory:
    """Resident memory above that at the start, in MiB, looked at every few milliseconds."""

    def __init__(self):
        self.before = self.peak = self.resident()
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        while not self.is_done.wait(0.003):
            self.peak = max(self.peak, self.resident())

    def stop(self):
        self.is_done.set()
        self.thread.join()
        return self.peak - self.before

    @staticmethod
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def measure(kind, arguments, dtype, queue):
    torch.manual_seed(0)
    shape = (arguments.rows, arguments.hidden_size)
    inputs = {
        "hidden": torch.randn(shape).to(dtype).requires_grad_(),
        "head_weight": (torch.randn(arguments.vocab_size, arguments.hidden_size) * 0.05).to(dtype),
        "target_hidden": torch.randn(shape).to(dtype),
        "target_ids": torch.randint(arguments.vocab_size, (arguments.rows,)),
        "weights": torch.full((arguments.rows,), 1 / arguments.rows),
        "markov_states": torch.randn(arguments.rows, arguments.rank).to(dtype).requires_grad_(),
        "markov_weight": torch.zeros(arguments.vocab_size, arguments.rank).to(dtype).requires_grad_(),
    }

    def run(num_rows):
        per_row = {name: value[:num_rows] for name, value in inputs.items() if not name.endswith("_weight")}
        given = {**inputs, **per_row}
        if kind == "formula":
            loss = distill_loss_reference(**given)[0]
        else:
            loss = distill_loss(**given, chunk_size=arguments.chunk_size, compile=arguments.compile).loss
        loss.backward()
        return loss.item()

    run(min(arguments.chunk_size, arguments.rows))
    for name in ("hidden", "markov_states", "markov_weight"):
        inputs[name].grad = None
    memory = PeakMemory()
    start = time.perf_counter()
    loss = run(arguments.rows)
    seconds = time.perf_counter() - start
    queue.put((loss, seconds, memory.stop()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 2048), ("vocab_size", 151936), ("hidden_size", 512), ("rank", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunk_size", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--formula_dtype", default="float32", help="float32, as training code has it, or bfloat16")
    arguments = parser.parse_args()
    results = {}
    for kind, dtype in (("formula", getattr(torch, arguments.formula_dtype)), ("streamed", torch.bfloat16)):
        queue = multiprocessing.get_context("spawn").Queue()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(kind, arguments, dtype, queue))
        process.start()
        results[kind] = loss, seconds, mebibytes = queue.get()
        process.join()
        print(f"{kind:9} in {dtype}: loss {loss:.4f}, peak extra memory {mebibytes:.0f} MiB")
    formula, streamed = results["formula"], results["streamed"]
    print(f"formula / streamed: time {formula[1] / streamed[1]:.1f}, memory {formula[2] / streamed[2]:.1f}")


if __name__ == "__main__":
    main()
