"""Arguments of [`DraftTrainer`]: those of `TrainingArguments` with the paper's defaults, and the loss's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from dspark_hf.data.cache.codecs import check_dtype
from dspark_hf.data.cache.rolling import parse_size
from dspark_hf.messages import shown

_NOT_NEGATIVE = (
    "ce_weight",
    "tv_weight",
    "confidence_weight",
    "soft_ce_weight",
    "num_eval_prompts",
    "eval_temperature",
    "early_stopping_threshold",
)
_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "slot_decay",
    "loss_chunk_size",
    "num_anchors",
    "muon_learning_rate",
    "eval_max_new_tokens",
    "early_stopping_patience",
)
# What would act on a loss or an embedding that a drafter does not have, and so silently do nothing.
_WITHOUT_EFFECT = ("label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel")
_OPTIONS_WITHOUT_EFFECT = ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "model_init")


@dataclass
class DraftTrainingArguments(TrainingArguments):
    """`TrainingArguments` whose defaults follow the paper's recipe (section 5.1).

    Args:
        ce_weight (`float`, *optional*): Weight of the cross-entropy: 0.1 for DSpark, 1 for DFlash, 0 for EAGLE-3.
        tv_weight (`float`, *optional*): Weight of the L1 distance between draft and target: 0.9 for DSpark, else 0.
        confidence_weight (`float`, *optional*): Weight of the confidence head's BCE, where there is one: 1.
        soft_ce_weight (`float`, *optional*): Weight of the cross-entropy to the target's distribution instead of one
            token: 1 for EAGLE-3, else 0.
        slot_decay (`float`, *optional*): Slot k weighs `exp(-(k - 1) / slot_decay)`: 4, or that of EAGLE-3's
            `step_loss_decay`.
        num_anchors (`int`, *optional*): Anchors per sequence; the drafter config's, if not given.
        loss_chunk_size (`int`, *optional*, defaults to 256): Rows whose logits are alive at a time.
        compile_loss (`bool`, *optional*, defaults to `False`): Whether the loss goes through `torch.compile`.
        muon_learning_rate (`float`, *optional*): Peak learning rate of Muon on the matrices of the draft layers; AdamW
            updates only the rest then ([`~trainers.optimizer.MuonWithAdamW`]). Without it, `optim` updates all.
        num_eval_prompts (`int`, *optional*, defaults to 32): Held-out prompts that every evaluation answers with the
            drafter, for `eval_tau` and `eval_accept_rate_slot_k`; 0 leaves it out.
        eval_max_new_tokens (`int`, *optional*, defaults to 128): Longest of these answers.
        eval_temperature (`float`, *optional*, defaults to 0.0): Their temperature; 0 is greedy.
        early_stopping_patience (`int`, *optional*): Stop after so many evaluations without a better
            `metric_for_best_model`, which is `eval_tau` where prompts are answered, unless it is set.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): How much better counts as better.
        cache_budget (`str`, *optional*): Disk for rows' features, e.g. `50GB`: rows kept there need not be run through
            the target in later epochs. Without it nothing is kept.
        cache_dir (`str`, *optional*): Where they are kept; `target-cache` in the output directory, if not given.
        cache_dtype (`str`, *optional*, defaults to `"bf16"`): How they are stored ([`build_target_cache`]).

    Raises:
        `ValueError`: If a weight is negative, a size is not positive, early stopping has nothing to go by, or an
            argument would have no effect.
    """

    learning_rate: float = field(default=6e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.04, metadata={"help": "Warm-up: a share of all steps if below 1."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite; a run that has one is stopped before."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator chooses what it needs."})
    ce_weight: float | None = field(default=None, metadata={"help": "Weight of the cross-entropy."})
    tv_weight: float | None = field(
        default=None, metadata={"help": "Weight of the L1 distance between draft and target."}
    )
    confidence_weight: float | None = field(default=None, metadata={"help": "Weight of the confidence loss."})
    soft_ce_weight: float | None = field(
        default=None, metadata={"help": "Weight of the cross-entropy to the target's distribution."}
    )
    slot_decay: float | None = field(default=None, metadata={"help": "Slot k weighs exp(-(k - 1) / slot_decay)."})
    num_anchors: int | None = field(default=None, metadata={"help": "Anchors per sequence."})
    loss_chunk_size: int = field(default=256, metadata={"help": "Rows whose logits are alive at a time."})
    compile_loss: bool = field(default=False, metadata={"help": "Send the loss through torch.compile."})
    muon_learning_rate: float | None = field(default=None, metadata={"help": "Muon's; AdamW if not set."})
    num_eval_prompts: int = field(default=32, metadata={"help": "Held-out prompts to answer per evaluation; 0: none."})
    eval_max_new_tokens: int = field(default=128, metadata={"help": "Longest answer to a held-out prompt."})
    eval_temperature: float = field(default=0.0, metadata={"help": "Temperature of these answers; 0 is greedy."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "How much better counts as better."})
    cache_budget: str | None = field(default=None, metadata={"help": "Disk for rows' features, e.g. 50GB."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where they are kept; in output_dir if not set."})
    cache_dtype: str = field(default="bf16", metadata={"help": "fp32, fp16, bf16, fp8, int8 or int4."})

    def __getstate__(self) -> dict[str, Any]:
        # Pickles lie beside weights, as training_args.bin: no token is ever in one, nor in a copy for another process.
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def __post_init__(self):
        if self.ddp_find_unused_parameters is None:
            # Every weight of a drafter is in the loss; looking for others costs a pass over the graph, and a warning.
            self.ddp_find_unused_parameters = False
        # bf16 is refused on a machine without accelerator unless this is said.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        keeps_best = self.early_stopping_patience is not None or self.load_best_model_at_end
        if self.metric_for_best_model is None and (keeps_best or self.save_strategy == "best"):
            self.metric_for_best_model = "eval_tau" if self.num_eval_prompts > 0 else "eval_loss"
        super().__post_init__()
        for name in _WITHOUT_EFFECT:
            if getattr(self, name):
                raise ValueError(
                    f"{name}={shown(getattr(self, name))} has no effect on a drafter: its loss is its own, its "
                    "embedding the target's. Leave it out."
                )
        for tracker in set(self.report_to) - {"none", *get_available_reporting_integrations()}:
            raise ValueError(
                f"report_to={shown(tracker)} needs a package that is not installed: pip install {tracker}, or "
                "report_to='none'."
            )
        if self.fp16 and self.use_cpu:
            raise ValueError("fp16=True needs an accelerator. Use bf16=True on a CPU, or leave both out for float32.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise ValueError(f"{name} must not be negative, got {shown(value)}.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name} must be positive, got {shown(value)}.")
        check_dtype(self.cache_dtype)
        if self.cache_budget is not None:
            parse_size(self.cache_budget)
        elif self.cache_dir is not None:
            raise ValueError(f"cache_dir={shown(self.cache_dir)} has no cache_budget; say how much may be kept there.")
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} counts evaluations, but eval_strategy is "
                "'no'; set it to 'steps' or 'epoch'."
            )
        if self.metric_for_best_model in ("tau", "eval_tau") and self.num_eval_prompts == 0:
            raise ValueError(
                "metric_for_best_model='eval_tau' is measured by decoding, but num_eval_prompts is 0; set it to 32, "
                "say, or choose another metric, e.g. 'eval_loss'."
            )


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check that `options` of [`~transformers.Trainer`] have an effect on a drafter's training.

    Raises:
        `ValueError`: If one that is given has none.
    """
    for name in _OPTIONS_WITHOUT_EFFECT:
        if options.get(name) is not None:
            raise ValueError(
                f"{name} has no effect: a drafter's loss and figures are computed without logits. Subclass "
                "DraftTrainer and override compute_loss or evaluation_loop instead."
            )
