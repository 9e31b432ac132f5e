"""`diagnose()`: why a drafter's drafts are not accepted, in one sentence, with the line to change."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dspark_hf.data.encoding_file import has_chat_form
from dspark_hf.data.template_options import check_template_options
from dspark_hf.evaluation.diagnosis.adapters import has_adapter
from dspark_hf.evaluation.diagnosis.reading import Reading, alternatives
from dspark_hf.evaluation.diagnosis.search import FITS, Search
from dspark_hf.evaluation.diagnosis.texts import PROMPTS, Texts, encode
from dspark_hf.evaluation.diagnosis.trial import Trial, try_reading
from dspark_hf.modeling.borrowing import is_made_for
from dspark_hf.modeling.wrappers import unwrap

_MOST_EVIDENCE = 12
# As `FITS`, where the drafter's norms are fresh, or its config names another target.
_FITS_IN_DOUBT = 0.4
# What can be wrong, by the field of a reading; and what no reading mends.
CAUSES = {
    "taps": "the taps are shifted",
    "from_anchor": "slots are counted otherwise",
    "block_size": "blocks have another length",
    "rope": "positions are rotated otherwise",
    "dtype": "the dtype is too narrow",
    "template": "prompts have another form",
    "target_adapter": "the target's adapter is new to it",
    "drafter_adapter": "the drafter's adapter does not fit",
    "another target": "it was made for another target",
    "untrained": "it was not trained",
    "misfit": "it fits under no reading",
}


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a drafter on a target.

    Args:
        causes (`list[str]`): Keys of `CAUSES`; empty if it fits.
        verdict (`str`): One sentence.
        remedy (`str`, *optional*): What to change: lines of the drafter's `config.json`, or what to do.
        evidence (`list[dict]`): What was tried: the drafter as it is, as it should be read, then single changes, the
            best first. Each with `reading`, `slot_1` (how often it is right), `accepted` (drafts that stand, on
            average), `num_slots` (of so many) and `is_finite` (whether scores were numbers).
        num_places (`int`): Blocks that were drafted for each.
    """

    causes: list[str]
    verdict: str
    remedy: str | None
    evidence: list[dict[str, Any]] = field(default_factory=list)
    num_places: int = 0

    @property
    def fits(self) -> bool:
        """Whether nothing is wrong."""
        return not self.causes


