"""Train a DSpark drafter from text that its target wrote, or go on training one.

    python examples/train_drafter.py --output_dir runs/first                  # the target writes some text first
    python examples/train_drafter.py --data text.jsonl more.jsonl --output_dir runs/second --max_steps 2000 \
        --num_hidden_layers 2 --markov_rank 32 --target_layer_ids 2 10 18 26 --bf16 --compile_loss
    python examples/train_drafter.py --data text.jsonl --cache cache --cache_dtype int4 --output_dir runs/third
    python examples/train_drafter.py --data text.jsonl --drafter runs/second --output_dir runs/fourth
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/train_drafter.py --data text.jsonl \
        --output_dir runs/fifth

Every option of `DraftTrainingArguments` works too (`--help`): logging, checkpoints, `--resume_from_checkpoint`, ...
`dspark train --config RECIPE.yaml` does the same from a recipe.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dspark_hf import AutoDrafter, DraftTrainingArguments
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.processes import end_in_order
from dspark_hf.trainers.recipes.recipe import Recipe
from dspark_hf.trainers.recipes.run import train_drafter

FRESH = {"family": "qwen3", "num_hidden_layers": 2, "block_size": 7, "markov_rank": 32}


@dataclass
class Arguments:
    """What to train on."""

    target: str = field(default="embedded", metadata={"help": "Target: a repository, a folder, or `embedded`."})
    data: list[str] | None = field(default=None, metadata={"help": "JSONL files; the target writes text if left out."})
    num_synthetic: int = field(default=200, metadata={"help": "Conversations to write when no data is given."})
    held_out: int = field(default=100, metadata={"help": "Conversations at the end kept for evaluation."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a conversation that are used."})
    cache: str | None = field(default=None, metadata={"help": "Folder of a target cache, built where need be."})
    hold_features: bool = field(default=True, metadata={"help": "Keep the target's features in memory if no cache."})
    drafter: str | None = field(
        default=None,
        metadata={"help": "Drafter to go on with: a repository, a folder, or `embedded`. It brings its own shape."},
    )


@dataclass
class FreshDrafter:
    """Shape of a fresh drafter."""

    family: str | None = field(default=None, metadata={"help": "Its layers: qwen3, which engines read, if left out."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Draft layers; 2 if left out."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the draft MLPs; the target's if left out."}
    )
    target_layer_ids: list[int] | None = field(
        default=None, metadata={"help": "Tapped layers; spread evenly if left out."}
    )
    block_size: int | None = field(default=None, metadata={"help": "Block size G; 7 if left out."})
    markov_rank: int | None = field(default=None, metadata={"help": "Rank of the sequential head; 32 if left out."})
    draft_vocab_size: int | None = field(
        default=None, metadata={"help": "Tokens the drafter can propose; all if left out."}
    )
    mask_token_id: int | None = field(default=None, metadata={"help": "Mask token; the last id if left out."})


def main() -> None:
    parser = HfArgumentParser((Arguments, FreshDrafter, DraftTrainingArguments))
    arguments, shape, training = parser.parse_args_into_dataclasses()
    shape = {name: value for name, value in vars(shape).items() if value is not None}
    in_memory = arguments.hold_features and arguments.cache is None and training.cache_budget is None
    recipe = Recipe(
        target=arguments.target,
        data=arguments.data,
        num_synthetic=arguments.num_synthetic,
        held_out=arguments.held_out,
        max_length=arguments.max_length,
        features="memory" if in_memory else "online",
        cache=arguments.cache,
        start_from=arguments.drafter,
        drafter=shape if arguments.drafter else {**FRESH, **shape},
        training={"output_dir": training.output_dir, "num_eval_prompts": training.num_eval_prompts},
    )
    path = resolve_target(recipe.target)
    drafter = None
    if recipe.start_from is not None:
        drafter = AutoDrafter.from_pretrained(resolve_drafter(recipe.start_from))
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    trainer, metrics = train_drafter(recipe, target, tokenizer, training, drafter=drafter)
    if metrics:
        trainer.log_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print(f"Saved to {training.output_dir}")


if __name__ == "__main__":
    with end_in_order():
        main()
