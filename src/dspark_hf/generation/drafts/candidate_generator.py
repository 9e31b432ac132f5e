"""A drafter for transformers' own assisted decoding, for those who drive that loop.

Shapes: n drafts, k candidates, V vocabulary, S tokens so far.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.candidate_generator import CandidateGenerator

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.generation.tokens.sampling import TokenChooser
from dspark_hf.modeling.drafting import Proposal
from dspark_hf.modeling.taps import merge_streams

from .context import PendingContext, align_left


class DraftCandidateGenerator(CandidateGenerator):
    """Makes the candidates of transformers' assisted decoding with a drafter: for one `generate()` of one sequence.

    A class of one's own hands it out in `_get_candidate_generator`. `generate(..., assistant_model=drafter)` needs
    none of it, and does more: batches, whole blocks judged at once, lengths by cost.

    Args:
        drafter ([`DSparkModel`] or another drafter): The drafter, bound to the target.
        generation_config (`GenerationConfig`): The prepared config, of which `do_sample` and `max_length` are read.
        logits_processor (`LogitsProcessorList`, *optional*): The target's processors; drafts are drawn from what those
            of transformers without a state make of the drafter's scores.
        max_draft_len (`int`, *optional*): Most drafts of a round; all slots of the drafter, if not given.
        num_candidates (`int`, *optional*, defaults to 512): As of [`SpeculationConfig`].

    Raises:
        `ValueError`: If the drafter is none, is not bound to a target, or taps its last layer, whose raw output
            transformers does not hand out; or if a number is out of range.
    """

    requires_model_outputs = True

    def __init__(
        self,
        drafter: Any,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList | None = None,
        max_draft_len: int | None = None,
        num_candidates: int | None = 512,
    ):
        config = getattr(drafter, "config", None)
        if not (getattr(drafter, "is_drafter", False) and hasattr(config, "target_layer_ids")):
            raise ValueError(
                "drafter must be a drafter model of this library, e.g. AutoDrafter.from_pretrained(...), got "
                f"{type(drafter).__name__}."
            )
        if getattr(drafter, "borrowed", drafter) is None:
            raise ValueError(
                "The drafter is not bound to a target, whose embedding and output head it borrows: call "
                "drafter.bind(target) first."
            )
        layer_ids, num_layers = drafter.config.target_layer_ids, getattr(drafter.config, "num_target_layers", None)
        if num_layers is not None and num_layers - 1 in layer_ids:
            raise ValueError(
                f"The drafter reads the last of {num_layers} layers (target_layer_ids={layer_ids}), which "
                "transformers hands out behind the final norm. Use generate(..., assistant_model=drafter)."
            )
        # Both numbers are checked here.
        speculation = SpeculationConfig(max_draft_len=max_draft_len, num_candidates=num_candidates)
        self.model_kwargs_overrides = {"output_hidden_states": [layer_id + 1 for layer_id in layer_ids]}
        self._drafter, self._config = drafter, generation_config
        processors = LogitsProcessorList() if logits_processor is None else logits_processor
        self._chooser = TokenChooser(processors, bool(generation_config.do_sample), 1, speculation)
        num_slots = drafter.config.num_slots
        self._most = num_slots if max_draft_len is None else min(num_slots, max_draft_len)
        self._num_candidates = num_candidates
        self._context: PendingContext | None = None

    def get_candidates(
        self,
        input_ids: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = True,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Drafts behind the tokens so far.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, tokens)`): The tokens.
            model_kwargs (`dict`, *optional*): What is prepared for the next pass; a mask among it is read.
            model_outputs (`ModelOutput`, *optional*): Outputs of the pass before, with hidden states.
            is_first_iteration (`bool`, *optional*, defaults to `True`): Whether the prompt was not processed yet.
            n_last_matches (`int`, *optional*, defaults to 0): Drafts of the last round that stand.
            kwargs: Not read.

        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor)`: Tokens and drafts `(1, tokens + n)`, and logarithms of the
            probabilities `(1, n, vocab)` that the drafts were drawn from; None in their place where nothing was drawn.

        Raises:
            `ValueError`: If there is more than one sequence, or the target returned no hidden states.
        """
        if input_ids.shape[0] != 1:
            raise ValueError(
                f"transformers' assisted decoding takes one sequence, got {input_ids.shape[0]}. Use "
                "generate(..., assistant_model=drafter) for a batch."
            )
        if is_first_iteration or model_outputs is None:
            return input_ids, None
        self._read(input_ids, model_kwargs or {}, model_outputs, n_last_matches)
        num_drafts = min(self._most, self._config.max_length - input_ids.shape[1] - 1)
        if num_drafts < 1:
            return input_ids, None
        vocab_size = model_outputs.logits.shape[-1]
        # The picker writes drafts behind the tokens.
        ids = pad(input_ids, (0, num_drafts + 1))
        pick = self._chooser.draft_picker(ids, [input_ids.shape[1]], [0], vocab_size)
        proposal = self._context.propose(input_ids[:, -1], num_drafts, pick, self._num_candidates)
        return self._candidates(input_ids, proposal, vocab_size)

    def _read(self, input_ids: Tensor, model_kwargs: dict[str, Any], outputs: Any, num_matches: int) -> None:
        """Append what stands of the latest pass to the drafter's context."""
        states = outputs.hidden_states
        if states is None:
            raise ValueError("The target returned no hidden states, so a drafter cannot read it.")
        entries = self.model_kwargs_overrides["output_hidden_states"]
        # Of one sequence, only streams that stand before the batch make a first dimension of more than 1.
        taps = [merge_streams(states[entry], is_stacked=states[entry].shape[0] > 1) for entry in entries]
        features = torch.cat([tap.to(self._drafter.device) for tap in taps], -1)
        end = input_ids.shape[1] - 1
        if self._context is None:
            self._context = PendingContext(self._drafter, 1)
            ids, mask = input_ids[:, :end], model_kwargs.get("attention_mask")
            kept = None if mask is None else mask[:, :end].bool()
            if kept is not None and not kept.all() and kept.shape == features.shape[:2]:
                self._context.add(*align_left(features, ids, kept))
                return
        else:
            features = features[:, : num_matches + 1]
        self._context.add(features, input_ids[:, end - features.shape[1] : end])

    def _candidates(self, input_ids: Tensor, proposal: Proposal, vocab_size: int) -> tuple[Tensor, Tensor | None]:
        ids, drawn = proposal.ids.to(input_ids.device), proposal.candidates
        if drawn is None:
            return torch.cat([input_ids, ids], 1), None
        # A slot without a distribution, as where processors ban all of its candidates, ends the draft.
        num_drafts = int((drawn.probs.sum(-1)[0] > 0).int().cumprod(0).sum())
        if num_drafts == 0:
            return input_ids, None
        drawn = drawn[:, :num_drafts].to(input_ids.device)
        # An entry of probability 0 is padding, whose id says nothing.
        probs = drawn.probs.new_zeros(1, num_drafts, vocab_size).scatter_add_(-1, drawn.ids, drawn.probs)
        return torch.cat([input_ids, ids[:, :num_drafts]], 1), probs.log()
