"""With which command serving engines load a drafter's flat layout."""

import json
from dataclasses import dataclass

from dspark_hf.publishing.engines import ENGINES, Checkpoint
from dspark_hf.publishing.folder import num_slots


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
    checkpoint: Checkpoint, repo_id: str, target: str, subfolder: str = "", *, is_adapter: bool = False
) -> list[Serving]:
    """What vLLM and SGLang need to be told.

    Args:
        checkpoint ([`Checkpoint`]): The drafter.
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
        "num_speculative_tokens": num_slots(checkpoint.config),
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
        _serving("vLLM", vllm, ENGINES["vllm"].problems(checkpoint)),
        _serving("SGLang", sglang, ENGINES["sglang"].problems(checkpoint)),
    ]


def _serving(engine: str, command: str, problems: list[str]) -> Serving:
    return Serving(engine, None, tuple(problems)) if problems else Serving(engine, command)
