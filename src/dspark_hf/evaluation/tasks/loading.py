"""A task's prompts, from a file or from the Hub, with where they came from."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dspark_hf.data.conversation_files import iterate_rows
from dspark_hf.data.conversations import conversation_of
from dspark_hf.evaluation.tasks.catalogue import TASKS, Task


@dataclass(frozen=True)
class Question:
    """One prompt.

    Args:
        index (`int`): Its place in the whole task, from 0.
        turns (`list[list[dict]]`): The messages that each turn adds, ending with the user's.
        category (`str`, *optional*): Its category.
    """

    index: int
    turns: list[list[dict[str, str]]]
    category: str | None = None


@dataclass(frozen=True)
class LoadedTask:
    """A task's prompts, all of them or a cut.

    Args:
        name (`str`): Its name.
        questions (`list[Question]`): The prompts that are taken.
        num_available (`int`): How many the source has.
        source (`dict`): Where they came from: `repo` and `revision`, or `file` and `sha256`.
        size (`int`, *optional*): How many the whole task has, as far as it is known.
    """

    name: str
    questions: list[Question]
    num_available: int
    source: dict[str, Any] = field(default_factory=dict)
    size: int | None = None

    @property
    def cut(self) -> str | None:
        """What is said wherever figures of this task stand; `None` for the whole task."""
        whole = max(self.num_available, self.size or 0)
        return None if len(self.questions) >= whole else f"{len(self.questions)} of {whole}"

    def describe(self) -> dict[str, Any]:
        """The record of it, JSON-able, without the text."""
        text = repr([asdict(question) for question in self.questions])
        return {
            "name": self.name,
            "source": self.source,
            "num_prompts": len(self.questions),
            "num_available": self.num_available,
            "cut": self.cut,
            "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
            "indices": [question.index for question in self.questions],
        }


def load_task(name: str, *, limit: int | None = None, revision: str | None = None) -> LoadedTask:
    """Load a task.

    A limit takes prompts evenly spread over the whole task, so that every category is there.

    Args:
        name (`str`): A name of [`TASKS`], which is fetched from the Hub; a JSON lines file whose rows have `turns`
            (or anything that [`~data.conversations.conversation_of`] reads); or `NAME=FILE`, a file that stands for
            that task.
        limit (`int`, *optional*): Most prompts.
        revision (`str`, *optional*): Revision of the Hub's repository.

    Raises:
        `ValueError`: If there is no such task or file, it holds no prompts, or the Hub does not give it.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}. Leave it out to take the whole task.")
    known, path = named_place(name)
    if path is None and known in TASKS:
        task = TASKS[known]
        source, rows = _fetch(task, revision)
        questions = [_question(index, task, row) for index, row in enumerate(rows)]
        return LoadedTask(known, _spread(questions, limit), len(questions), source, task.size)
    is_named = path is not None
    path = Path(path if is_named else name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"There is no task and no file {str(path)!r}. Tasks are {', '.join(TASKS)}; a file has one JSON object "
            "with `turns` a line."
        )
    task = TASKS.get(known if is_named else path.stem)
    questions = [_read(index, task, place, row) for index, (place, row) in enumerate(iterate_rows(path))]
    source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    size = None if task is None else task.size
    return LoadedTask(known if is_named else path.stem, _spread(questions, limit), len(questions), source, size)


def load_tasks(names: list[str], *, folder: str | Path | None = None, limit: int | None = None) -> list[LoadedTask]:
    """Load several tasks; see [`load_task`].

    Args:
        names (`list[str]`): Their names; `all` stands for every task, save those that another name gives a file.
        folder (`str` or `Path`, *optional*): A folder of JSON lines files, one a task (`gsm8k.jsonl`), that are read
            in place of the Hub's.
        limit (`int`, *optional*): Most prompts of each.

    Returns:
        `list[LoadedTask]`: In the order of the names.

    Raises:
        `ValueError`: If one cannot be loaded, or two have the same name.
    """
    named = {named_place(name)[0] for name in names}
    others = [name for name in TASKS if name not in named]
    names = [one for name in names for one in (others if name == "all" else [name])]
    if folder is not None:
        names = [f"{name}={Path(folder) / name}.jsonl" if name in TASKS else name for name in names]
    tasks = [load_task(name, limit=limit) for name in names]
    twice = sorted({task.name for task in tasks if [one.name for one in tasks].count(task.name) > 1})
    if twice:
        raise ValueError(f"Two tasks are called {twice[0]}. Leave one out, or name it otherwise: NAME=FILE.")
    return tasks


