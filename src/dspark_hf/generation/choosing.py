"""Which way a request's rounds are run."""

import warnings

from .request import Request
from .static.possible import NotStatic, why_not_here
from .static.runner import StaticRunner
from .target.flat import FlatRunner
from .target.layout import PromptLayout
from .target.recording import StateRecorder
from .target.runner import TargetRunner
from .tokens.processors import ON_DEVICE
from .tokens.stopping import StopRules


def why_ragged(request: Request, rules: StopRules) -> str | None:
    """What of a request for static rounds needs others; None where nothing does.

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
    why = why_not_here(request.model, request.synced_gpus)
    if why is not None and not request.may_be_ragged:
        tell_ragged(why)
    return why


def tell_ragged(why: str) -> None:
    """Warn that static rounds were asked for and others are run, which nothing in the call says.

    Args:
        why (`str`): What keeps rounds from being static.
    """
    warnings.warn(f"Rounds are not static, as was asked for: {why}.", stacklevel=2)


def choose_runner(request: Request, layout: PromptLayout, rules: StopRules) -> tuple[TargetRunner, str | None]:
    """The runner of a generation.

    Args:
        request ([`Request`]): What is to be generated.
        layout ([`PromptLayout`]): Where the prompt stands.
        rules ([`StopRules`]): When it ends.

    Returns:
        `tuple(TargetRunner, str or None)`: A [`StaticRunner`] where rounds are to have fixed shapes and nothing needs
        more of them, a [`TargetRunner`] where all rows must stay in a cache that others know of, a [`FlatRunner`]
        otherwise; and what keeps rounds from being static that were to be.

    Raises:
        [`NotStatic`]: If rounds must have fixed shapes, and rows cannot be told apart.
    """
    taps = request.drafter.config.target_layer_ids if request.has_draft_model else []
    recorder = StateRecorder(request.model, request.cache, request.generation_config)
    given = request.model, taps, request.model_kwargs, layout, rules.max_length, recorder
    why = request.why_ragged
    if request.is_static:
        why = why_ragged(request, rules)
        if why is None:
            try:
                return StaticRunner(*given), None
            except NotStatic as error:
                if not request.may_be_ragged:
                    raise
                why = error.what
    return (TargetRunner if request.needs_all_rows else FlatRunner)(*given), why
