"""DraftTrainer: the Hugging Face Trainer, told what a drafter's batch and loss are."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from dspark_hf.data.chat import encode_conversation
from dspark_hf.data.collator import DraftCollator
from dspark_hf.data.features import TargetFeatures
from dspark_hf.modeling import DSparkModel
from dspark_hf.ops.blocks import block_targets, slot_weights

from .arguments import DraftTrainingArguments
from .metrics import DraftMetrics
from .objective import DistillObjective
from .optimizer import MuonWithAdamW


class DraftTrainer(Trainer):
    """Trains a drafter for a frozen target.

    Datasets hold conversations (`messages`, encoded with `processing_class`), or rows of `input_ids` and `loss_mask`.
    Rows may carry `features` and `last_hidden_states` ([`~dspark_hf.data.features.hold_features`]); without them the
    target runs in the loop.

    Args:
        model ([`DSparkModel`]): The drafter.
        target (`PreTrainedModel`): The frozen target; it stays outside the trained model.
        args ([`DraftTrainingArguments`]): The arguments.
        max_length (`int`, *optional*, defaults to 4096): Conversations are cut to so many tokens.
        kwargs: As for [`~transformers.Trainer`].

    Raises:
        `ValueError`: If drafter and target do not fit, or conversations come without a tokenizer.

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
        model: DSparkModel,
        target: PreTrainedModel,
        args: DraftTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: DraftCollator | None = None,
        max_length: int = 4096,
        **kwargs: Any,
    ):
        if not model.is_bound_to(target):
            model.bind(target)
        self.features = TargetFeatures(target, model.config.target_layer_ids)
        self.num_slots = model.config.num_slots
        self._train_metrics, self._eval_metrics = DraftMetrics(self.num_slots), None
        collator = data_collator or DraftCollator(args.num_anchors or model.config.num_anchors, seed=args.seed)
        super().__init__(
            model,
            args,
            data_collator=collator,
            train_dataset=_encode(train_dataset, processing_class, max_length),
            eval_dataset=_encode(eval_dataset, processing_class, max_length),
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(_AnchorEpoch(collator))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """Sum of slot weights over the global batch: what the loss's weighted means divide by."""
        if not batch_samples:
            return None
        weights = slot_weights(self.num_slots, self.args.slot_decay)
        total = torch.zeros(())
        for batch in batch_samples:
            names = ("input_ids", "loss_mask", "anchors", "anchor_mask")
            _, _, block_mask = block_targets(*(batch[name] for name in names), self.num_slots)
            total = total + (block_mask.cpu() * weights).sum()
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
            ce_weight=args.ce_weight,
            tv_weight=args.tv_weight,
            confidence_weight=args.confidence_weight,
            slot_decay=args.slot_decay,
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

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_metrics = DraftMetrics(self.num_slots)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._eval_metrics.means(self._sum_over_processes)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._train_metrics.means(self._sum_over_processes)
            self._train_metrics = DraftMetrics(self.num_slots)
        super().log(logs, start_time)

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")


class _AnchorEpoch(TrainerCallback):
    """Gives each epoch its own anchors, the same ones after a resume."""

    def __init__(self, collator: DraftCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch or 0)


def _encode(dataset: Any, tokenizer: Any, max_length: int) -> Any:
    """Rows of conversations as ids and masks; any other dataset as it is."""
    if dataset is None or not hasattr(dataset, "__len__") or len(dataset) == 0 or "messages" not in dataset[0]:
        return dataset
    if tokenizer is None:
        raise ValueError("The dataset holds conversations; give the trainer their tokenizer as processing_class.")
    rows = (
        # The end of an answer that was cut off is not the target's.
        encode_conversation(
            tokenizer, row["messages"], max_length=max_length, complete=row.get("complete") is not False
        )
        for row in dataset
    )
    return [row for row in rows if any(row["loss_mask"])]
