"""Which engines load a drafter's checkpoint, and why not: each engine's demands are one file."""

from collections.abc import Callable
from dataclasses import dataclass

from . import llama_cpp, sglang, speculators, vllm
from .checkpoint import CONVERT, Checkpoint


@dataclass(frozen=True)
class Engine:
    """An engine, as of the release that was read.

    Args:
        name (`str`): Its name.
        release (`str`): The release, or what was read instead.
        problems (`Callable`): Why it does not load a [`Checkpoint`], phrases that go on after its name.
        serves (`bool`): Whether it generates; others only train or convert.
    """

    name: str
    release: str
    problems: Callable[[Checkpoint], list[str]]
    serves: bool = True


ENGINES = {
    "vllm": Engine("vLLM", "0.33", vllm.problems),
    "sglang": Engine("SGLang", "0.5.23", sglang.problems),
    "llama.cpp": Engine("llama.cpp", "its pull requests", llama_cpp.problems),
    "speculators": Engine("speculators", "0.9", speculators.problems, serves=False),
}


# Families whose block drafters no engine has a class for, of targets that take Qwen3-shaped ones too.
_UNSERVED = ("llama", "qwen3_5", "qwen3_5_text")


def get_engine(name: str) -> Engine:
    """An engine by the `name` that `--check` takes.

    Raises:
        `ValueError`: If there is none of this name.
    """
    if name not in ENGINES:
        raise ValueError(f"There are no demands of an engine called {name!r} here; known are {', '.join(ENGINES)}.")
    return ENGINES[name]


def not_served(checkpoint: Checkpoint) -> list[str]:
    """Which engines will not serve a drafter, and why, one sentence each.

    Args:
        checkpoint ([`Checkpoint`]): The drafter, as it is or will be saved.

    Returns:
        `list[str]`: None where all serve it.
    """
    found = {engine.name: engine.problems(checkpoint) for engine in ENGINES.values() if engine.serves}
    told = [f"{name} will not serve this drafter: {'; '.join(why)}." for name, why in found.items() if why]
    # A target of the same shape gets such layers by default, and its user may not mean to choose them.
    if len(told) == len(found) and checkpoint.layers in _UNSERVED and checkpoint.kind in ("dspark", "dflash"):
        told.append(
            f"No engine has {checkpoint.layers} draft layers: family=qwen3 makes a drafter of those they have."
        )
    return told


__all__ = ["CONVERT", "ENGINES", "Checkpoint", "Engine", "get_engine", "not_served"]
