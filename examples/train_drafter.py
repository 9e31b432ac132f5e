"""Train a DSpark drafter from text that its target wrote.

    python examples/train_drafter.py --output_dir runs/first                  # the target writes some text first
    python examples/train_drafter.py --data text.jsonl more.jsonl --output_dir runs/second --max_steps 2000 \
        --num_hidden_layers 2 --markov_rank 32 --target_layer_ids 2 10 18 26 --bf16 --compile_loss
    python examples/train_drafter.py --data text.jsonl --cache cache --cache_dtype int4 --output_dir runs/third

Every option of `DraftTrainingArguments` works too (`--help`): logging, checkpoints, `--resume_from_checkpoint`, ...
`dspark train --config RECIPE.yaml` does the same from a recipe.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dspark_hf import DraftTrainingArguments
from dspark_hf.hub.embedded import resolve_target
from dspark_hf.trainers.recipe import Recipe
from dspark_hf.trainers.run import train_drafter


@dataclass
class Arguments:
    """What to train, and on what."""

    target: str = field(default="embedded", metadata={"help": "Target: a repository, a folder, or `embedded`."})
    data: list[str] | None = field(default=None, metadata={"help": "JSONL files; the target writes text if left out."})
    num_synthetic: int = field(default=200, metadata={"help": "Conversations to write when no data is given."})
    held_out: int = field(default=100, metadata={"help": "Conversations at the end kept for evaluation."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a conversation that are used."})
    cache: str | None = field(default=None, metadata={"help": "Folder of a target cache, built where need be."})
    hold_features: bool = field(default=True, metadata={"help": "Keep the target's features in memory if no cache."})
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


def main() -> None:
    parser = HfArgumentParser((Arguments, DraftTrainingArguments))
    arguments, training = parser.parse_args_into_dataclasses()
    fields = {name: value for name, value in vars(arguments).items() if value is not None}
    of_recipe = ("target", "data", "num_synthetic", "held_out", "max_length", "cache")
    of_recipe = {name: fields.pop(name) for name in of_recipe if name in fields}
    in_memory = fields.pop("hold_features") and arguments.cache is None and training.cache_budget is None
    features = "memory" if in_memory else "online"
    recipe = Recipe(**of_recipe, features=features, drafter=fields, training={"output_dir": training.output_dir})
    path = resolve_target(recipe.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    trainer, metrics = train_drafter(recipe, target, tokenizer, training)
    trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print(f"Saved to {training.output_dir}")


if __name__ == "__main__":
    main()
