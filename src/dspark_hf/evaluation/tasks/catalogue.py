"""The tasks that drafters are measured on: where the Hub has them, and how a row becomes what the user says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_CODE = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```"
_CONTEST = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests. You will NOT return anything except "
    "for the program\n\n### Question:\n{question_content}\n\n### Format: {format}\n\n### Answer: (use the provided "
    "format with backticks)"
)
_FREE = "Write your code in the following format:\n```python\n# YOUR CODE HERE\n```"
_STARTED = "You will use the following starter code to write the solution to the problem:\n```python\n{code}\n```"
# MT-Bench's own categories, which Spec-Bench takes together.
_CONVERSATION = "multi-turn conversation"
_OF_CONVERSATION = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


def _alpaca(row: Mapping[str, Any]) -> list[str]:
    return ["\n\nInput:\n".join(part for part in (row["instruction"], row.get("input")) if part)]


def _contest(row: Mapping[str, Any]) -> list[str]:
    code = row.get("starter_code")
    return [_CONTEST.format(**row, format=_STARTED.format(code=code) if code else _FREE)]


def spec_bench_category(category: str) -> str:
    """Spec-Bench's category of a row's `category`."""
    return _CONVERSATION if category in _OF_CONVERSATION else category


@dataclass(frozen=True)
class Task:
    """A set of prompts.

    Args:
        name (`str`): What it is called here.
        repo (`str`): The dataset's repository on the Hub.
        turns (`Callable`): What the user says in a row, turn by turn.
        split (`str`, *optional*, defaults to `"test"`): Its split.
        config (`str`, *optional*): Its configuration.
        files (`dict[str, str]`, *optional*): Files of the repository by category, where `datasets` does not find them
            by itself.
        size (`int`, *optional*): Prompts of the whole task, so that a cut is seen in a file too.
        category (`Callable`, *optional*): Maps the `category` of a row to the task's own; those without have none.
    """

    name: str
    repo: str
    turns: Callable[[Mapping[str, Any]], list[str]]
    split: str = "test"
    config: str | None = None
    files: Mapping[str, str] | None = None
    size: int | None = None
    category: Callable[[str], str] | None = None


# Prompts are worded as in DeepSpec's evaluation, whose figures the paper has.
TASKS = {
    task.name: task
    for task in (
        Task("gsm8k", "openai/gsm8k", lambda row: [row["question"] + _BOXED], config="main", size=1319),
        Task("math500", "HuggingFaceH4/MATH-500", lambda row: [row["problem"] + _BOXED], size=500),
        Task("aime25", "math-ai/aime25", lambda row: [row["problem"] + _BOXED], size=30),
        Task("mbpp", "google-research-datasets/mbpp", lambda row: [row["prompt"]], config="sanitized", size=257),
        Task("humaneval", "openai/openai_humaneval", lambda row: [_CODE.format(**row)], size=164),
        Task(
            "livecodebench",
            "livecodebench/code_generation_lite",
            _contest,
            files={"": "test*.jsonl"},
            size=1055,
        ),
        Task("mt-bench", "HuggingFaceH4/mt_bench_prompts", lambda row: list(row["prompt"]), split="train", size=80),
        Task("alpaca", "tatsu-lab/alpaca", _alpaca, split="train", size=52002),
        Task(
            "arena-hard-v2",
            "lmarena-ai/arena-hard-auto",
            lambda row: [row["prompt"]],
            files={"": "data/arena-hard-v2.0/question.jsonl"},
            size=750,
        ),
        Task(
            "spec-bench",
            "RedHatAI/speculator_benchmarks",
            lambda row: list(row.get("turns") or [row["prompt"]]),
            files={
                _CONVERSATION: "question.jsonl",
                **{name: f"{name}.jsonl" for name in ("translation", "summarization", "qa", "math_reasoning", "rag")},
            },
            size=480,
            category=spec_bench_category,
        ),
    )
}
