"""A manager of transformers that speculates."""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.continuous_batching import continuous_api as api
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.modeling.taps import Taps
from dspark_hf.serving.choosing import RequestChoosers
from dspark_hf.serving.counts import ServingStats
from dspark_hf.serving.drafting import StepDrafter

from .inputs import DraftInputs
from .processor import DraftProcessor, DraftRunner
from .ring import DraftRing
from .scheduling import DRAFT_SCHEDULERS


class SpeculativeManager(api.ContinuousBatchingManager):
    """transformers' manager, with a drafter for all of its requests.

    Made by `model.init_continuous_batching(assistant_model=drafter)`.

    Attributes:
        drafter ([`DSparkModel`]): The drafter.
        speculation ([`SpeculationConfig`]): How it speculates.
        stats ([`ServingStats`]): What was done so far.
    """

    drafter: Any
    speculation: SpeculationConfig
    stats: ServingStats

    @classmethod
    def of(
        cls,
        manager: api.ContinuousBatchingManager,
        drafter: Any,
        speculation: SpeculationConfig,
        choosers: RequestChoosers,
    ) -> "SpeculativeManager":
        """Make one of a manager that has not begun; this very object is returned.

        Args:
            manager (`ContinuousBatchingManager`): It.
            drafter ([`DSparkModel`]): The drafter, bound to its model.
            speculation ([`SpeculationConfig`]): How to speculate.
            choosers ([`RequestChoosers`]): Choose the tokens.
        """
        manager.__class__ = cls
        manager.drafter, manager.speculation, manager.stats = drafter, speculation, ServingStats()
        manager._choosers, manager._asked = choosers, {}
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
                likely tokens), `top_k`, `top_p` and `min_p`.

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
        names = ("max_new_tokens", "streaming", "record_timestamps", "eos_token_id")
        given = dict(zip(names, args, strict=False)) | kwargs | self._asked.pop(request_id, {})
        max_new_tokens = given.get("max_new_tokens")
        if max_new_tokens is not None and not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
            raise ValueError(f"max_new_tokens must be a positive int, got {max_new_tokens!r}.")
        self._choosers.of({name: value for name, value in given.items() if name not in names})
        return super().add_request(ids, request_id, **given)

    def ask(self, request_id: str, **options: Any) -> None:
        """Give a request options of its own before it is added, by those who add it without any.

        Args:
            request_id (`str`): Its name.
            options: As of [`SpeculativeManager.add_request`].

        Raises:
            `ValueError`: If an option is out of range.
        """
        self._choosers.of(options)
        self._asked[request_id] = options

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
        processor = super()._create_batch_processor()
        if isinstance(processor, DraftProcessor):
            return processor
        drafter = StepDrafter(self.model, self.drafter, self.speculation, self._choosers, self.stats)
        scheduler, inputs, runner = processor.scheduler, processor.inputs_and_outputs, processor.model_runner
        scheduler.__class__ = DRAFT_SCHEDULERS[type(scheduler)]
        processor.__class__, inputs.__class__, runner.__class__ = DraftProcessor, DraftInputs, DraftRunner
        scheduler.drafter, scheduler.is_drafted = drafter, False
        inputs.scheduler = scheduler
        runner.taps, runner.processor = Taps(self.model, self.drafter.config.target_layer_ids), processor
        processor.drafter, processor.stats, processor.in_step = drafter, self.stats, []
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
    choosers.of({})
    return choosers


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
