"""The decoding loop: prefill, then rounds of propose, verify, commit.

Shapes: B batch, T prompt, S tokens so far, n drafts of a round, V vocabulary, L taps, E hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dspark_hf.ops.verify import survival_lens

from .checks import check_drafter, check_inputs, check_mode, check_options
from .config import SpeculationConfig
from .sampling import TokenChooser
from .stats import SpeculationStats, Stopwatch
from .stopping import StopRules
from .target import TargetRunner
from .transcript import Transcript


@torch.no_grad()
def speculative_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: Any = None,
    speculation: SpeculationConfig | None = None,
    streamer: Any = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate with a drafter: the target's output, in fewer of its forward passes.

    It is what `model.generate(..., assistant_model=drafter)` runs, and works as a decoding method on its own:
    `model.generate(..., custom_generate=speculative_generate, drafter=drafter)`. On that way transformers keeps
    `streamer` to itself after the prompt; bind it: `functools.partial(speculative_generate, streamer=streamer)`.

    Args:
        model (`PreTrainedModel`): The target.
        input_ids (`torch.LongTensor` of shape `(batch, prompt)`): The prompt.
        logits_processor (`LogitsProcessorList`): Processors that shape the target's distribution.
        stopping_criteria (`StoppingCriteriaList`): When to stop; exact to the token.
        generation_config (`GenerationConfig`): The prepared config.
        drafter ([`DSparkModel`]): The drafter; bound to `model` if it is not yet.
        speculation ([`SpeculationConfig`], *optional*): How to speculate.
        streamer (`BaseStreamer`, *optional*): Gets tokens as they are made, see [`Transcript`].
        synced_gpus (`bool`, *optional*): Not supported.
        model_kwargs: What `generate()` prepared for the target's forward passes, the cache among it.

    Returns:
        `torch.LongTensor` of shape `(batch, tokens)`, or `GenerateDecoderOnlyOutput` if `return_dict_in_generate` is
        set. `drafter.last_stats` tells what happened ([`SpeculationStats`]).

    Raises:
        `ValueError`: If drafter and target do not fit, or something is asked for that is not supported.

    Source: Leviathan et al. 2023, algorithm 1 (https://arxiv.org/abs/2211.17192); DSpark, section 3
    (https://arxiv.org/abs/2606.19348).
    """
    speculation = SpeculationConfig() if speculation is None else speculation
    check_drafter(drafter, speculation)
    check_mode(generation_config.get_generation_mode(), generation_config)
    check_options(model, generation_config, synced_gpus)
    check_inputs(model, input_ids, model_kwargs)
    if not drafter.is_bound_to(model):
        drafter.bind(model, check_name=speculation.check_target)
    loop = SpeculativeLoop(
        model, drafter, speculation, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs,
        streamer,
    )  # fmt: skip
    return loop.run()


