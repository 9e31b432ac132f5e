"""What a drafter has behind its layers: sequential heads, each a file and a line below, and the one for confidence."""

from collections.abc import Callable

from dspark_hf.modeling.configuration.dspark import DSparkConfig

from .confidence import ConfidenceHead
from .domino import DominoHead
from .markov import GatedMarkovHead, MarkovHead, RnnMarkovHead, SequentialHead


def _markov(cls: type[MarkovHead]) -> Callable[[DSparkConfig, int], SequentialHead]:
    return lambda config, outputs: cls(config.vocab_size, config.hidden_size, config.markov_rank, outputs)


def _domino(config: DSparkConfig, outputs: int) -> SequentialHead:
    options = {"gru_hidden_dim": config.gru_hidden_dim, "num_pure": config.pure_draft_prefix_len}
    return DominoHead(config.hidden_size, config.markov_rank, outputs, **options)


# By `markov_head_type`; made of a config and the number of tokens that can be drafted.
SEQUENTIAL_HEADS: dict[str, Callable[[DSparkConfig, int], SequentialHead]] = {
    "vanilla": _markov(MarkovHead),
    "gated": _markov(GatedMarkovHead),
    "rnn": _markov(RnnMarkovHead),
    "domino": _domino,
}

__all__ = ["SEQUENTIAL_HEADS", "ConfidenceHead", "SequentialHead"]
