"""Train a DSpark drafter from text that its target wrote.

    python examples/train_drafter.py --output_dir runs/first                  # the target writes some text first
    python examples/train_drafter.py --data text.jsonl more.jsonl --output_dir runs/second --max_steps 2000 \
        --num_hidden_layers 2 --markov_rank 32 --target_layer_ids 2 10 18 26 --bf16 --compile_loss

Every option of `TrainingArguments` works too (`--help`): logging, checkpoints, `--resume_from_checkpoint`, ...
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.data.chat import encode_conversation, load_conversations
from dspark_hf.data.features import TargetFeatures, hold_features
from dspark_hf.data.regenerate import synthesize
from dspark_hf.hub.embedded import resolve_target
from dspark_hf.modeling.vocabulary import frequent_tokens


@dataclass
class Arguments:
    """What to train, and on what."""

    target: str = field(default="embedded", metadata={"help": "Target: a repository, a folder, or `embedded`."})
    data: list[str] | None = field(default=None, metadata={"help": "JSONL files; the target writes text if left out."})
    num_synthetic: int = field(default=200, metadata={"help": "Conversations to write when no data is given."})
    held_out: int = field(default=100, metadata={"help": "Conversations at the end kept for evaluation."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a conversation that are used."})
    hold_features: bool = field(default=True, metadata={"help": "Keep the target's features in memory."})
    family: str = field(default="qwen3", metadata={"help": "Shape of the draft layers; engines read qwen3."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Draft layers."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the draft MLPs; the target's if left out."}
    )
    target_layer_ids: list[int] | None = field(
        default=None, metadata={"help": "Tapped layers; spread evenly if left out."}
    )
    block_size: int = field(default=7, metadata={"help": "Block size G."})
    markov_rank: int = field(default=32, metadata={"help": "Rank of the sequential head."})
    draft_vocab_size: int | None = field(
        default=None, metadata={"help": "Tokens the drafter can propose; all if left out."}
    )
    mask_token_id: int | None = field(default=None, metadata={"help": "Mask token; the last id if left out."})


def load_rows(files: list[str], tokenizer, max_length: int) -> list[dict]:
    """Encoded conversations whose answers have at least two tokens."""
    rows = []
    for file in files:
        for record in load_conversations(file):
            rows.append(
                encode_conversation(tokenizer, record["messages"], max_length=max_length, complete=record["complete"])
            )
    return [row for row in rows if sum(row["loss_mask"]) > 1]


def main() -> None:
    parser = HfArgumentParser((Arguments, DraftTrainingArguments))
    arguments, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)
    path = resolve_target(arguments.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    files = arguments.data
    if files is None:
        files = [str(Path(training.output_dir) / "text.jsonl")]
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        synthesize(target, tokenizer, arguments.num_synthetic, files[0], seed=training.seed, resume=True)
    rows = load_rows(files, tokenizer, arguments.max_length)

    optional = ("intermediate_size", "target_layer_ids", "draft_vocab_size", "mask_token_id")
    fields = {name: getattr(arguments, name) for name in optional if getattr(arguments, name) is not None}
    drafter = DSparkModel.from_target(
        target,
        family=arguments.family,
        num_hidden_layers=arguments.num_hidden_layers,
        block_size=arguments.block_size,
        markov_rank=arguments.markov_rank,
        **fields,
    ).float()
    if arguments.draft_vocab_size is not None:
        drafter.choose_vocabulary(frequent_tokens(rows, arguments.draft_vocab_size, drafter.config.vocab_size))
    size = sum(parameter.numel() for parameter in drafter.parameters())
    print(
        f"{len(rows)} conversations, drafter of {size / 1e6:.2f}M parameters ({2 * size / 2**20:.1f} MiB in bfloat16)"
    )
    if arguments.hold_features:
        source = TargetFeatures(target, drafter.config.target_layer_ids)
        rows = hold_features(source, rows, log_norm=drafter.has_reduced_vocabulary)
    held_out = min(arguments.held_out, len(rows) // 5)
    trainer = DraftTrainer(
        drafter,
        target,
        training,
        train_dataset=rows[: len(rows) - held_out],
        eval_dataset=rows[len(rows) - held_out :],
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.log_metrics("eval", trainer.evaluate())
    drafter.to(torch.bfloat16).save_pretrained(training.output_dir)
    print(f"Saved to {training.output_dir}")


if __name__ == "__main__":
    main()
