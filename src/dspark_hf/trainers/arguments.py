"""Arguments of [`DraftTrainer`]: those of `TrainingArguments` with the paper's defaults, and the loss's own."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class DraftTrainingArguments(TrainingArguments):
    """`TrainingArguments` whose defaults follow the paper's recipe (section 5.1).

    Args:
        ce_weight (`float`, *optional*, defaults to 0.1): Weight of the cross-entropy.
        tv_weight (`float`, *optional*, defaults to 0.9): Weight of the L1 distance between draft and target.
        confidence_weight (`float`, *optional*, defaults to 1.0): Weight of the confidence head's BCE.
        slot_decay (`float`, *optional*, defaults to 4.0): Slot k weighs `exp(-(k - 1) / slot_decay)`.
        num_anchors (`int`, *optional*): Anchors per sequence; the drafter config's, if not given.
        loss_chunk_size (`int`, *optional*, defaults to 256): Rows whose logits are alive at a time.
        compile_loss (`bool`, *optional*, defaults to `False`): Whether the loss goes through `torch.compile`.
        muon_learning_rate (`float`, *optional*): Peak learning rate of Muon on the matrices of the draft layers; AdamW
            updates only the rest then ([`~trainers.optimizer.MuonWithAdamW`]). Without it, `optim` updates all.

    Raises:
        `ValueError`: If a weight is negative, or a size is not positive.
    """

    learning_rate: float = field(default=6e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.04, metadata={"help": "Warm-up: a share of all steps if below 1."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator chooses what it needs."})
    ce_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy."})
    tv_weight: float = field(default=0.9, metadata={"help": "Weight of the L1 distance between draft and target."})
    confidence_weight: float = field(default=1.0, metadata={"help": "Weight of the confidence loss."})
    slot_decay: float = field(default=4.0, metadata={"help": "Slot k weighs exp(-(k - 1) / slot_decay)."})
    num_anchors: int | None = field(default=None, metadata={"help": "Anchors per sequence."})
    loss_chunk_size: int = field(default=256, metadata={"help": "Rows whose logits are alive at a time."})
    compile_loss: bool = field(default=False, metadata={"help": "Send the loss through torch.compile."})
    muon_learning_rate: float | None = field(default=None, metadata={"help": "Muon's; AdamW if not set."})

    def __post_init__(self):
        # bf16 is refused on a machine without accelerator unless this is said.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        for name in ("ce_weight", "tv_weight", "confidence_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        for name in ("slot_decay", "loss_chunk_size", "num_anchors", "muon_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