def named_place(text: str) -> tuple[str, str | None]:
    """Name and place of `NAME=PLACE`.

    Args:
        text (`str`): Such a pair, or a name or path alone. A path that is there is one, though it holds a `=`.

    Returns:
        `tuple[str, str]`: The name and the place, or `text` and `None`.

    Raises:
        `ValueError`: If either is empty.
    """
    name, mark, place = text.partition("=")
    if not mark or Path(text).expanduser().exists():
        return text, None
    if not (name and place):
        raise ValueError(f"NAME=PLACE needs both a name and a place, got {text!r}.")
    return name, place


def _spread(questions: list[Question], limit: int | None) -> list[Question]:
    """Some of them, evenly."""
    total = len(questions)
    if limit is None or limit >= total:
        return questions
    return [questions[index * total // limit] for index in range(limit)]


def _read(index: int, task: Task | None, place: str, row: Mapping[str, Any]) -> Question:
    """A file's row, as [`~data.conversations.conversation_of`] reads it, without the answers it holds."""
    try:
        messages = conversation_of(row)["messages"]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    turns: list[list[dict[str, str]]] = []
    pending: list[dict[str, str]] = []
    for message in messages:
        if message["role"] != "assistant":
            pending.append(message)
        if message["role"] == "user":
            turns.append(pending)
            pending = []
    if not turns:
        raise ValueError(f"{place}: no user message to answer. Each row needs one.")
    return Question(index, turns, _category(task, row))


def _question(index: int, task: Task, row: Mapping[str, Any]) -> Question:
    try:
        turns = task.turns(row)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{task.repo}, row {index}: it has not what {task.name} had ({type(error).__name__}: {error}), but "
            f"{sorted(row)}. Name an older revision, or a JSONL file: {task.name}=FILE."
        ) from error
    return Question(index, [[{"role": "user", "content": turn}] for turn in turns], _category(task, row))


def _category(task: Task | None, row: Mapping[str, Any]) -> str | None:
    category = row.get("category")
    if task is None or task.category is None or not isinstance(category, str) or not category:
        return None
    return task.category(category)


def _fetch(task: Task, revision: str | None) -> tuple[dict[str, Any], Iterator[Mapping[str, Any]]]:
    """Where a task's rows are on the Hub, down to the commit, and the rows."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        sha = HfApi().dataset_info(task.repo, revision=revision).sha
        rows = list(_rows(datasets, task, sha))
    # What datasets raises on what is not there depends on where it looked.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise ValueError(
            f"Cannot fetch {task.name} from {task.repo}: {' '.join(str(error).split()).rstrip('.')}. Without the Hub, "
            f"give a JSONL file with `turns`: {task.name}=FILE."
        ) from error
    if not rows:
        raise ValueError(f"{task.repo} at {sha} holds no prompts of {task.name}. Name another revision, or a file.")
    return {"repo": task.repo, "revision": sha, "config": task.config, "split": task.split}, iter(rows)


def _rows(datasets: Any, task: Task, sha: str) -> Iterator[Mapping[str, Any]]:
    if task.files is None:
        yield from datasets.load_dataset(task.repo, task.config, split=task.split, revision=sha)
        return
    for category, file in task.files.items():
        # Some columns of these files are of no one type, so lines are read one by one.
        for row in datasets.load_dataset(task.repo, data_files=file, split="train", revision=sha):
            yield {**row, **({"category": category} if category else {})}
