"""From a recipe to a trained drafter in a folder."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from dspark_hf.data.cache import TargetCache, build_target_cache
from dspark_hf.data.cache.manifest import MANIFEST_FILE, Manifest
from dspark_hf.data.conversation_files import iterate_places
from dspark_hf.data.features import TargetFeatures, hold_features
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.regeneration import synthesize
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.vocabulary import frequent_tokens
from dspark_hf.modeling.wrappers import unwrap
from dspark_hf.trainers.arguments import DraftTrainingArguments
from dspark_hf.trainers.callbacks import LatestEvaluation
from dspark_hf.trainers.checkpoints import last_checkpoint
from dspark_hf.trainers.resuming import check_same_drafter, check_same_run, rows_digest, write_run
from dspark_hf.trainers.rows import load_rows
from dspark_hf.trainers.sole_run import sole_run
from dspark_hf.trainers.streams import StreamedRows, stream_files
from dspark_hf.trainers.trainer import DraftTrainer

from .recipe import Recipe

logger = logging.get_logger(__name__)

# Of a stream, what a reduced draft vocabulary is counted on.
_VOCABULARY_ROWS = 10_000
_OF_OPTIMIZER = ("learning_rate", "muon_learning_rate", "lr_scheduler_type", "optim", "weight_decay", "adam_beta1",
                 "adam_beta2", "adam_epsilon", "seed")  # fmt: skip
# Training arguments that say where things go.
_ASIDE = ("output_dir", "resume_from_checkpoint", "report_to", "run_name", "disable_tqdm")


def train_drafter(
    recipe: Recipe,
    target: PreTrainedModel,
    tokenizer: Any,
    training: DraftTrainingArguments | None = None,
    *,
    drafter: Any = None,
    resume: bool = False,
) -> tuple[DraftTrainer, dict[str, float]]:
    """Train, evaluate and save a drafter.

    The folder gets the drafter in bfloat16, or its adapter, the recipe as `recipe.yaml`, and a card.

    Args:
        recipe ([`Recipe`]): What to do.
        target (`PreTrainedModel`): The target that the recipe names.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        training ([`DraftTrainingArguments`], *optional*): The trainer's arguments; those of the recipe by default.
        drafter ([`DSparkModel`], *optional*): The drafter that `start_from` names.
        resume (`bool`, *optional*, defaults to `False`): Go on from the newest whole checkpoint, if there is one.

    Returns:
        `tuple[DraftTrainer, dict[str, float]]`: The trainer, and the figures of the last evaluation.

    Raises:
        `ValueError`: If the folder holds a run already and `resume` is not set, another run is writing there, or the
            recipe cannot be followed.
    """
    training = recipe.training_arguments() if training is None else training
    with sole_run(training.output_dir):
        return _train(recipe, target, tokenizer, training, drafter, resume)


def _train(
    recipe: Recipe,
    target: PreTrainedModel,
    tokenizer: Any,
    training: DraftTrainingArguments,
    drafter: Any,
    resume: bool,
) -> tuple[DraftTrainer, dict[str, float]]:
    if (drafter is None) != (recipe.start_from is None):
        raise ValueError(f"The recipe has start_from={shown(recipe.start_from)}; pass that drafter, and no other.")
    checkpoint = _checkpoint(training, resume)
    set_seed(training.seed)
    target = target.to(training.device)
    if recipe.streaming:
        held_out, stream = stream_files(recipe.data, recipe.held_out, training.seed, recipe.strict)
        names = ("max_length", "keep_special_tokens", "strict")
        options = {name: getattr(recipe, name) for name in names}
        train_rows = StreamedRows(stream, tokenizer, **options, repeats=True)
        eval_rows = list(StreamedRows(held_out, tokenizer, **options))
        rows = islice(StreamedRows(stream, tokenizer, **options), _VOCABULARY_ROWS)
        data = [f"{Path(file).name}: {Path(file).stat().st_size} bytes" for file in recipe.data]
    else:
        files = _files(recipe, target, tokenizer, training)
        rows = load_rows(files, tokenizer, recipe.max_length, recipe.keep_special_tokens, recipe.strict)
        data = rows_digest(rows)
    begun = _begun_with(recipe, training, data)
    if checkpoint is not None:
        check_same_run(checkpoint, begun)
    if drafter is None:
        drafter = _fresh_drafter(recipe, target, rows)
    drafter = drafter.to(training.device).float()
    drafter = drafter if drafter.is_bound_to(target) else drafter.bind(target)
    if training.process_index == 0:
        unwrap(drafter).tell_engines()
    if checkpoint is not None:
        check_same_drafter(checkpoint, unwrap(drafter).config)
    if not recipe.streaming:
        if recipe.cache is not None:
            rows = _cached(recipe, training, target, tokenizer, drafter, files)
        train_rows, eval_rows = _split(recipe, target, drafter, rows)
    if not recipe.needs_target:
        _leave_vocabulary(target, training.device)
    trainer = DraftTrainer(
        drafter,
        target,
        training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        peft_config=None if recipe.lora is None else LoraConfig(**recipe.lora),
    )
    if trainer.is_world_process_zero():
        write_run(training.output_dir, begun)
    latest = LatestEvaluation()
    trainer.add_callback(latest)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = latest.metrics
    if len(eval_rows) and (latest.step != trainer.state.global_step or training.load_best_model_at_end):
        metrics = trainer.evaluate()
    if metrics:
        trainer.save_metrics("eval", metrics, combined=False)
    _save(trainer, recipe)
    return trainer, metrics


def _begun_with(recipe: Recipe, training: DraftTrainingArguments, data: Any) -> dict[str, dict[str, Any]]:
    """What a resumed run must have in common with the one that was begun, and what may differ."""
    fixed = {name: getattr(recipe, name) for name in ("target", "algorithm", "start_from", "lora", "held_out")}
    # The optimizer's state brings its own, so that another value would go unheard.
    fixed |= {name: getattr(training, name) for name in _OF_OPTIMIZER}
    free = {name: value for name, value in recipe.training.items() if name not in {*_OF_OPTIMIZER, *_ASIDE}}
    for name in ("target_dtype", "features", "cache"):
        free[name] = getattr(recipe, name)
    free |= {name: getattr(training, name) for name in ("max_steps", "num_train_epochs", "world_size")}
    return {"fixed": {**fixed, "data": data}, "free": free}


def _checkpoint(training: DraftTrainingArguments, resume: bool) -> str | None:
    asked = training.resume_from_checkpoint
    if asked and str(asked).lower() != "true":
        return asked
    found = last_checkpoint(training.output_dir)
    if found and not (resume or asked):
        raise ValueError(
            f"{training.output_dir} holds a run already, with {Path(found).name}: go on with it (--resume; of a "
            "script --resume_from_checkpoint true), or choose another output_dir."
        )
    return found


def _files(recipe: Recipe, target: Any, tokenizer: Any, training: DraftTrainingArguments) -> list[str]:
    if recipe.data is not None:
        return recipe.data
    file = Path(training.output_dir) / "text.jsonl"
    with training.main_process_first(desc="writing text"):
        if training.process_index == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            synthesize(
                target,
                tokenizer,
                recipe.num_synthetic,
                str(file),
                seed=training.seed,
                openings=recipe.openings,
                resume=True,
            )
    return [str(file)]


def _cached(
    recipe: Recipe,
    training: DraftTrainingArguments,
    target: PreTrainedModel,
    tokenizer: Any,
    drafter: DraftModel,
    files: list[str],
) -> TargetCache:
    """The recipe's cache, built or gone on with as `dspark cache` does, from the conversations themselves."""
    return build_target_cache(
        target,
        [record for file in files for _, record in iterate_places(file, LeftOut(recipe.strict))],
        recipe.cache,
        target_layer_ids=drafter.config.target_layer_ids,
        tokenizer=tokenizer,
        dtype=training.cache_dtype,
        log_norm=_has_log_norm(recipe.cache, needed=not drafter.proposes_all_tokens),
        max_length=recipe.max_length,
        keep_special_tokens=recipe.keep_special_tokens,
        strict=recipe.strict,
    )


