"""Train a released drafter on for a domain, whole or as an adapter, and measure it before and after.

    python examples/finetune_drafter.py --prompts prompts.jsonl --output_dir runs/tuned --max_steps 500
    python examples/finetune_drafter.py --prompts prompts.jsonl --output_dir runs/lora --lora_rank 16 \
        --learning_rate 1e-3 --max_steps 500
    python examples/finetune_drafter.py --target org/Model --drafter org/Model-drafter --prompts prompts.jsonl \
        --output_dir runs/tuned --bf16 --push_to me/Model-drafter-domain --license apache-2.0
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/finetune_drafter.py --prompts prompts.jsonl \
        --output_dir runs/tuned

The target answers the prompts, its states go into a cache, the drafter is trained on them, and both drafters answer
prompts that were held back. With `--push_to` the new one goes to the Hub with those figures on its card. Every option
of `DraftTrainingArguments` works too. A run that was stopped goes on: `--resume_from_checkpoint true`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dspark_hf import AutoDrafter, DraftTrainingArguments
from dspark_hf.data.conversation_files import iterate_rows, load_conversations
from dspark_hf.data.regeneration import regenerate
from dspark_hf.evaluation import (
    EvaluationSettings,
    drafter_way,
    evaluate,
    load_tasks,
    place_among_processes,
    plain_way,
)
from dspark_hf.files import write_text
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.processes import end_in_order
from dspark_hf.publishing import CardFacts, push_folder
from dspark_hf.publishing.evaluations import read_evaluation
from dspark_hf.trainers.recipes.recipe import Recipe
from dspark_hf.trainers.recipes.run import train_drafter


@dataclass
class Arguments:
    """What to train on, and what becomes of it."""

    prompts: str = field(metadata={"help": "File with the domain's prompts: `prompt`, `turns` or `messages`."})
    target: str = field(default="embedded", metadata={"help": "Target: a repository, a folder, or `embedded`."})
    drafter: str = field(default="embedded", metadata={"help": "Drafter to train on: a repository or a folder."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of an adapter; 0 trains the whole drafter."})
    held_back: int = field(default=20, metadata={"help": "Prompts at the end for measuring; at most a fifth."})
    max_answer: int = field(default=256, metadata={"help": "Longest answer that the target writes, in tokens."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a conversation that are used."})
    push_to: str | None = field(default=None, metadata={"help": "OWNER/NAME of a repository for the result."})
    base_model: str | None = field(default=None, metadata={"help": "The target's repository, for the card."})
    license: str | None = field(default=None, metadata={"help": "The licence's identifier, for the card."})


def main() -> None:
    parser = HfArgumentParser((Arguments, DraftTrainingArguments))
    # A trained drafter wants smaller steps than a fresh one.
    parser.set_defaults(learning_rate=2e-4, cache_dtype="int4")
    arguments, training = parser.parse_args_into_dataclasses()
    # What is wrong with these is said before hours of work.
    facts = CardFacts(arguments.push_to, arguments.base_model, arguments.license)
    answers = Path(training.output_dir, "answers.jsonl")
    recipe = Recipe(
        target=arguments.target,
        data=[str(answers)],
        held_out=arguments.held_back,
        max_length=arguments.max_length,
        cache=str(Path(training.output_dir, "states")),
        start_from=arguments.drafter,
        lora={"r": arguments.lora_rank, "lora_alpha": 2 * arguments.lora_rank} if arguments.lora_rank else None,
        training={"output_dir": training.output_dir, "num_eval_prompts": training.num_eval_prompts},
    )
    path = resolve_target(arguments.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(training.device)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(arguments.drafter)).to(training.device).bind(target)
    held_back = write_answers(arguments, training, target, tokenizer, answers)
    trainer, _ = train_drafter(recipe, target, tokenizer, training, drafter=drafter)
    measured = measure(arguments, training, target.to(training.device), tokenizer, held_back)
    if arguments.push_to is not None and trainer.is_world_process_zero():
        commit = push_folder(
            training.output_dir,
            arguments.push_to,
            facts=facts,
            evaluations={"domain": read_evaluation(measured, "after")},
        )
        print(commit.commit_url)


def write_answers(arguments: Arguments, training: Any, target: Any, tokenizer: Any, answers: Path) -> Path:
    """Write the target's answers to the prompts but for those that are held back; returns the file of these."""
    asked, held_back = answers.with_name("asked.jsonl"), answers.with_name("held_back.jsonl")
    with training.main_process_first(desc="writing answers"):
        if training.process_index == 0:
            rows = [row for _, row in iterate_rows(arguments.prompts)]
            if len(rows) < 2:
                raise ValueError(f"{arguments.prompts} holds one prompt. Give two or more: the last is held back.")
            num_asked = len(rows) - max(1, min(arguments.held_back, len(rows) // 5))
            for file, part in ((asked, rows[:num_asked]), (held_back, rows[num_asked:])):
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
                if file.exists() and file.read_text(encoding="utf-8") != text:
                    raise ValueError(f"{file} is of a run with other prompts. Choose another output_dir.")
                write_text(file, text)
            regenerate(target, tokenizer, str(asked), answers, max_new_tokens=arguments.max_answer, resume=True)
            print(f"{len(load_conversations(answers))} answers: {answers}")
    return held_back


def measure(arguments: Arguments, training: Any, target: Any, tokenizer: Any, held_back: Path) -> Path:
    """Both drafters on the same prompts, plain `generate()` beside them; returns the folder of the run."""
    ways = [plain_way()]
    for name, place in (("before", resolve_drafter(arguments.drafter)), ("after", training.output_dir)):
        drafter = AutoDrafter.from_pretrained(place, dtype=target.dtype).to(training.device)
        ways.append(drafter_way(name, drafter.bind(target), "alone"))
    rank, num_processes = place_among_processes()
    out = Path(training.output_dir, "evaluation")
    settings = EvaluationSettings(max_new_tokens=arguments.max_answer)
    evaluate(
        target, tokenizer, load_tasks([str(held_back)]), ways, settings, out, resume=True, rank=rank,
        num_processes=num_processes,
    )  # fmt: skip
    # The last process to end writes the summary.
    PartialState().wait_for_everyone()
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for row in summary["rows"] if rank == 0 else ():
        if row["way"] != "plain":
            print(f"{row['way']}: tau {row['tau']:.2f}, {row['ratio']['median']:.2f} times as fast as plain")
    return out


if __name__ == "__main__":
    with end_in_order():
        main()
