"""Throughput and latency of many requests at once, against load.

python benchmarks/serve_many.py --data prompts.jsonl --concurrency 1 4 16 64 --out runs/serve-many
python benchmarks/serve_many.py --target org/Model --drafter org/Model-drafter --device cuda --rates 4 8 16 32 64 \
    --data prompts.jsonl --out runs/serve-many

A load is a number of requests that are kept under way (--concurrency: one comes when another ends), or a rate at which
they arrive at random (--rates, requests a second on average). Each load is served by transformers' own continuous
batching, with a drafter that never drafts, with all slots of it verified, and with as many as the scheduler finds to
pay: in turns that change their order, the same requests each time. Prompts are those of the file, answers 16 to
--max_new_tokens tokens long. Latency is from arrival to the last token. The scheduler goes by what `dspark profile`
has measured on this machine; run that first. The folder gets result.json, table.md and load.png.
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

from dspark_hf import AutoDrafter, PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.evaluation import load_prompts, provenance
from dspark_hf.evaluation.tasks.prompts import prompt_rows
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

# Drafts that cost more than they can win.
NEVER = StepCost([1, 512], [1], [[1.0, 2.0]], [1, 512], [1e6, 1e6])
WAYS = {
    "stock": None,
    "drafting off": SpeculationConfig(policy=PrefixScheduler("auto", step_cost=NEVER)),
    "fixed": SpeculationConfig(policy="fixed"),
    "scheduler": SpeculationConfig(policy="auto"),
}
FEWEST_NEW = 16


def make_requests(prompts, num_requests, rate, max_new_tokens, seed):
    """Arrival in seconds, prompt, and length of the answer; all at once without a rate."""
    rng, at, requests = random.Random(seed), 0.0, []
    for number in range(num_requests):
        at += rng.expovariate(rate) if rate else 0.0
        requests.append(
            (at, prompts[number % len(prompts)], rng.randint(min(FEWEST_NEW, max_new_tokens), max_new_tokens))
        )
    return requests


def start(target, drafter, speculation, batching):
    """A manager that is ready."""
    config = copy.deepcopy(target.generation_config)
    # Every answer is as long as asked for.
    config.update(do_sample=False, eos_token_id=-1)
    options = (
        {"speculation": False} if speculation is None else {"assistant_model": drafter, "speculation": speculation}
    )
    manager = target.init_continuous_batching(config, copy.copy(batching), **options)
    manager.start()
    while manager.batch_processor is None and manager.is_running():
        time.sleep(0.01)
    return manager


def serve(manager, requests, most_under_way):
    """Seconds of all, and latency and time to the first token of each request; and tau."""
    waiting, firsts, lasts, arrived = list(enumerate(requests)), {}, {}, {}
    began = time.perf_counter()
    while len(lasts) < len(requests):
        now = time.perf_counter() - began
        while waiting and waiting[0][1][0] <= now and len(arrived) - len(lasts) < most_under_way:
            number, (at, prompt, max_new_tokens) = waiting.pop(0)
            arrived[f"r{number}"] = at or now
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
    tau = manager.stats.tau if hasattr(manager, "stats") else 1.0
    manager.stop(block=True, timeout=30)
    return {"seconds": seconds, "tau": tau, "first": list(firsts.values()), "last": list(lasts.values())}


def figures(runs, stock, num_tokens):
    """What is told of the runs of a way under a load; speed to stock is that of runs that followed each other."""
    latency, first = (np.concatenate([run[name] for run in runs]) for name in ("last", "first"))
    shares = {f"p{share}": float(np.percentile(latency, share)) for share in (50, 90, 99)}
    return {
        "tokens_per_second": float(np.median([num_tokens / run["seconds"] for run in runs])),
        "to_stock": [other["seconds"] / run["seconds"] for other, run in zip(stock, runs, strict=True)],
        "tau": float(np.mean([run["tau"] for run in runs])),
        "first_p50": float(np.percentile(first, 50)),
        **shares,
    }


def table(result):
    """Loads by ways, in Markdown."""
    lines = [
        f"| {result['load']} | way | tokens/s | to stock | tau | first token p50 s | latency p50 s | p90 s | p99 s |"
    ]
    lines += ["|---" * 9 + "|"]
    for load, ways in result["loads"].items():
        for way, one in ways.items():
            ratios = sorted(one["to_stock"])
            spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 and way != "stock" else ""
            lines.append(
                f"| {load} | {way} | {one['tokens_per_second']:.1f} | {float(np.median(ratios)):.2f}{spread} | "
                f"{one['tau']:.2f} | {one['first_p50']:.2f} | {one['p50']:.2f} | {one['p90']:.2f} | {one['p99']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def plot(result, path):
    """Throughput and median latency against load."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    loads = [float(load) for load in result["loads"]]
    for way in WAYS:
        ways = [one[way] for one in result["loads"].values()]
        left.plot(loads, [one["tokens_per_second"] for one in ways], marker="o", label=way)
        right.plot(loads, [one["p50"] for one in ways], marker="o", label=f"{way} p50")
        right.plot(loads, [one["p99"] for one in ways], marker=".", linestyle=":", color=right.lines[-1].get_color())
    left.set_ylabel("tokens/s")
    right.set_ylabel("latency in s, p50 and (dotted) p99")
    for axes in (left, right):
        axes.set_xlabel(result["load"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [f"{load:g}" for load in loads])
        axes.legend()
    figure.savefig(path, dpi=120)


def measure(target, drafter, prompts, batching, load, args):
    """The figures of all ways under a load."""
    rate, num_requests = (load if args.rates else None), args.requests
    if rate is None:
        # Few at once say as much with fewer requests.
        num_requests = min(num_requests, args.requests_each * int(load))
    requests = make_requests(prompts, num_requests, rate, args.max_new_tokens, seed=0)
    runs = {way: [] for way in WAYS}
    for repeat in range(args.repeats):
        for way in list(WAYS)[:: -1 if repeat % 2 else 1]:
            manager = start(target, drafter, WAYS[way], batching)
            runs[way].append(serve(manager, requests, num_requests if rate else load))
    num_tokens = sum(length for *_, length in requests)
    return {way: figures(of_way, runs["stock"], num_tokens) for way, of_way in runs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=64)
    loads = parser.add_mutually_exclusive_group()
    loads.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    loads.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--requests_each", type=int, default=16, help="most requests, by those under way at once")
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
    # What is slow the first time.
    for speculation in WAYS.values():
        serve(start(target, drafter, speculation, batching), make_requests(prompts, 2, None, FEWEST_NEW, 0), 2)
    result = {"options": vars(args), "load": "requests/s" if args.rates else "requests at once", "loads": {},
              "provenance": provenance(torch.device(args.device))}  # fmt: skip
    for load in args.rates or args.concurrency:
        result["loads"][f"{load:g}"] = measure(target, drafter, prompts, batching, load, args)
        print(table({**result, "loads": {f"{load:g}": result["loads"][f"{load:g}"]}}), flush=True)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1))
    (out / "table.md").write_text(table(result))
    plot(result, out / "load.png")


if __name__ == "__main__":
    main()
