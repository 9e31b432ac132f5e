"""Which way a request's rounds are run."""

from dspark_hf.generation.request import Request

from .compiled import CompiledRunner
from .flat import FlatRunner
from .layout import PromptLayout
from .recording import StateRecorder
from .runner import TargetRunner


def choose_runner(request: Request, layout: PromptLayout, max_length: int) -> TargetRunner:
    """The runner of a generation.

    Args:
        request ([`Request`]): What is to be generated.
        layout ([`PromptLayout`]): Where the prompt stands.
        max_length (`int`): Most token ids of a row, those of the prompt included.

    Returns:
        [`CompiledRunner`] where rounds are to be compiled, [`TargetRunner`] where all rows must stay in a cache that
        others know of, [`FlatRunner`] otherwise.

    Raises:
        `ValueError`: If rounds are to be compiled and cannot be packed.
    """
    if request.speculation.compile:
        kind = CompiledRunner
    else:
        kind = TargetRunner if request.needs_all_rows else FlatRunner
    taps = request.drafter.config.target_layer_ids if request.has_draft_model else []
    recorder = StateRecorder(request.model, request.cache, request.generation_config)
    return kind(request.model, taps, request.model_kwargs, layout, max_length, recorder)