class SpeculativeLoop:
    """One generation. All rows of a batch grow in step: a round ends where the first row's draft is rejected.

    Args: as of [`speculative_generate`], checked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: Any,
        speculation: SpeculationConfig,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        streamer: Any,
    ):
        self.stats = SpeculationStats()
        measure_time = speculation.measure_time
        is_measured = model.device.type == "cpu" if measure_time is None else measure_time
        self.watch = Stopwatch(self.stats, model.device, is_measured)
        self.drafter = drafter
        self.speculation = speculation
        self.generation_config = generation_config
        self.num_slots = min(drafter.config.num_slots, speculation.max_draft_len or drafter.config.num_slots)
        rules = StopRules(stopping_criteria, generation_config, input_ids.shape[1])
        self.transcript = Transcript(input_ids, rules, generation_config, streamer)
        self.chooser = TokenChooser(logits_processor, bool(generation_config.do_sample), speculation.seed)
        self.target = TargetRunner(
            model, drafter.config.target_layer_ids, model_kwargs, input_ids.shape[1], rules.max_length
        )
        self.context = drafter.start(input_ids.shape[0])

    def run(self) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate to the end."""
        try:
            with self.watch.part("prefill"):
                logits = self.target.prefill(self.transcript.prefix)
            self._settle(logits, None, None)
            self.transcript.end_round(accepted_len=0)
            if not self.transcript.is_over:
                self._read_prompt()
            while not self.transcript.is_over:
                self._round()
            self.transcript.end()
        finally:
            self.watch.stop()
            self.target.close()
            self.stats.new_tokens = self.transcript.num_made
            self.drafter.last_stats = self.stats
        return self._result()

    def _round(self) -> None:
        transcript = self.transcript
        draft_ids, draft_probs = self._propose()
        num_drafts = 0 if draft_ids is None else draft_ids.shape[1]
        if draft_ids is not None:
            transcript.note_drafts(draft_ids)
        with self.watch.part("target"):
            logits = self.target.verify(
                transcript.ids[:, : transcript.num_tokens + num_drafts], num_block=num_drafts + 1
            )
        self.stats.rounds += 1
        live = transcript.live
        num_kept, accepted_lens = self._settle(logits, draft_ids, draft_probs)
        for row, accepted_len in enumerate(accepted_lens):
            if live[row]:
                self.stats.record(row, num_drafts, min(accepted_len, num_kept), num_kept)
        transcript.end_round(min(accepted_lens[0], num_kept))
        # The last token kept is the next anchor, which the target has not processed: of num_drafts + 1 inputs,
        # num_kept stand.
        self.target.commit(num_drafts + 1 - num_kept)
        if not transcript.is_over:
            with self.watch.part("drafter"):
                self.drafter.extend(self.context, self.target.take_features(num_kept))

    def _read_prompt(self) -> None:
        with self.watch.part("prefill"):
            features = self.target.take_features()
            mask = self.target.prompt_mask()
            counts = None
            if mask is not None:
                # Padding may stand on either side: the drafter gets each row's tokens from column 0 on.
                mask = mask.to(features.device)
                counts = mask.sum(1).tolist()
                order = (~mask).int().argsort(dim=1, stable=True)[:, : max(counts)]
                features = features.gather(1, order.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
            self.drafter.extend(self.context, features, counts)

    def _propose(self) -> tuple[Tensor | None, Tensor | None]:
        """Drafts of the round and the distributions they were drawn from; `(None, None)` for a round without."""
        transcript = self.transcript
        # A round makes one token more than it has drafts.
        num_slots = min(self.num_slots, transcript.num_left - 1)
        if num_slots == 0:
            return None, None
        with self.watch.part("drafter"):
            pick = self.chooser.draft_picker(transcript.ids, transcript.num_tokens)
            proposal = self.drafter.propose(
                self.context,
                transcript.anchor_ids.to(self.drafter.device),
                num_slots=num_slots,
                **({} if pick is None else {"pick": pick}),
            )
            if self.speculation.confidence_threshold > 0:
                live = transcript.live
                lens = survival_lens(proposal.confidence_logits, self.speculation.confidence_threshold).tolist()
                # Rows grow in step, so no row can use more drafts than the shortest offer.
                num_slots = min(length for length, is_live in zip(lens, live, strict=True) if is_live)
        if num_slots == 0:
            return None, None
        draft_probs = None if proposal.probs is None else proposal.probs[:, :num_slots]
        return proposal.ids[:, :num_slots].to(transcript.ids.device), draft_probs

    def _settle(self, logits: Tensor, draft_ids: Tensor | None, draft_probs: Tensor | None) -> tuple[int, list[int]]:
        """Judge the drafts and take the tokens that stand; returns their number and each row's accepted drafts."""
        if self.chooser.in_order:
            return self._settle_in_order(logits, draft_ids, draft_probs)
        transcript, start = self.transcript, self.transcript.num_tokens
        if draft_ids is None:
            draft_ids = transcript.ids.new_empty(transcript.ids.shape[0], 0)
        needs_scores = self.chooser.needs_scores() or transcript.scores is not None
        scores = self.chooser.block_scores(transcript.ids, start, logits) if needs_scores else logits
        accepted_len, next_ids = self.chooser.verify_block(draft_ids, draft_probs, scores)
        accepted_len, next_ids = accepted_len.unsqueeze(1), next_ids.unsqueeze(1)
        tokens = torch.cat([draft_ids, next_ids], 1).scatter_(1, accepted_len, next_ids)  # [B, n + 1]
        transcript.note_drafts(tokens)
        live = transcript.live
        # The round's one wait for the device.
        *columns, accepted_lens = torch.cat([tokens, accepted_len], 1).T.tolist()
        num_tokens = 1 + min(length for length, is_live in zip(accepted_lens, live, strict=True) if is_live)
        for index in range(num_tokens):
            _check_drawn(columns[index], logits.shape[-1])
            is_over = transcript.step(
                columns[index],
                None if transcript.scores is None else scores[:, index].clone(),
                None if transcript.logits is None else self._raw_logits(logits, index),
            )
            if is_over:
                break
        return transcript.num_tokens - start, accepted_lens

    def _settle_in_order(
        self, logits: Tensor, draft_ids: Tensor | None, draft_probs: Tensor | None
    ) -> tuple[int, list[int]]:
        """As [`_settle`], one position after the other, with processors that must see nothing but emitted tokens."""
        transcript = self.transcript
        num_drafts = 0 if draft_ids is None else draft_ids.shape[1]
        accepted_lens = [0] * transcript.ids.shape[0]
        for index in range(num_drafts + 1):
            live = transcript.live
            raw_logits = None if transcript.logits is None else self._raw_logits(logits, index)
            scores = self.chooser.next_scores(transcript.prefix, logits[:, index])
            if index < num_drafts:
                probs = None if draft_probs is None else draft_probs[:, index]
                tokens, accepted = self.chooser.judge(draft_ids[:, index], probs, scores)
            else:
                tokens, accepted = self.chooser.judge(None, None, scores)
            transcript.note_drafts(tokens.unsqueeze(1))
            host_tokens, host_accepted = torch.stack([tokens, accepted.long()]).tolist()
            _check_drawn(host_tokens, logits.shape[-1])
            is_over = transcript.step(host_tokens, scores, raw_logits)
            for row, was_accepted in enumerate(host_accepted):
                accepted_lens[row] += was_accepted
            if is_over or not all(ok for ok, is_live in zip(host_accepted, live, strict=True) if is_live):
                return index + 1, accepted_lens
        return num_drafts + 1, accepted_lens

    def _raw_logits(self, logits: Tensor, index: int) -> Tensor:
        return logits[:, index].to(device=self.transcript.ids.device, dtype=torch.float32, copy=True)

    def _result(self) -> Tensor | GenerateDecoderOnlyOutput:
        transcript = self.transcript
        sequences = transcript.prefix.clone()
        if not self.generation_config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences, scores=transcript.scores, logits=transcript.logits, past_key_values=self.target.cache
        )


def _check_drawn(tokens: list[int], vocab_size: int) -> None:
    if max(tokens) >= vocab_size:
        raise ValueError(
            "The target's probabilities are not finite, so no token can be drawn: its logits hold inf or nan, or "
            "processors ban every token. Load it in bfloat16 or float32, pass remove_invalid_values=True, or loosen "
            "the processors."
        )
