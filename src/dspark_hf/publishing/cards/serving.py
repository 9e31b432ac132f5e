"""Which serving engines load a drafter's flat layout, and with which command."""

import json
from dataclasses import dataclass
from typing import Any

from dspark_hf.publishing.folder import num_slots

_ARCHITECTURES = ("Qwen3DSparkModel", "Gemma4DSparkModel")
_OTHER_LAYOUT = "it reads EAGLE-3 drafters in the layouts of speculators and SpecForge, and this is another"


@dataclass(frozen=True)
class Serving:
    """How an engine serves a target with a drafter.

    Args:
        engine (`str`): The engine.
        command (`str` or `None`): What to run; `None` if it cannot load this drafter.
        reasons (`tuple[str, ...]`): Why it cannot.
    """

    engine: str
    command: str | None
    reasons: tuple[str, ...] = ()


def serving_commands(
    config: dict[str, Any], repo_id: str, target: str, subfolder: str = "", *, is_adapter: bool = False
) -> list[Serving]:
    """What vLLM 0.33 and SGLang 0.5.23 need to be told.

    Args:
        config (`dict`): The drafter's `config.json`.
        repo_id (`str`): The drafter's or the composite repository.
        target (`str`): The target's repository.
        subfolder (`str`, *optional*): Where the drafter lies in it. SGLang looks into `dspark` by itself.
        is_adapter (`bool`, *optional*, defaults to `False`): Whether its weights are an adapter's.
    """
    if is_adapter:
        why = ("it reads whole drafters; merge_and_unload() makes one of an adapter and the drafter below",)
        return [Serving("vLLM", None, why), Serving("SGLang", None, why)]
    speculative = {
        "method": "dspark",
        "model": f"{repo_id.split('/')[-1]}/{subfolder}" if subfolder else repo_id,
        "num_speculative_tokens": num_slots(config),
        "draft_sample_method": "probabilistic",
    }
    vllm = f"vllm serve {target} --speculative-config '{json.dumps(speculative, separators=(',', ':'))}'"
    if subfolder:
        folder = repo_id.split("/")[-1]
        vllm = f'hf download {repo_id} --include "{subfolder}/*" --local-dir {folder}\n{vllm}'
    sglang = (
        f"python -m sglang.launch_server --model-path {target} --speculative-algorithm DSPARK "
        f"--speculative-draft-model-path {repo_id}"
    )
    return [
        _serving("vLLM", vllm, vllm_problems(config)),
        _serving("SGLang", sglang, sglang_problems(config)),
    ]


def not_served(config: dict[str, Any]) -> list[str]:
    """Which engines cannot load a drafter, and why, one sentence each.

    Args:
        config (`dict`): The drafter's config, as its `config.json` would have it.
    """
    problems = {"vLLM": vllm_problems(config), "SGLang": sglang_problems(config)}
    return [
        f"{engine} will not serve this drafter: {'; '.join(found)}." for engine, found in problems.items() if found
    ]


def vllm_problems(config: dict[str, Any]) -> list[str]:
    """Why vLLM cannot load a drafter; empty if it can."""
    problems = _shared_problems(config)
    if (config.get("markov_rank") or 0) > 0 and config.get("markov_head_type", "vanilla") != "vanilla":
        problems.append(f"it knows the vanilla sequential head only, not {config['markov_head_type']}")
    return problems


def sglang_problems(config: dict[str, Any]) -> list[str]:
    """Why SGLang cannot load a drafter; empty if it can."""
    problems = _shared_problems(config)
    if problems == [_OTHER_LAYOUT]:
        return problems
    if (config.get("markov_rank") or 0) == 0:
        problems.append("it needs a sequential head (markov_rank above 0)")
    if str(config.get("model_type", "")).startswith("gemma4"):
        problems.append("it has no Gemma 4 drafter")
    return problems


def _shared_problems(config: dict[str, Any]) -> list[str]:
    if "ttt_length" in config:
        return [_OTHER_LAYOUT]
    problems = []
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _ARCHITECTURES:
        problems.append(f"it has no {architecture}")
    if config.get("draft_vocab_size") not in (None, config.get("vocab_size")):
        problems.append("it reads no reduced draft vocabulary in this layout")
    return problems


def _serving(engine: str, command: str, problems: list[str]) -> Serving:
    return Serving(engine, None, tuple(problems)) if problems else Serving(engine, command)
