"""DraftTrainer: the Hugging Face Trainer, told what a drafter's batch and loss are."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.utils import logging

from dspark_hf.data.cache import RollingFeatures, TargetCache
from dspark_hf.data.cache.rolling import parse_size
from dspark_hf.data.collator import COLUMNS, DraftCollator
from dspark_hf.data.features import TargetFeatures
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.borrowing import is_made_for
from dspark_hf.modeling.wrappers import unwrap
from dspark_hf.ops.blocks import block_targets, slot_weights
from dspark_hf.processor import multiplies

from .adapters import add_adapter, check_roles, check_target_head, check_trainable, save_base_config
from .arguments import DraftTrainingArguments, check_trainer_options
from .callbacks import AnchorEpoch, RollingEpoch, StepClock
from .decoding import WholeDrafter, decode_prompts, decoding_metrics, held_out_prompts
from .finite import FiniteTraining
from .metrics import DraftMetrics
from .objective import DistillObjective
from .optimizer import MuonWithAdamW
from .rows import check_caches, encode_rows
from .streams import prepare_for_streams
from .uploads import DrafterUploads

logger = logging.get_logger(__name__)


class DraftTrainer(DrafterUploads, FiniteTraining):
    """Trains a drafter of any kind for a frozen target.

    Datasets hold conversations ([`~data.conversations.conversation_of`], encoded with `processing_class`), or rows of
    `input_ids` and `loss_mask`.
    Rows may carry `features` and `last_hidden_states`: a [`TargetCache`], or
    [`~data.features.hold_features`]. Without them the target runs in the loop, for rows that
    `args.cache_budget` has no room for. A dataset without a length, such as a `datasets.IterableDataset`, is encoded
    as it comes ([`~trainers.streams.StreamedRows`]) and needs `args.max_steps`.

    Args:
        model ([`DraftModel`] or `PeftModel`): The drafter, or one with a trainable adapter.
        target (`PreTrainedModel`): The frozen target; it stays outside the trained model.
        args ([`DraftTrainingArguments`]): The arguments.
        train_dataset (`Dataset`, `list` or [`TargetCache`], *optional*): What it learns from; needed to train.
        eval_dataset (the same, *optional*): What `evaluate()` measures on.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The target's tokenizer, with a chat template; needed
            where rows hold conversations rather than ids.
        data_collator ([`DraftCollator`], *optional*): Makes batches of rows and chooses their anchors; one with
            `num_anchors` of the drafter's config and the seed of `args`, if not given.
        max_length (`int`, *optional*, defaults to 4096): Conversations are cut to so many tokens.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether conversations whose text spells special
            tokens are kept ([`~data.rows.encode_row`]).
        strict (`bool`, *optional*, defaults to `False`): Whether a conversation that cannot be encoded is an error,
            instead of being left out and counted.
        peft_config (`PeftConfig`, *optional*): Train an adapter on the drafter instead of the drafter
            ([`~trainers.adapters.add_adapter`]); it alone is saved.
        kwargs: As for [`~transformers.Trainer`].

    Raises:
        `ValueError`: If drafter, target and cache do not fit, or conversations come without a tokenizer; while it
            trains, if a loss is not finite.

    Example:

    ```python
    target = AutoModelForCausalLM.from_pretrained("org/Model", dtype="auto")
    drafter = DSparkModel.from_target(target).float()
    args = DraftTrainingArguments("out")
    trainer = DraftTrainer(drafter, target, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    ```
    """

    # compute_loss divides by the global batch's weight, accumulation steps included.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: DraftModel,
        target: PreTrainedModel,
        args: DraftTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: DraftCollator | None = None,
        max_length: int = 4096,
        keep_special_tokens: bool = False,
        strict: bool = False,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ):
        check_roles(model, target, args)
        check_trainer_options(kwargs)
        if not model.is_bound_to(target):
            model.bind(target)
        check_target_head(target)
        if not is_made_for(model.config, unwrap(target)):
            model.config.name_target(unwrap(target))
        if peft_config is not None:
            model = add_adapter(model, peft_config)
        check_trainable(model)
        if args.bf16 and not multiplies(args.device, torch.bfloat16):
            logger.warning(
                "This processor has no instructions for bfloat16, so bf16=True makes training slower than bf16=False."
            )
        if (drafter := unwrap(model)).calibration is not None:
            logger.warning(
                "The drafter's calibration is left out: it is for the weights before training. Make one for those "
                "after it with `dspark calibrate`."
            )
            drafter.calibration = None
        check_caches((train_dataset, eval_dataset), model, target, processing_class)
        self.features = TargetFeatures(target, model.config.target_layer_ids)
        if args.cache_budget is not None:
            if isinstance(train_dataset, TargetCache):
                raise ValueError("The training rows come from a TargetCache already; leave cache_budget out.")
            folder = args.cache_dir or Path(args.output_dir) / "target-cache"
            budget = parse_size(args.cache_budget)
            self.features = RollingFeatures(self.features, folder, budget, dtype=args.cache_dtype)
        self.num_slots = model.config.num_slots
        given = {name: getattr(args, name) for name in asdict(model.config.loss_weights)}
        given = {name: value for name, value in given.items() if value is not None}
        self.loss_weights = replace(model.config.loss_weights, **given)
        self._train_metrics, self._eval_metrics = DraftMetrics(self.num_slots), None
        self._clock, self._num_tokens = StepClock(), 0
        collator = data_collator or DraftCollator(args.num_anchors or model.config.num_anchors, seed=args.seed)
        options = {"max_length": max_length, "keep_special_tokens": keep_special_tokens, "strict": strict}
        self._encode = partial(encode_rows, tokenizer=processing_class, **options)
        train_rows, eval_rows = self._encode(train_dataset, repeats=True), self._encode(eval_dataset)
        prepare_for_streams(args, train_rows, eval_rows)
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=processing_class,
            **kwargs,
        )
        # What the collator reads, rather than what forward() takes, is what remove_unused_columns leaves.
        self._signature_columns = list(COLUMNS)
        self.whole_drafter = WholeDrafter(self, model)
        if isinstance(collator, DraftCollator):
            self.add_callback(AnchorEpoch(collator))
        self.add_callback(self._clock)
        if isinstance(self.features, RollingFeatures):
            self.add_callback(RollingEpoch(self.features))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Sum of slot weights over the global batch: what the loss's weighted means divide by."""
        if not batch_samples:
            return None
        weights = slot_weights(self.num_slots, self.loss_weights.slot_decay)
        total = torch.zeros(())
        for batch in batch_samples:
            names = ("input_ids", "loss_mask", "anchors", "anchor_mask")
            _, _, block_mask = block_targets(*(batch[name] for name in names), self.num_slots)
            total = total + (block_mask.cpu() * weights).sum()
            self._num_tokens += int(batch["attention_mask"].sum())
        total = total.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total.unsqueeze(0)).sum()
        return total

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments ask for."""
        args = self.args
        if self.optimizer is None and args.muon_learning_rate is not None:
            self.optimizer = MuonWithAdamW(
                self.model if model is None else model,
                args.muon_learning_rate,
                adamw_lr=args.learning_rate,
                weight_decay=args.weight_decay,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """The loss of a batch, a share of the global batch's where `num_items_in_batch` is given."""
        if "features" in inputs:
            features, last_hidden_states = inputs["features"], inputs["last_hidden_states"]
        else:
            features, last_hidden_states = self.features(inputs["input_ids"], inputs["attention_mask"])
        args, batch = self.args, {name: inputs[name] for name in ("input_ids", "anchors", "anchor_mask")}
        objective = DistillObjective(
            **batch,
            loss_mask=inputs["loss_mask"],
            last_hidden_states=last_hidden_states,
            **asdict(self.loss_weights),
            chunk_size=args.loss_chunk_size,
            compile=args.compile_loss,
            log_norm=inputs.get("log_norm"),
            total_weight=num_items_in_batch,
            metrics=self._train_metrics if model.training else self._eval_metrics,
        )
        loss = model(**batch, features=features, objective=objective)
        if num_items_in_batch is not None and args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes afterwards
        return (loss, None) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        is_new = eval_dataset is not None and not isinstance(eval_dataset, str)
        return super().get_eval_dataloader(self._encode(eval_dataset) if is_new else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(self._encode(test_dataset))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_metrics = DraftMetrics(self.num_slots)
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._eval_metrics.means(self._sum_over_processes)
        if self.args.num_eval_prompts > 0:
            means |= self._decode(dataloader.dataset)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def _decode(self, dataset: Any) -> dict[str, float]:
        """Figures of held-out decoding: each process answers its share of the prompts, if it has a whole drafter."""
        args, rank = self.args, self.accelerator.process_index
        drafter = self.whole_drafter.get()
        prompts = held_out_prompts(dataset, args.num_eval_prompts)
        if not self.whole_drafter.is_sharded:
            prompts = prompts[rank :: self.accelerator.num_processes]
        stats = decode_prompts(
            self.features.target,
            drafter,
            prompts if drafter is not None else [],
            max_new_tokens=args.eval_max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            temperature=args.eval_temperature,
            seed=args.seed,
            progress=not args.disable_tqdm and rank == 0,
        )
        total, *others = gather_object([stats])
        for part in others:
            total.add(part)
        return decoding_metrics(total)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._train_metrics.means(self._sum_over_processes)
            self._train_metrics = DraftMetrics(self.num_slots)
            num_tokens = self._sum_over_processes(torch.tensor(float(self._num_tokens)))
            logs["tokens_per_second"] = round(float(num_tokens) / max(self._clock.take(), 1e-9), 1)
            logs["eta_seconds"] = round(self._clock.eta_seconds(self.state.max_steps - self.state.global_step), 1)
            self._num_tokens = 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_base_config(self.model, output_dir or self.args.output_dir)