def _has_log_norm(folder: str, needed: bool) -> bool:
    """What a cache that is there already has; training computes what it lacks."""
    manifest = Path(folder) / MANIFEST_FILE
    return Manifest.read(manifest.parent).log_norm if manifest.exists() else needed


def _split(
    recipe: Recipe, target: PreTrainedModel, drafter: DraftModel, rows: Sequence[dict[str, Any]]
) -> tuple[Any, Any]:
    """Rows to train and to evaluate on, with the target's features where these are kept in memory."""
    num_trained = len(rows) - min(recipe.held_out, len(rows) // 5)
    if isinstance(rows, TargetCache):
        return rows.select(range(num_trained)), rows.select(range(num_trained, len(rows)))
    if recipe.features == "memory":
        source = TargetFeatures(target, drafter.config.target_layer_ids)
        rows = hold_features(source, rows, log_norm=not drafter.proposes_all_tokens)
    return rows[:num_trained], rows[num_trained:]


def _fresh_drafter(recipe: Recipe, target: PreTrainedModel, rows: Iterable[dict[str, Any]]) -> DraftModel:
    drafter = recipe.drafter_cls.from_target(target, **recipe.drafter)
    if drafter.has_reduced_vocabulary:
        size, vocab_size = drafter.config.draft_vocab_size, drafter.config.vocab_size
        drafter.choose_vocabulary(frequent_tokens(rows, size, vocab_size))
    return drafter


def _leave_vocabulary(target: PreTrainedModel, device: torch.device) -> None:
    """Put away a target that has done its work, but for the modules that the drafter borrows."""
    target.to("cpu")
    for module in (target.get_input_embeddings(), target.get_output_embeddings()):
        module.to(device)


def _save(trainer: DraftTrainer, recipe: Recipe) -> None:
    folder = trainer.args.output_dir
    if recipe.lora is not None:
        trainer.save_model(_internal_call=True)  # it is uploaded below, with its card
    else:
        # Sharded weights are gathered, so every process takes part.
        drafter = trainer.whole_drafter.get()
        if trainer.is_world_process_zero():
            unwrap(drafter).to(torch.bfloat16).save_pretrained(folder)
    if trainer.is_world_process_zero():
        recipe.save(Path(folder) / "recipe.yaml")
        trainer.create_model_card(dataset=recipe.data)
        if trainer.args.push_to_hub:
            trainer.push_saved(dataset=recipe.data)
