"""Compare drafters with plain `generate()` on prompts of yours: tokens per round, and how many times as fast.

    python examples/evaluate.py --tasks prompts.jsonl --drafters embedded --limit 20 --out runs/compared
    python examples/evaluate.py --tasks gsm8k mt-bench --target org/Model --drafters runs/first runs/second \
        --out runs/two
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/evaluate.py --tasks all --out runs/all

A task is a name that `dspark evaluate` knows, or a file of JSON lines with `turns`. The folder is what `dspark report`
makes a page of, and `dspark push --evaluation` puts on a card.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter
from dspark_hf.evaluation import (
    EvaluationSettings,
    drafter_way,
    evaluate,
    load_tasks,
    place_among_processes,
    plain_way,
)
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.processes import end_in_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True, help="Names of tasks, or files of prompts.")
    parser.add_argument("--target", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--drafters", nargs="+", default=["embedded"], help="Repositories, folders, or `embedded`.")
    parser.add_argument("--speculation", default="alone", help="alone, default, or fields of SpeculationConfig.")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 decodes greedily.")
    parser.add_argument("--batch_size", type=int, default=1, help="Prompts a call.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="Longest answer, in tokens.")
    parser.add_argument("--limit", type=int, help="Most prompts of a task.")
    parser.add_argument("--out", help="Folder of the records and the summary; nothing is kept without it.")
    parser.add_argument("--resume", action="store_true", help="Go on with what is in the folder.")
    options = parser.parse_args()

    # Without a GPU accelerate sees several processes only where it is told so.
    processes = PartialState(cpu=not torch.accelerator.is_available())
    device = processes.device
    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype).to(device)
    ways = [plain_way()]
    names = [Path(place).name for place in options.drafters]
    names = names if len(set(names)) == len(names) else options.drafters
    for name, place in zip(names, options.drafters, strict=True):
        drafter = AutoDrafter.from_pretrained(resolve_drafter(place), dtype=options.dtype).to(device).bind(target)
        ways.append(drafter_way(name, drafter, options.speculation))
    settings = EvaluationSettings(
        max_new_tokens=options.max_new_tokens,
        temperatures=(options.temperature,),
        batch_sizes=(options.batch_size,),
    )
    tasks = load_tasks(options.tasks, limit=options.limit)
    rank, num_processes = place_among_processes()
    if num_processes > 1 and options.out is None:
        raise ValueError("What several processes measure meets in a folder: give --out.")
    summary = evaluate(
        target, tokenizer, tasks, ways, settings, options.out, resume=options.resume, rank=rank,
        num_processes=num_processes,
    )  # fmt: skip
    if num_processes > 1:
        processes.wait_for_everyone()
        summary = json.loads(Path(options.out, "summary.json").read_text(encoding="utf-8"))
    for row in summary["rows"] if rank == 0 else ():
        ratio = "" if row.get("ratio") is None else f", {row['ratio']['median']:.2f} times as fast as plain"
        if row["way"] != "plain":
            print(f"{row['task']}: {row['way']}: tau {row['tau']:.2f}{ratio}")


if __name__ == "__main__":
    with end_in_order():
        main()
