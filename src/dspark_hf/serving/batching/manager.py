"""A manager of transformers that speculates."""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.continuous_batching import continuous_api as api
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.modeling.taps import Taps
from dspark_hf.serving.block_states import BlockStates
from dspark_hf.serving.choosing import RequestChoosers
from dspark_hf.serving.counts import ServingStats
from dspark_hf.serving.drafting import StepDrafter
from dspark_hf.serving.options import RequestOptions
from dspark_hf.serving.stop_texts import StopTexts

from .inputs import DraftInputs
from .processor import DraftProcessor, DraftRunner
from .ring import DraftRing
from .scheduling import DRAFT_SCHEDULERS, OPTIONS

_NOT_OPTIONS = ("max_new_tokens", "streaming", "record_timestamps", "eos_token_id")


class SpeculativeManager(api.ContinuousBatchingManager):
    """transformers' manager, with a drafter for all of its requests.

    Made by `model.init_continuous_batching(assistant_model=drafter)`.

    Attributes:
        drafter ([`DSparkModel`]): The drafter.
        speculation ([`SpeculationConfig`]): How it speculates.
        stats ([`ServingStats`]): What was done so far.
        stop_texts ([`StopTexts`]): Finds stop strings, if it has the target's tokenizer.
    """

    drafter: Any
    speculation: SpeculationConfig
    stats: ServingStats
    stop_texts: StopTexts

    @classmethod
    def of(
        cls,
        manager: api.ContinuousBatchingManager,
        drafter: Any,
        speculation: SpeculationConfig,
        choosers: RequestChoosers,
        tokenizer: Any = None,
    ) -> "SpeculativeManager":
        """Make one of a manager that has not begun; this very object is returned.

        Args:
            manager (`ContinuousBatchingManager`): It.
            drafter ([`DSparkModel`]): The drafter, bound to its model.
            speculation ([`SpeculationConfig`]): How to speculate.
            choosers ([`RequestChoosers`]): Choose the tokens.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's, for stop strings.

        Raises:
            `ValueError`: If all requests have stop strings, and there is no tokenizer.
        """
        manager.__class__ = cls
        manager.drafter, manager.speculation, manager.stats = drafter, speculation, ServingStats()
        manager._choosers, manager._asked, manager.stop_texts = choosers, {}, StopTexts(tokenizer)
        manager._check_stops(RequestOptions.of({"stop_strings": manager.generation_config.stop_strings}))
        manager._vocab_size = manager.model.get_input_embeddings().weight.shape[0]
        # Each request is processed by its own options, when its drafts are judged.
        manager.logit_processor = _NoProcessors(LogitsProcessorList())
        drafter.last_stats = manager.stats
        return manager

    def add_request(
        self, input_ids: Sequence[int], request_id: str | None = None, *args: Any, **kwargs: Any
    ) -> str | None:
        """As of transformers, for a request that can be served.

        Args:
            input_ids (`Sequence[int]`): The prompt.
            request_id (`str`, *optional*): Its name.
            args, kwargs: As of transformers. A request may have its own `do_sample`, `temperature` (0 takes the most
                likely tokens), `top_k`, `top_p`, `min_p`, `seed` (its draws are then the same whoever else is served)
                and `stop_strings` (its answer ends with the token that completes one of them).

        Raises:
            `ValueError`: If the prompt is empty or holds tokens that there are not, an option is out of range, or a
                request of this name is under way.
        """
        ids = _whole_numbers(input_ids)
        wrong = [token for token in ids if not (isinstance(token, int) and 0 <= token < self._vocab_size)]
        if wrong or not ids:
            raise ValueError(
                f"A prompt must be token ids from 0 to {self._vocab_size - 1}, at least one, got "
                f"{wrong[0] if wrong else 'none'!r}. Encode it with the target's tokenizer."
            )
        known = () if self.batch_processor is None else self.batch_processor.scheduler
        if known and (request_id in known.active_requests or request_id in known.waiting_requests):
            raise ValueError(f"A request {request_id!r} is under way: give this one another name.")
        given = dict(zip(_NOT_OPTIONS, args, strict=False)) | kwargs | self._asked.pop(request_id, {})
        max_new_tokens = given.get("max_new_tokens")
        if max_new_tokens is not None and not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise ValueError(f"max_new_tokens must be a positive int, got {max_new_tokens!r}.")
        options = self._options({name: value for name, value in given.items() if name not in _NOT_OPTIONS})
        others = {name: value for name, value in given.items() if name in _NOT_OPTIONS}
        return super().add_request(ids, request_id, **others, **{OPTIONS: options})

    def ask(self, request_id: str, **options: Any) -> None:
        """Give a request options of its own before it is added, by those who add it without any.

        Args:
            request_id (`str`): Its name.
            options: As of [`SpeculativeManager.add_request`].

        Raises:
            `ValueError`: If an option is out of range.
        """
        self._options(options)
        self._asked[request_id] = options

    def _options(self, given: dict[str, Any]) -> RequestOptions:
        options = RequestOptions.of({"stop_strings": self.generation_config.stop_strings, **given})
        self._choosers.of(options)
        self._check_stops(options)
        if options.seed is not None and self.num_return_sequences > 1:
            raise ValueError("With a seed all num_return_sequences answers would be the same: leave one of them out.")
        return options

    def _check_stops(self, options: RequestOptions) -> None:
        if options.stop_strings and self.stop_texts.tokenizer is None:
            raise ValueError(
                f"stop_strings={list(options.stop_strings)!r} are looked for in decoded text: pass the target's "
                "tokenizer, too, as tokenizer=..."
            )

    def register_result_handler(self, request_id: str, callback: Callable) -> None:
        """As of transformers; what a request has made before goes to the handler too, and is not lost.

        Args:
            request_id (`str`): The request.
            callback (`Callable`): Gets its outputs, one longer than the other.
        """
        num_seen = -1

        def take(output: Any) -> None:
            nonlocal num_seen
            if len(output.generated_tokens) > num_seen or output.is_finished():
                num_seen = len(output.generated_tokens)
                callback(output)

        super().register_result_handler(request_id, take)
        router, others = self.output_router, []
        while not router.output_queue.empty():
            others.append(router.output_queue.get_nowait())
        for output in others:
            if output.request_id == request_id:
                # Those that come from now on wait for the caller to go on.
                take(output)
                if output.is_finished():
                    router.result_handlers.pop(request_id, None)
            else:
                router.output_queue.put(output)

    def _create_batch_processor(self) -> api.ContinuousBatchProcessor:
        config = self.continuous_batching_config
        if self.batch_processor is None and config.num_blocks is None and config.allow_block_sharing:
            # What the drafter keeps of shared blocks takes its part of the memory that the cache may have.
            config.max_memory_percent *= _part_of_cache(self.model, self.drafter)
        processor = super()._create_batch_processor()
        if isinstance(processor, DraftProcessor):
            return processor
        blocks = shared_blocks(processor.cache)
        drafter = StepDrafter(self.model, self.drafter, self.speculation, self._choosers, self.stats, blocks)
        scheduler, inputs, runner = processor.scheduler, processor.inputs_and_outputs, processor.model_runner
        scheduler.__class__ = DRAFT_SCHEDULERS[type(scheduler)]
        processor.__class__, inputs.__class__, runner.__class__ = DraftProcessor, DraftInputs, DraftRunner
        scheduler.drafter, scheduler.is_drafted = drafter, False
        inputs.scheduler = scheduler
        runner.taps, runner.processor = Taps(self.model, self.drafter.config.target_layer_ids), processor
        processor.drafter, processor.stats, processor.in_step = drafter, self.stats, []
        processor.stop_texts = self.stop_texts
        for allocator in processor.cache.cache_allocators.values():
            if allocator.layer_type == "sliding_attention":
                allocator.__class__, allocator.slack = DraftRing, self.drafter.config.num_slots + 1
        return processor

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        try:
            return super()._generation_loop_body(batch_processor, bootstrapping)
        except Exception as error:
            api.logger.error(f"A step has failed: {error}", exc_info=True)
            batch_processor.fail_step(error)
            return True