def diagnose(
    target: Any,
    drafter: Any,
    tokenizer: Any = None,
    prompts: Sequence[Any] | None = None,
    *,
    template: bool = True,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Find out why hardly any draft is accepted, or that nothing is wrong.

    The target answers a few prompts greedily. Then the drafter drafts at places of these answers, as its config says
    and otherwise: each tap shifted by one either way, the other slot convention, other block lengths, rope fields and
    dtypes, without an adapter, behind prompts of the other form. A change is blamed if drafts stand more often with it
    beyond doubt.

    Args:
        target (`PreTrainedModel`): The target, perhaps in a `PeftModel`.
        drafter ([`DSparkModel`]): The drafter of any kind; bound to the target here, also if it was made for another.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's; not needed for prompts of token ids.
        prompts (`Sequence`, *optional*): Text or messages, or lists of token ids of one length; a few questions by
            default.
        template (`bool`, *optional*, defaults to `True`): Whether prompts go through the chat template where there is
            one, as they do where the drafter is used.
        thinking, reasoning_effort (*optional*): As of [`~data.chat.prompt_ids`].
        report (`Callable`, *optional*): Called with each reading before it is tried.

    Returns:
        [`Diagnosis`].

    Raises:
        `ValueError`: If drafter and target have no sizes in common, the target answers with next to nothing, or the
            chat template does not know an option that is given.
    """
    if tokenizer is not None:
        check_template_options(tokenizer, thinking, reasoning_effort)
    unwrap(drafter).bind(target, check_name=False)
    prompts = PROMPTS if prompts is None else prompts
    has_template = tokenizer is not None and has_chat_form(tokenizer)
    template = template and has_template
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    texts = _TextsOf(target, tokenizer, prompts, template, form)

    def run(reading: Reading) -> Trial:
        if report is not None:
            report(_told(reading))
        return try_reading(drafter, reading, texts.of(reading))

    search = Search(run)
    found = search.best(list(alternatives(target, drafter, template=template, has_template=has_template)))
    has_learned, is_other = _has_learned(drafter), _is_for_another(drafter, target)
    # Under one of so many readings a drafter that knows nothing of this target may still guess what repeats itself.
    least = FITS if has_learned and not is_other else _FITS_IN_DOUBT
    if search.trial(found).is_finite and search.trial(found).skill >= least:
        return _misread(search, found, drafter, template) if found.changes else _fitting(search)
    if not has_learned:
        return _untrained(search)
    return _of_nothing_known(search, drafter, target)


class _TextsOf:
    """Answers in each form that a reading may ask for, made when first asked for."""

    def __init__(self, target, tokenizer, prompts, template, form) -> None:
        self._target, self._tokenizer, self._prompts = target, tokenizer, prompts
        self._template, self._form = template, form
        self._made: dict[tuple[bool, bool], Texts] = {}

    def of(self, reading: Reading) -> Texts:
        template = self._template if reading.template is None else reading.template
        adapter = reading.target_adapter is not False
        if (template, adapter) not in self._made:
            rows = self._prompts
            if self._tokenizer is not None:
                rows = encode(self._prompts, self._tokenizer, template=template, **self._form)
            texts = Texts(self._target, rows, self._tokenizer, adapter)
            if sum(len(text.anchors) for text in texts.texts) < 24:
                raise ValueError("The target's answers are too short to try a drafter on. Give other prompts.")
            self._made[template, adapter] = texts
        return self._made[template, adapter]


def _has_learned(drafter: Any) -> bool:
    """Whether any step of training was taken: fresh norms are all ones."""
    norms = [one for name, one in unwrap(drafter).named_parameters() if "norm" in name and name.endswith("weight")]
    is_fresh = all(bool((one == one.flatten()[0]).all()) for one in norms)
    return not norms or not is_fresh or has_adapter(drafter)


def _is_for_another(drafter: Any, target: Any) -> bool:
    """Whether the drafter's config says that it was made for another target."""
    config = unwrap(drafter).config
    is_named = config.target_name_or_path is not None or config.target_fingerprint is not None
    return is_named and is_made_for(config, unwrap(target)) is False


def _fitting(search: Search) -> Diagnosis:
    plain = search.trial(Reading())
    verdict = (
        f"The drafter fits as it is read: slot 1 is right in {plain.first_rate:.0%} of {plain.num_places} blocks."
    )
    return Diagnosis([], verdict, None, _evidence(search), plain.num_places)


def _untrained(search: Search) -> Diagnosis:
    plain = search.trial(Reading())
    verdict = (
        f"The drafter was not trained: its norms are those of a fresh one, and slot 1 is right in "
        f"{plain.first_rate:.0%} of {plain.num_places} blocks."
    )
    return Diagnosis(["untrained"], verdict, "Train it: dspark train.", _evidence(search), plain.num_places)


def _misread(search: Search, found: Reading, drafter: Any, template: bool) -> Diagnosis:
    plain, better = search.trial(Reading()), search.trial(found)
    causes = [name for name in CAUSES if name in found.changes]
    why = " and ".join(CAUSES[name] for name in causes)
    verdict = (
        f"{why[0].upper()}{why[1:]}: slot 1 is right in {better.first_rate:.0%} of the blocks "
        f"with the change below, and in {plain.first_rate:.0%} without ({better.mean_accepted:.2f} and "
        f"{plain.mean_accepted:.2f} drafts of a block stand)."
    )
    remedy = "\n".join(_line(name, found, drafter, template) for name in causes)
    return Diagnosis(causes, verdict, remedy, _evidence(search, found), plain.num_places)


def _of_nothing_known(search: Search, drafter: Any, target: Any) -> Diagnosis:
    plain, config = search.trial(Reading()), unwrap(drafter).config
    most = max(trial.first_rate for trial in search.tried.values())
    rate = (
        f"slot 1 is right in {plain.first_rate:.0%} of {plain.num_places} blocks, and in {most:.0%} at most otherwise"
    )
    made_for = config.target_name_or_path or "an unnamed target"
    if not plain.is_finite and not any(trial.is_finite for trial in search.tried.values()):
        verdict = f"The drafter's scores are no numbers; {rate}."
        remedy = "Load it in bfloat16 or float32 (--dtype); if it is the same there, fetch its weights again."
        return Diagnosis(["misfit"], verdict, remedy, _evidence(search), plain.num_places)
    if _is_for_another(drafter, target):
        name = unwrap(target).name_or_path or type(unwrap(target)).__name__
        verdict = f"The drafter was made for another target: for {made_for}, and this is {name}; {rate}."
        remedy = "Load the drafter of this target, or train this one on for it: dspark train."
        return Diagnosis(["another target"], verdict, remedy, _evidence(search), plain.num_places)
    verdict = f"The drafter (made for {made_for}) fits under no reading: {rate}. Perhaps it was hardly trained."
    remedy = "Train it on: dspark train; or load the drafter of this target."
    return Diagnosis(["misfit"], verdict, remedy, _evidence(search), plain.num_places)


def _line(name: str, reading: Reading, drafter: Any, template: bool) -> str:
    """What to change for one cause."""
    if name == "taps":
        return f'config.json: "target_layer_ids": {list(reading.taps)}'
    if name == "from_anchor":
        return f'config.json: "sample_from_anchor": {str(reading.from_anchor).lower()}'
    if name == "block_size":
        return f'config.json: "block_size": {reading.block_size}'
    if name == "rope":
        return f'config.json: "rope_parameters": {json.dumps(reading.rope_parameters)}'
    if name == "dtype":
        dtype = str(unwrap(drafter).dtype).removeprefix("torch.")
        is_half = unwrap(drafter).dtype == torch.float16
        return f"load the drafter in {'bfloat16 or ' if is_half else ''}float32 (--dtype), not {dtype}"
    if name == "template":
        return "give prompts raw" if template else "give prompts through the chat template (apply_chat_template)"
    if name == "target_adapter":
        return "train the drafter on for the target with its adapter, or generate without the adapter"
    return "load the drafter below its adapter, or an adapter that was trained on it"


def _evidence(search: Search, found: Reading | None = None) -> list[dict[str, Any]]:
    """What was tried: as the config says, what was found, then single changes, the best first, on as many slots."""
    num_slots = search.trial(Reading()).num_slots
    singles = [reading for reading in search.tried if len(reading.changes) == 1 and reading != found]
    singles.sort(key=lambda reading: -search.trial(reading).accepted(num_slots).mean())
    shown = [Reading(), *([found] if found is not None else []), *singles]
    return [_row(reading, search.trial(reading), num_slots) for reading in shown[:_MOST_EVIDENCE]]


def _row(reading: Reading, trial: Trial, num_slots: int) -> dict[str, Any]:
    return {
        "reading": _told(reading),
        "slot_1": trial.first_rate,
        "accepted": float(trial.accepted(num_slots).mean()),
        "num_slots": min(trial.num_slots, num_slots),
        "is_finite": trial.is_finite,
    }


def _told(reading: Reading) -> str:
    said = {name: value for name, value in vars(reading).items() if name in reading.changes}
    return ", ".join(f"{name} {_said(value)}" for name, value in said.items()) or "as the config says"


def _said(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return ", ".join(f"{key}={one}" for key, one in value)
    return str(list(value)) if isinstance(value, tuple) else str(value).removeprefix("torch.").lower()
