"""Ways of generating that an evaluation compares on the same prompts."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import CompileConfig

from dspark_hf.data.cache.manifest import weights_digest
from dspark_hf.evaluation.running.runs import DecodingSettings, Run, timed_generate
from dspark_hf.evaluation.running.synthetic import with_acceptance
from dspark_hf.generation import SpeculationConfig

PLAIN = "plain"
# What `generate()` does by itself, and the drafter with nothing that hides how good or bad it is.
SPECULATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "alone": {"prompt_lookup": False, "policy": "fixed"},
}


@dataclass(frozen=True)
class Way:
    """One way of generating.

    Args:
        name (`str`): What it is called in tables.
        about (`dict`): What it is, JSON-able: its kind, options, and digests of weights.
        options (`dict`): Keyword arguments of `generate()`.
        drafter (`Any`, *optional*): A drafter of this library, whose stats are kept.
        target (`Any`, *optional*): The target in another form, such as another dtype.
        one_row (`bool`): Whether it takes one prompt at a time, and sits out larger batches.
        greedy_only (`bool`): Whether it sits sampling out.
        counts_passes (`bool`): Whether the target's forward passes are counted.
        warms_each (`bool`): Whether every call is run twice, and the second counts, since shapes are compiled.
        acceptance (`float`, *optional*): Rate at which drafts are made to stand.
    """

    name: str
    about: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    drafter: Any = None
    target: Any = None
    one_row: bool = False
    greedy_only: bool = False
    counts_passes: bool = False
    warms_each: bool = False
    acceptance: float | None = None

    def takes(self, temperature: float, batch_size: int) -> bool:
        """Whether it runs at such a `temperature`, in calls of `batch_size` prompts."""
        return not (self.one_row and batch_size > 1) and not (self.greedy_only and temperature > 0)

    def run(
        self,
        target: Any,
        inputs: dict[str, torch.Tensor],
        settings: DecodingSettings,
        *,
        seed: int,
        texts: list[list[int]] | None = None,
    ) -> Run:
        """Generate this way.

        Args:
            target (`PreTrainedModel`): The model.
            inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
            settings ([`DecodingSettings`]): Lengths and sampling.
            seed (`int`): Set before the call.
            texts (`list[list[int]]`, *optional*): Prompt and plain answer of each row, for drafts that are made to
                stand.

        Returns:
            [`Run`].
        """
        target = target if self.target is None else self.target
        options, drafter = dict(self.options), self.drafter
        if self.acceptance is not None:
            drafter = with_acceptance(drafter, texts or [], self.acceptance, seed)
        if drafter is not None:
            options["assistant_model"] = drafter
        if self.warms_each:
            timed_generate(target, inputs, settings, seed, options)
        run = timed_generate(target, inputs, settings, seed, options, counts_passes=self.counts_passes)
        return run if drafter is None else replace(run, stats=drafter.last_stats)


def plain_way(target: Any = None) -> Way:
    """Plain `generate()`: the baseline; of the `target` in another dtype, if that is given."""
    if target is None:
        return Way(PLAIN, {"kind": "plain", "cache": "dynamic"}, {"speculation": False})
    dtype = str(target.dtype).removeprefix("torch.")
    about = {"kind": "plain", "cache": "dynamic", "dtype": dtype}
    return Way(f"{PLAIN}, {dtype}", about, {"speculation": False}, target=target)


def static_way() -> Way:
    """Plain `generate()` with a static cache and compiled forward passes, which is what a GPU is compared with."""
    compiling = CompileConfig()
    compiling._compile_all_devices = True
    options = {"speculation": False, "cache_implementation": "static", "compile_config": compiling}
    return Way(f"{PLAIN}, static + compile", {"kind": "plain", "cache": "static, compiled"}, options, warms_each=True)


def lookup_way(num_tokens: int) -> Way:
    """transformers' own prompt lookup, which drafts up to `num_tokens` and takes one prompt at a time."""
    about = {"kind": "transformers' prompt lookup", "num_tokens": num_tokens}
    options = {"speculation": False, "prompt_lookup_num_tokens": num_tokens}
    return Way(f"prompt lookup ({num_tokens})", about, options, one_row=True, counts_passes=True)


def assistant_way(name: str, model: Any) -> Way:
    """transformers' assisted decoding with a smaller `model`, which tables call `name`, one prompt at a time."""
    about = {"kind": "assistant model", "model": name, "weights": weights_digest(model)}
    options = {"assistant_model": model}
    return Way(f"assistant {name}", about, options, one_row=True, counts_passes=True)


def drafter_way(name: str, drafter: Any, speculation: str = "default") -> Way:
    """A drafter, and how it is used.

    Args:
        name (`str`): The drafter's name.
        drafter ([`DSparkModel`]): The drafter, bound to the target.
        speculation (`str`, *optional*, defaults to `"default"`): A name of `SPECULATIONS`, or fields of
            [`SpeculationConfig`]: `max_draft_len=3,policy=fixed`.

    Raises:
        `ValueError`: If it names what does not exist.
    """
    fields = speculation_fields(speculation)
    about = {"kind": "drafter", "drafter": name, "weights": weights_digest(drafter), "speculation": fields}
    options = {"speculation": SpeculationConfig(**fields, record_drafts=True)}
    return Way(name if speculation == "default" else f"{name}, {speculation}", about, options, drafter)


def synthetic_way(name: str, drafter: Any, acceptance: float) -> Way:
    """A drafter whose drafts are made to stand at a rate, each given those before: the engine apart from a drafter.

    Greedy decoding only, behind a plain run of the same call, which says what stands.

    Args:
        name (`str`): What records call the drafter.
        drafter (`Any`): The drafter, which takes its time.
        acceptance (`float`): The rate, 0 to 1.

    Raises:
        `ValueError`: If the rate is not between 0 and 1.
    """
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"A synthetic acceptance must be a rate from 0 to 1, got {acceptance}.")
    fields = SPECULATIONS["alone"]
    about = {"kind": "synthetic", "drafter": name, "acceptance": acceptance, "speculation": fields}
    options = {"speculation": SpeculationConfig(**fields, record_drafts=True)}
    return Way(f"synthetic {acceptance:g}", about, options, drafter, greedy_only=True, acceptance=acceptance)


def speculation_fields(speculation: str) -> dict[str, Any]:
    """Fields of [`SpeculationConfig`] that `speculation`, a name of `SPECULATIONS` or `KEY=VALUE,...`, stands for.

    Raises:
        `ValueError`: If it is neither, or a value is none of the field's.
    """
    if speculation in SPECULATIONS:
        return SPECULATIONS[speculation]
    known = {one.name for one in dataclasses.fields(SpeculationConfig)} - {"seed", "record_drafts"}
    fields: dict[str, Any] = {}
    for part in speculation.split(","):
        key, is_pair, value = part.strip().partition("=")
        if not is_pair or key not in known:
            raise ValueError(
                f"{speculation!r} is no way to speculate: give {' or '.join(SPECULATIONS)}, or KEY=VALUE,... of "
                f"{', '.join(sorted(known))}."
            )
        fields[key] = _value(value)
    SpeculationConfig(**fields)
    return fields


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