def _whole_numbers(values: Sequence[Any]) -> list[Any]:
    """Values as ints, those of other libraries too; what is none stays what it is."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return list(values)


class _NoProcessors(ContinuousBatchingLogitsProcessorList):
    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """A request's options were looked at when it was added."""


def make_choosers(
    model: PreTrainedModel, generation_config: GenerationConfig, speculation: SpeculationConfig
) -> RequestChoosers:
    """What chooses tokens by a config.

    Args:
        model (`PreTrainedModel`): The target.
        generation_config (`GenerationConfig`): The options of all requests.
        speculation ([`SpeculationConfig`]): How to speculate.

    Raises:
        `ValueError`: If processors are asked for that look at the text so far.
    """
    vocab_size = model.get_output_embeddings().weight.shape[0]
    choosers = RequestChoosers(generation_config, model._get_logits_processor, speculation, vocab_size)
    choosers.of(RequestOptions())
    return choosers


def shared_blocks(cache: Any) -> BlockStates | None:
    """What the drafter keeps for requests that share blocks of a cache.

    Args:
        cache (`PagedAttentionCache`): The cache.

    Returns:
        [`BlockStates`], or None where requests share nothing, as where layers have windows.
    """
    if not cache.use_prefix_sharing:
        return None
    (allocator,) = cache.cache_allocators.values()
    num_blocks = (cache.num_sectors + cache.pool.num_reserved_sectors) * allocator.blocks_per_sector
    tables, size = allocator.block_table, allocator.tokens_per_page
    return BlockStates(lambda request_id: tables.get(request_id, ()), size, num_blocks)


def _part_of_cache(model: PreTrainedModel, drafter: Any) -> float:
    """Of the memory for a cache and [`BlockStates`] beside it, the part of the cache."""
    config = model.config.get_text_config()
    width = find_num_key_value_heads(config) * find_head_dim(config) * 2 * config.num_hidden_layers
    return width / (width + drafter.config.hidden_size)


def one_at_a_time(config: ContinuousBatchingConfig | None) -> ContinuousBatchingConfig:
    """A config whose steps follow each other, without captured graphs: a step depends on what the last one took.

    Args:
        config (`ContinuousBatchingConfig`, *optional*): The caller's, which is not changed.

    Raises:
        `ValueError`: If it asks for what does not go with drafts.
    """
    config = ContinuousBatchingConfig() if config is None else copy.copy(config)
    for name, why in (
        ("use_async_batching", "the next step depends on what this one takes"),
        ("use_cuda_graph", "steps have other sizes each time"),
        ("varlen_compile_config", "steps have other sizes each time"),
        ("decode_compile_config", "steps have other sizes each time"),
        ("default_compile_level", "steps have other sizes each time"),
        ("return_logprobs", "the manager has them for one token a step"),
    ):
        value = getattr(config, name)
        if value not in (None, False, 0, (False, False)):
            raise ValueError(f"{name}={value!r} is not supported together with a drafter, since {why}: leave it out.")
    config.use_async_batching, config.use_cuda_graph = False, False
    return config
