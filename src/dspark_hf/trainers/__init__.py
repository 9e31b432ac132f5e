"""Training drafters with the Hugging Face Trainer."""

from .arguments import DraftTrainingArguments
from .trainer import DraftTrainer

__all__ = ["DraftTrainer", "DraftTrainingArguments"]
