"""Throughput and latency of many requests that arrive at random, against load.

python benchmarks/serve_many.py --data prompts.jsonl --requests 64 --rates 0.5 1 2 4 8 --out runs/serve-many
python benchmarks/serve_many.py --target org/Model --drafter org/Model-drafter --device cuda --rates 4 8 16 32 64 \
    --data prompts.jsonl --out runs/serve-many

Each rate (requests a second, on average) is served by transformers' own continuous batching, with all slots of the
drafter verified, and with as many as the scheduler finds to pay: in turns, the same requests at the same times.
Prompts are those of the file, answers 16 to --max_new_tokens tokens long. Latency is from arrival to the last token.
The folder gets result.json, table.md and load.png.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig

from dspark_hf import AutoDrafter, SpeculationConfig
from dspark_hf.evaluation import load_prompts, provenance
from dspark_hf.evaluation.tasks.prompts import prompt_rows
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

WAYS = {
    "stock": None,
    "fixed": SpeculationConfig(policy="fixed"),
    "scheduler": SpeculationConfig(policy="auto"),
}
FEWEST_NEW = 16


def make_requests(prompts, num_requests, rate, max_new_tokens, seed):
    """Arrival in seconds, prompt, and length of the answer."""
    rng, at, requests = random.Random(seed), 0.0, []
    for number in range(num_requests):
        at += rng.expovariate(rate)
        requests.append(
            (at, prompts[number % len(prompts)], rng.randint(min(FEWEST_NEW, max_new_tokens), max_new_tokens))
        )
    return requests


def serve(target, drafter, speculation, requests, batching):
    """Seconds of all, and latency and time to the first token of each request; and tau."""
    config = copy.deepcopy(target.generation_config)
    # Every answer is as long as asked for.
    config.update(do_sample=False, eos_token_id=-1)
    options = (
        {"speculation": False} if speculation is None else {"assistant_model": drafter, "speculation": speculation}
    )
    manager = target.init_continuous_batching(config, copy.copy(batching), **options)
    manager.start()
    waiting, firsts, lasts, arrived = list(enumerate(requests)), {}, {}, {}
    began = time.perf_counter()
    while len(lasts) < len(requests):
        now = time.perf_counter() - began
        while waiting and waiting[0][1][0] <= now:
            number, (at, prompt, max_new_tokens) = waiting.pop(0)
            arrived[f"r{number}"] = at
            manager.add_request(prompt, f"r{number}", max_new_tokens=max_new_tokens, streaming=True)
        out = manager.get_result(timeout=0.002)
        if out is None:
            if not manager.is_running():
                raise RuntimeError(f"The manager has stopped: {manager.background_thread_status.fatal_error}")
            continue
        if out.error:
            raise RuntimeError(f"{out.request_id} failed: {out.error}")
        now = time.perf_counter() - began
        firsts.setdefault(out.request_id, now - arrived[out.request_id])
        if out.is_finished():
            lasts[out.request_id] = now - arrived[out.request_id]
    seconds = time.perf_counter() - began
    tau = 1.0 if speculation is None else manager.stats.tau
    manager.stop(block=True, timeout=30)
    return {"seconds": seconds, "tau": tau, "first": list(firsts.values()), "last": list(lasts.values())}


def figures(runs, num_tokens):
    """What is told of the runs of a way at a rate."""
    latency, first = (np.concatenate([run[name] for run in runs]) for name in ("last", "first"))
    shares = {f"p{share}": float(np.percentile(latency, share)) for share in (50, 90, 99)}
    return {
        "tokens_per_second": float(np.median([num_tokens / run["seconds"] for run in runs])),
        "tau": float(np.mean([run["tau"] for run in runs])),
        "first_p50": float(np.percentile(first, 50)),
        **shares,
    }


def table(result):
    """Rates by ways, in Markdown."""
    lines = ["| requests/s | way | tokens/s | to stock | tau | first token p50 s | latency p50 s | p90 s | p99 s |"]
    lines += ["|---" * 9 + "|"]
    for rate, ways in result["rates"].items():
        for way, one in ways.items():
            ratio = one["tokens_per_second"] / ways["stock"]["tokens_per_second"]
            lines.append(
                f"| {rate} | {way} | {one['tokens_per_second']:.1f} | {ratio:.2f} | {one['tau']:.2f} | "
                f"{one['first_p50']:.2f} | {one['p50']:.2f} | {one['p90']:.2f} | {one['p99']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def plot(result, path):
    """Throughput and median latency against load."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [float(rate) for rate in result["rates"]]
    for way in WAYS:
        ways = [one[way] for one in result["rates"].values()]
        left.plot(rates, [one["tokens_per_second"] for one in ways], marker="o", label=way)
        right.plot(rates, [one["p50"] for one in ways], marker="o", label=f"{way} p50")
        right.plot(rates, [one["p99"] for one in ways], marker=".", linestyle=":", color=right.lines[-1].get_color())
    left.set_ylabel("tokens/s")
    right.set_ylabel("latency in s, p50 and (dotted) p99")
    for axes in (left, right):
        axes.set_xlabel("requests/s")
        axes.set_xscale("log", base=2)
        axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--num_blocks", type=int, default=256, help="of the cache, of 32 tokens each")
    parser.add_argument("--max_batch_tokens", type=int, default=256)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    path = resolve_target(args.target)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).to(args.device).eval()
    drafter = AutoDrafter.from_pretrained(resolve_drafter(args.drafter), dtype=target.dtype).to(args.device).eval()
    prompts = prompt_rows(load_prompts(args.data, args.requests), AutoTokenizer.from_pretrained(path))
    batching = ContinuousBatchingConfig(
        page_size=32, num_blocks=args.num_blocks, max_batch_tokens=args.max_batch_tokens, use_cuda_graph=False,
        use_async_batching=False,
    )  # fmt: skip
    result = {"options": vars(args), "rates": {}, "provenance": provenance(torch.device(args.device))}
    for rate in args.rates:
        requests = make_requests(prompts, args.requests, rate, args.max_new_tokens, seed=0)
        runs = {way: [] for way in WAYS}
        for _ in range(args.repeats):
            for way, speculation in WAYS.items():
                runs[way].append(serve(target, drafter, speculation, requests, batching))
        num_tokens = sum(length for *_, length in requests)
        result["rates"][f"{rate:g}"] = {way: figures(of_way, num_tokens) for way, of_way in runs.items()}
        print(table({"rates": {f"{rate:g}": result["rates"][f"{rate:g}"]}}), flush=True)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1))
    (out / "table.md").write_text(table(result))
    plot(result, out / "load.png")


if __name__ == "__main__":
    main()
