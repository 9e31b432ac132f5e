"""Which way a request's rounds are run."""

from .request import Request
from .static.runner import StaticRunner
from .target.flat import FlatRunner
from .target.layout import PromptLayout
from .target.recording import StateRecorder
from .target.runner import TargetRunner
from .tokens.processors import ON_DEVICE
from .tokens.stopping import StopRules


def why_ragged(request: Request, rules: StopRules) -> str | None:
    """What of a request for static rounds needs more of each token than those tell; None where nothing does.

    Args:
        request ([`Request`]): What is to be generated.
        rules ([`StopRules`]): When it ends.
    """
    for processor in request.logits_processor:
        if type(processor) not in ON_DEVICE:
            return f"{type(processor).__name__} may look at more than the scores of a token"
    if request.batch_size > 1 and request.streamer is not None:
        return "a streamer takes the tokens of several rows in step"
    if request.batch_size > 1 and rules.needs_level_rows:
        return "a stopping criterion sees the whole batch after every token"
    return None


def choose_runner(request: Request, layout: PromptLayout, rules: StopRules) -> TargetRunner:
    """The runner of a generation.

    Args:
        request ([`Request`]): What is to be generated.
        layout ([`PromptLayout`]): Where the prompt stands.
        rules ([`StopRules`]): When it ends.

    Returns:
        [`StaticRunner`] where rounds are to have fixed shapes and nothing needs more of them, [`TargetRunner`] where
        all rows must stay in a cache that others know of, [`FlatRunner`] otherwise.

    Raises:
        `ValueError`: If rounds are to have fixed shapes, and rows cannot be told apart.
    """
    if request.is_static and why_ragged(request, rules) is None:
        kind = StaticRunner
    else:
        kind = TargetRunner if request.needs_all_rows else FlatRunner
    taps = request.drafter.config.target_layer_ids if request.has_draft_model else []
    recorder = StateRecorder(request.model, request.cache, request.generation_config)
    return kind(request.model, taps, request.model_kwargs, layout, rules.max_length, recorder)
