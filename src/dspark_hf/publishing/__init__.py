"""From a drafter's folder to a repository: what is uploaded, and the card about it. Knows files, no models."""

from .cards.card import write_card
from .cards.facts import CardFacts
from .evaluations import add_evaluation
from .push import push_folder, push_model
from .training import write_training_record

__all__ = ["CardFacts", "add_evaluation", "push_folder", "push_model", "write_card", "write_training_record"]
