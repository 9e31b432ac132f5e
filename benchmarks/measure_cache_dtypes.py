"""What a drafter loses that learns from a compressed cache: runs from one cache's rows, each dtype's in turn.

    dspark cache --data text.jsonl --out states --tap 2 --tap 10 --tap 18 --tap 26 --max-length 320
    dspark cache --data others.jsonl --out held-out --tap 2 --tap 10 --tap 18 --tap 26 --max-length 320
    python benchmarks/measure_cache_dtypes.py --cache states --held_out held-out --dtypes fp8 int8 int4 --seeds 0 1

Runs of a seed begin with the same drafter and see the same texts and anchors in the same order. All are evaluated,
teacher-forced, on the held-out states as they are. A finished run is a line of `--out`. Those with the same settings
are not run again but join the table: the command goes on where it was killed, or with other dtypes and seeds.
"""

import argparse
import json
import statistics
import tempfile
from bisect import bisect_left
from itertools import accumulate
from pathlib import Path

import torch
from torch.nn.utils import parameters_to_vector
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, set_seed

from dspark_hf import AutoDrafter, DraftTrainer, DraftTrainingArguments, DSparkModel, TargetCache
from dspark_hf.data.cache.codecs import RAW_DTYPES
from dspark_hf.data.cache.rows import STATES, RowCodec, all_channel_statistics, needs_channels
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

FRESH = {"num_hidden_layers": 2, "intermediate_size": 1280, "block_size": 5, "markov_rank": 32}
SAMPLE_TOKENS = 8192
START, BASE = "start", "bf16"  # the drafter before training, and what all others are compared with
TAUS = ("expected_tau", "greedy_tau")


class StoredAs(Dataset):
    """The rows of a cache as one of another dtype would give them."""

    def __init__(self, cache, dtype):
        self.cache, manifest, channels = cache, cache.manifest, None
        if needs_channels(dtype):
            sample = cache[: bisect_left(list(accumulate(cache.lengths)), SAMPLE_TOKENS) + 1]
            channels = all_channel_statistics(torch.cat(sample[name]).float() for name in STATES)
        self.codec = RowCodec(dtype, len(manifest.target_layer_ids), manifest.hidden_size, False, channels)

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        row = self.cache[index]
        row.pop("log_norm", None)  # it is of the states as they were; training computes that of these
        return row | {name: codec.decode(codec.encode(row[name])) for name, codec in self.codec.codecs.items()}


def open_cache(folder):
    cache = TargetCache(folder)
    if cache.manifest.dtype not in RAW_DTYPES:
        raise ValueError(
            f"{folder} holds states as {cache.manifest.dtype}, which has cost them precision already. Build it with "
            "--dtype bf16."
        )
    return cache


def make_drafter(name, target, cache):
    if name == "none":
        return DSparkModel.from_target(target, target_layer_ids=cache.manifest.target_layer_ids, **FRESH).float()
    return AutoDrafter.from_pretrained(resolve_drafter(name)).float().bind(target)


def train(args, target, cache, rows, held_out, seed):
    """What a drafter has come to, trained from `rows`, if any."""
    set_seed(seed)
    drafter = make_drafter(args.drafter, target, cache)
    cache.check_fits(drafter.config, target)
    with tempfile.TemporaryDirectory() as folder:
        training = DraftTrainingArguments(
            folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            num_anchors=args.num_anchors,
            learning_rate=args.learning_rate,
            muon_learning_rate=args.muon_learning_rate,
            compile_loss=args.compile,
            bf16=True,
            seed=seed,
            save_strategy="no",
            report_to="none",
            num_eval_prompts=0,
            disable_tqdm=True,
        )
        trainer = DraftTrainer(drafter, target, training, train_dataset=rows, eval_dataset=held_out)
        weights = [weight for weight in drafter.parameters() if weight.requires_grad]
        before = parameters_to_vector(weights).detach()
        if rows is not None:
            trainer.train()
        moved = (parameters_to_vector(weights).detach() - before).norm() / before.norm()
        figures = trainer.evaluate()
    return {"moved": moved.item()} | {name: figures[f"eval_{name}"] for name in ("loss", "cross_entropy", "l1", *TAUS)}


def read_runs(path, settings):
    """Finished runs of these settings, by dtype and seed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    runs = {}
    for run in map(json.loads, lines):
        if run["settings"] == settings:
            runs.setdefault(run["dtype"], {})[run["seed"]] = run
    return runs


def table(runs):
    """Means over seeds, and what each dtype loses against the runs of the same seeds from bfloat16."""
    yield "| states | bytes per token | seeds | weights moved | expected tau | loss | greedy tau | loss |"
    yield "|---|---|---|---|---|---|---|---|"
    for dtype, by_seed in runs.items():
        size = f"{next(iter(by_seed.values()))['bytes_per_token']:.0f}" if dtype != START else ""
        moved = statistics.mean(run["moved"] for run in by_seed.values())
        cells = [dtype, size, ", ".join(map(str, sorted(by_seed))), f"{moved:.1%}"]
        for tau in TAUS:
            cells.append(f"{statistics.mean(run[tau] for run in by_seed.values()):.4f}")
            pairs = [(run[tau], runs[BASE][seed][tau]) for seed, run in by_seed.items() if dtype not in (START, BASE)]
            losses = [1 - value / base for value, base in pairs]
            spread = f" ({min(losses):.2%} to {max(losses):.2%})" if len(losses) > 1 else ""
            cells.append(f"{statistics.mean(losses):.2%}{spread}" if losses else "")
        yield f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True, help="states to train from, stored as bf16")
    parser.add_argument("--held_out", required=True, help="another cache, to evaluate on")
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded", help="drafter to begin with; `none` for a fresh one")
    parser.add_argument("--dtypes", nargs="+", default=["fp8", "int8", "int4"], help=f"besides {BASE}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_anchors", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--muon_learning_rate", type=float, default=3e-3)
    parser.add_argument("--compile", action="store_true", help="compile the loss")
    parser.add_argument("--out", type=Path, default=Path("cache-dtypes.jsonl"), help="a line per finished run")
    args = parser.parse_args()
    settings = {name: value for name, value in vars(args).items() if name not in ("dtypes", "seeds", "out")}
    cache, held_out = open_cache(args.cache), open_cache(args.held_out)
    stored = {START: None} | {dtype: StoredAs(cache, dtype) for dtype in (BASE, *args.dtypes)}
    target = AutoModelForCausalLM.from_pretrained(resolve_target(args.target), dtype="auto").eval()
    for seed in args.seeds:
        for dtype, rows in stored.items():
            if seed in read_runs(args.out, settings).get(dtype, {}):
                continue
            figures = train(args, target, cache, rows, held_out, seed)
            run = {"dtype": dtype, "seed": seed, **figures, "settings": settings}
            run["bytes_per_token"] = None if rows is None else rows.codec.bytes_per_token
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
    print("\n".join(table(read_runs(args.out, settings))))


if __name__ == "__main__":
    main()
