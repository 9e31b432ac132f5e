"""How the server generates: what transformers does, with counts of drafts, and requests by their own options."""

import copy
from typing import Any

from transformers import GenerationConfig
from transformers.cli.serving.utils import CBGenerateManager, GenerateManager, GenerationState

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.serving.counts import ServingStats
from dspark_hf.serving.options import REQUEST_OPTIONS
from dspark_hf.serving.quoting import quotable
from dspark_hf.serving.stop_texts import cut_at

from .stopping import stops_of, without_stops

# Where a request's seed is kept in its generation config, on its way from the handler.
SEED = "request_seed"


class DraftedState(GenerationState):
    """transformers' state of generation, whose managers count.

    Args:
        options: As of transformers.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._stats = ServingStats()

    @property
    def stats(self) -> ServingStats:
        """What was done so far."""
        batching = getattr(self._cb_manager, "manager", None)
        return self._stats if batching is None else batching.stats

    @property
    def is_batching(self) -> bool:
        """Whether requests are batched."""
        return self._continuous_batching

    @property
    def scheduler(self) -> Any:
        """Of the requests that are batched; None without."""
        processor = getattr(getattr(self._cb_manager, "manager", None), "batch_processor", None)
        return getattr(processor, "scheduler", None)

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """What generates for a model; arguments as of transformers."""
        if use_cb and self._cb_manager is None:
            self._cb_manager, self._cb_model_id = BatchedGeneration(cb_config=self._cb_config), model_id
        elif not use_cb and model_id not in self._generate_managers:
            self._generate_managers[model_id] = CountedGeneration(self._stats)
        return super().get_manager(model_id, use_cb)


class CountedGeneration(GenerateManager):
    """One request after the other by `generate()`.

    Args:
        stats ([`ServingStats`]): Where to count.
    """

    def __init__(self, stats: ServingStats):
        super().__init__()
        self._stats = stats

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str,
                           **kwargs: Any) -> Any:  # fmt: skip
        """As of transformers, without the stop text."""
        counted = self._counted(model, inputs, gen_config, request_id)
        made = super().generate_streaming(counted, processor, inputs, gen_config, request_id, **kwargs)
        return without_stops(gen_config, *made)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any,
                                     request_id: str) -> Any:  # fmt: skip
        """As of transformers, without the stop text."""
        counted = self._counted(model, inputs, gen_config, request_id)
        text, *others = await super().generate_non_streaming(counted, processor, inputs, gen_config, request_id)
        return cut_at(stops_of(gen_config), text), *others

    def _counted(self, model: Any, inputs: Any, gen_config: GenerationConfig, request_id: str) -> "_Counted":
        check_length(model, inputs)
        return _Counted(model, self._stats, request_id, vars(gen_config).pop(SEED, None))


class _Counted:
    """A model whose `generate()` notes what its drafter did, before anyone is told that the answer is complete."""

    def __init__(self, model: Any, stats: ServingStats, request_id: str, seed: int | None):
        self._model, self._stats, self._request_id = model, stats, request_id
        self._options = {} if seed is None else {"speculation": SpeculationConfig(seed=seed % 2**63)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, streamer: Any = None, **kwargs: Any) -> Any:
        try:
            told = None if streamer is None else _WithoutEnd(streamer)
            out = self._model.generate(streamer=told, **self._options, **kwargs)
        except Exception as error:
            # Without a text it may be transformers' own sign that the client has left.
            if streamer is None or not str(error):
                raise
            raise RuntimeError(quotable(str(error))) from error
        done = self._model.drafter.last_stats
        self._stats.add(done)
        num_accepted = sum(done.accepted_lens)
        self._stats.answers.note(self._request_id, num_accepted, done.verified_tokens - num_accepted)
        if streamer is not None:
            streamer.end()
        return out


class _WithoutEnd:
    """A streamer whose end is told later."""

    def __init__(self, streamer: Any):
        self.put = streamer.put

    def end(self) -> None:
        pass


class BatchedGeneration(CBGenerateManager):
    """Many requests at once, each by its own options."""

    @property
    def manager(self) -> Any:
        """The [`SpeculativeManager`]; None before the first request."""
        return self._cb

    def init_cb(self, model: Any, gen_config: GenerationConfig) -> None:
        """As of transformers; what a first request asks for holds for it alone."""
        super().init_cb(model, batch_config(model))

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str,
                           **kwargs: Any) -> Any:  # fmt: skip
        """As of transformers, without the stop text."""
        self._ask(model, processor, inputs, gen_config, request_id)
        made = super().generate_streaming(model, processor, inputs, gen_config, request_id, **kwargs)
        return without_stops(gen_config, *made)

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any,
                                     request_id: str) -> Any:  # fmt: skip
        """As of transformers, without the stop text."""
        self._ask(model, processor, inputs, gen_config, request_id)
        text, *others = await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
        return cut_at(stops_of(gen_config), text), *others

    def _ask(self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str) -> None:
        check_length(model, inputs)
        self._cb.stop_texts.tokenizer = getattr(processor, "tokenizer", processor)
        names = REQUEST_OPTIONS if gen_config.do_sample else ("do_sample",)
        options = {name: getattr(gen_config, name) for name in names}
        options |= {"seed": getattr(gen_config, SEED, None), "stop_strings": stops_of(gen_config) or None}
        self._cb.ask(request_id, **{name: value for name, value in options.items() if value is not None})


def batch_config(model: Any) -> GenerationConfig:
    """The options of all requests of a batch: the model's own, greedy where a request asks for nothing else.

    Args:
        model (`PreTrainedModel`): The target.

    Returns:
        `GenerationConfig`.
    """
    config = copy.deepcopy(model.generation_config)
    # Stop strings go with each request.
    config.do_sample, config.stop_strings = False, None
    return config


def check_length(model: Any, inputs: Any) -> None:
    """Look whether a prompt leaves room for an answer.

    Args:
        model (`PreTrainedModel`): The target.
        inputs (`dict`): The prompt's `input_ids`.

    Raises:
        `ValueError`: If it does not.
    """
    ids = inputs["input_ids"]
    length = len(ids) if isinstance(ids, list) else ids.shape[-1]
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length >= most:
        raise ValueError(
            f"The prompt has {length} tokens, and the model takes {most} with its answer: send a shorter one."
        )
