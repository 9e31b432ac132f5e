"""When generation ends, to the token."""

from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

# Criteria that judge each row by itself. Others may tell rows apart by their place, or count their calls.
_ROW_WISE = (MaxTimeCriteria, StopStringCriteria)


class StopRules:
    """Stopping criteria, split by what they need: lengths and eos are known on the host, the rest must be called.

    Args:
        criteria (`StoppingCriteriaList`): The criteria that `generate()` prepared.
        generation_config (`GenerationConfig`): The prepared config.
        prompt_len (`int`): Tokens of the prompt.

    Attributes:
        max_length (`int`): Most tokens, prompt included.
        eos_ids (`frozenset[int]`): Tokens that end a row.
        pads (`bool`): Whether finished rows are filled with the padding token.
        others (`StoppingCriteriaList`): Criteria to call after every token.
        needs_level_rows (`bool`): Whether they must see the whole batch after every token, as a callback expects it,
            or decide together when all rows end, because none is padded.
    """

    def __init__(self, criteria: StoppingCriteriaList, generation_config: GenerationConfig, prompt_len: int):
        limits = [criterion.max_length for criterion in criteria if type(criterion) is MaxLengthCriteria]
        if not limits:
            limits = [generation_config.max_length]
        # Plain generate() makes a token before it looks at any limit.
        self.max_length = max(min(limits), prompt_len + 1)
        eos_ids: set[int] = set()
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                eos_ids.update(criterion.eos_token_id.flatten().tolist())
        self.eos_ids = frozenset(eos_ids)
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        known = (EosTokenCriteria, MaxLengthCriteria)
        self.others = StoppingCriteriaList(criterion for criterion in criteria if type(criterion) not in known)
        is_row_wise = all(type(criterion) in _ROW_WISE for criterion in self.others)
        self.needs_level_rows = len(self.others) > 0 and not (self.pads and is_row_wise)
