"""What a first hour with a GPU is to tell, or its first six minutes: one program, one JSON, no network.

    python benchmarks/gpu_check.py --out gpu.json [--minutes 6]
    python benchmarks/gpu_check.py --out dry.json --dry        small, on a CPU: whether the program runs

In order, each part written down when it is done, an error in one of them as well:

* `tests`: what is marked `gpu`, static rounds captured in graphs among it;
* `embedded`: the embedded pair in bfloat16, greedy, at batch 1, 8 and 32: plain `generate()` with a dynamic cache and
  with a static one, which transformers compiles; transformers' own assisted loop with a static cache and the same
  drafter (batch 1); this library's ragged rounds, its static rounds, and those compiled;
* `synthetic`: the same ways on random weights in the shape of Qwen3-4B with a drafter whose drafts are made to stand
  at chosen rates, each given those before;
* `long`: plain, ragged and static ones behind long prompts, at the last of the rates: static rounds read all columns;
* `profile`: kernels of static rounds, by time.

Each way runs twice for code and graphs to be made, and its best of three runs after that counts. `same` says whether
ids are those of plain `generate()`; in bfloat16 a difference may be a tie.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from dspark_hf import AutoDrafter, DraftCandidateGenerator, DSparkModel, SpeculationConfig
from dspark_hf.generation.static.runner import release
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

ROOT = Path(__file__).resolve().parents[1]
QWEN3_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128}  # fmt: skip
FIXED = {"policy": "fixed", "prompt_lookup": False}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="The JSON file.")
    add("--dry", action="store_true", help="Tiny models, few tokens, no tests: on a CPU.")
    add("--minutes", type=float, default=6.0, help="No part begins after so many.")
    add("--parts", nargs="*", default=["tests", "embedded", "synthetic", "profile", "long"], help="Which parts.")
    add("--batch_sizes", type=int, nargs="*", default=[1, 8, 32], help="Rows.")
    add(
        "--rates", type=float, nargs="*", default=[0.6, 0.8, 0.9], help="Of synthetic drafts, each given those before."
    )
    add("--long_prompt", type=int, default=3000, help="Tokens of long prompts.")
    add("--max_new_tokens", type=int, default=128, help="Tokens of each row.")
    args = parser.parse_args(words)
    if args.dry:
        args.batch_sizes, args.rates, args.max_new_tokens, args.long_prompt = [1, 2], [0.8], 12, 200
    return args


class SyntheticDrafter(DSparkModel):
    """Puts each draft right with a probability, behind its own passes and on the device: rounds may be static."""

    def follow(self, texts: torch.Tensor, rate: float) -> None:
        """Know how rows go on, `(rows, tokens)` without padding."""
        self.register_buffer(
            "texts", torch.nn.functional.pad(texts, (0, self.config.block_size + 1)), persistent=False
        )
        self.register_buffer("rate", torch.tensor(rate, device=texts.device), persistent=False)

    def propose(self, state, anchor_ids, pick=None, num_slots=None, num_candidates=None):
        proposal = super().propose(state, anchor_ids, pick, num_slots, num_candidates)
        slots = torch.arange(proposal.ids.shape[1], device=anchor_ids.device)
        starts = state.positions(1, anchor_ids.device)[:, :1].expand(len(anchor_ids), 1)
        starts = starts.clamp(0, self.texts.shape[1] - len(slots) - 1)
        # Rows are known by where they stand, since rounds may move them.
        rows = (self.texts[:, starts[:, 0]] == anchor_ids).int().argmax(0)
        right = self.texts[rows.unsqueeze(1), starts + 1 + slots]
        is_right = torch.rand(right.shape, device=right.device) < self.rate
        proposal.ids = torch.where(is_right, right, (right + 1) % self.config.vocab_size)
        return proposal


def timed(call: Callable[[], torch.Tensor], runs: int = 3, warm: int = 2) -> tuple[torch.Tensor, float]:
    """Ids of a call, and seconds of its best run."""
    seconds = []
    for index in range(warm + runs):
        synchronize()
        started = time.perf_counter()
        ids = call()
        synchronize()
        if index >= warm:
            seconds.append(time.perf_counter() - started)
    return ids, min(seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ways(target: Any, drafter: Any, options: dict[str, Any], batch_size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Every way of generating, by name."""

    def ours(compile: bool = False, **more: Any) -> torch.Tensor:
        speculation = SpeculationConfig(**FIXED, compile=compile)
        return target.generate(**options, **more, assistant_model=drafter, speculation=speculation)

    def assisted() -> torch.Tensor:
        def own(generation_config: Any, logits_processor: Any, **kwargs: Any) -> DraftCandidateGenerator:
            return DraftCandidateGenerator(drafter, generation_config, logits_processor)

        target._get_candidate_generator = own
        try:
            # Any number selects that loop. Its cache has no room for drafts behind the last token.
            room = {"max_cache_len": options["input_ids"].shape[1] + options["max_new_tokens"] + 64}
            return target.generate(
                **options, **room, prompt_lookup_num_tokens=1, cache_implementation="static", speculation=False
            )
        finally:
            del target._get_candidate_generator

    made = {
        "plain, dynamic": lambda: target.generate(**options, speculation=False),
        "plain, static": lambda: target.generate(**options, speculation=False, cache_implementation="static"),
        "ours, ragged": ours,
        "ours, static": lambda: ours(cache_implementation="static"),
        "ours, static, compiled": lambda: ours(compile=True, cache_implementation="static"),
    }
    return made | ({"transformers assisted, static": assisted} if batch_size == 1 else {})


def measured(target: Any, drafter: Any, options: dict[str, Any], skip: tuple[str, ...], runs: dict) -> list[dict]:
    """A record of each way."""
    batch_size, records, plain = options["input_ids"].shape[0], [], None
    for name, call in ways(target, drafter, options, batch_size).items():
        if name in skip:
            continue
        record: dict[str, Any] = {"way": name, "batch_size": batch_size}
        try:
            drafter.last_stats = None
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            ids, seconds = timed(call, **runs)
            plain = ids if plain is None else plain
            num_new = ids.shape[0] * (ids.shape[1] - options["input_ids"].shape[1])
            record |= {"seconds": seconds, "tokens_per_second": num_new / seconds}
            if torch.cuda.is_available():
                record["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            record["same"] = ids.shape == plain.shape and bool((ids == plain).all())
            if (stats := drafter.last_stats) is not None:
                names = ("round_kind", "rounds", "tau", "host_reads", "graphs", "buckets")
                record |= {one: getattr(stats, one) for one in names}
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        records.append(record)
        print(json.dumps(record), flush=True)
    return records


def gpu_tests(args: argparse.Namespace, device: str) -> Any:
    """The last line of pytest."""
    if args.dry:
        return "not in a dry run"
    # Collecting all tests takes longer than running these.
    folders = [f"tests/{name}" for name in ("generation", "ops")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *folders]
    # Kernels are the compiled ones.
    env = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, env=env)
    return {"returncode": run.returncode, "tail": run.stdout[-2000:]}


def embedded_pair(args: argparse.Namespace, device: str) -> tuple[Any, Any]:
    dtype = torch.float32 if args.dry else torch.bfloat16
    target = AutoModelForCausalLM.from_pretrained(resolve_target("embedded"), dtype=dtype).to(device).eval()
    drafter = AutoDrafter.from_pretrained(resolve_drafter("embedded"), dtype=dtype).to(device).bind(target).eval()
    return target, drafter


def embedded_options(target: Any, batch_size: int, max_new_tokens: int) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(resolve_target("embedded"), padding_side="left")
    texts = [f"{number}. Explain in simple words why the sky is blue." for number in range(batch_size)]
    messages = [[{"role": "user", "content": text}] for text in texts]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    return {
        "input_ids": inputs["input_ids"].to(target.device),
        "attention_mask": inputs["attention_mask"].to(target.device),
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
    }


def runs_of(args: argparse.Namespace) -> dict[str, int]:
    return {"runs": 1, "warm": 0} if args.dry else {"runs": 3, "warm": 2}


def embedded(args: argparse.Namespace, device: str) -> Any:
    target, drafter = embedded_pair(args, device)
    records, skip = [], ("ours, static, compiled",) if args.dry else ()
    for batch_size in args.batch_sizes:
        options = embedded_options(target, batch_size, args.max_new_tokens)
        records += measured(target, drafter, options, skip, runs_of(args))
    return records


def synthetic(args: argparse.Namespace, device: str) -> Any:
    skip = ("transformers assisted, static", *(["ours, static, compiled"] if args.dry else []))
    return synthetic_pair(args, device, 64, args.rates, skip)


def long(args: argparse.Namespace, device: str) -> Any:
    skip = ("transformers assisted, static", "plain, static", "ours, static, compiled")
    return synthetic_pair(args, device, args.long_prompt, args.rates[-1:], skip)


def synthetic_pair(
    args: argparse.Namespace, device: str, prompt_len: int, rates: list[float], skip: tuple[str, ...]
) -> list[dict]:
    torch.manual_seed(0)
    sizes, dtype = (SMALL, torch.float32) if args.dry else (QWEN3_4B, torch.bfloat16)
    config = Qwen3Config(**sizes, max_position_embeddings=4096, eos_token_id=None, pad_token_id=0, dtype=dtype)
    with torch.device(device):
        target = Qwen3ForCausalLM(config).to(dtype).eval()
    taps = [1, 2] if args.dry else [1, 9, 17, 25, 33]
    fields = {"target_layer_ids": taps, "mask_token_id": sizes["vocab_size"] - 1, "block_size": 7}
    drafter = SyntheticDrafter.from_target(target, **fields).eval()
    records = []
    for batch_size in args.batch_sizes:
        ids = torch.randint(1, sizes["vocab_size"] - 1, (batch_size, prompt_len), device=device)
        options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
        options["max_new_tokens"] = args.max_new_tokens
        texts = target.generate(**options, speculation=False)
        for rate in rates:
            drafter.follow(texts, rate)
            # Graphs hold the address of the rate and the texts.
            release(target)
            found = measured(target, drafter, options, skip, runs_of(args))
            records += [record | {"rate": rate} for record in found]
            skip = (*skip, "plain, static")
    return records


def profile(args: argparse.Namespace, device: str) -> Any:
    target, drafter = embedded_pair(args, device)
    options = embedded_options(target, 1, args.max_new_tokens)
    call = ways(target, drafter, options, 1)["ours, static"]
    for _ in range(1 if args.dry else 3):
        call()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as found:
        call()
    by = "device_time_total" if device == "cuda" else "cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, by))[:30]
    kernels = [{"name": event.key[:120], "calls": event.count, "microseconds": getattr(event, by)} for event in events]
    return {"rounds": drafter.last_stats.rounds, "kernels": kernels}


def about(device: str) -> dict[str, Any]:
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": run.stdout.strip(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
    }


def main(words: list[str] | None = None) -> None:
    args = arguments(words)
    if not args.dry and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here. Pass --dry to try the program on a CPU.")
    device, started = "cpu" if args.dry else "cuda", time.perf_counter()
    found: dict[str, Any] = {"about": about(device), "dry": args.dry}
    parts = {"tests": gpu_tests, "embedded": embedded, "synthetic": synthetic, "profile": profile, "long": long}
    for name in args.parts:
        if time.perf_counter() - started > 60 * args.minutes:
            found[name] = "no time was left"
        else:
            try:
                with torch.no_grad():
                    found[name] = parts[name](args, device)
            except Exception:
                found[name] = {"error": traceback.format_exc()[-2000:]}
            if device == "cuda":
                torch.cuda.empty_cache()
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
