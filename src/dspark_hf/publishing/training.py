"""How a drafter was trained, kept beside its weights as `training.json`."""

import dataclasses
import os
from pathlib import Path, PurePath
from typing import Any

from dspark_hf.commands import shorten_command, shorten_value
from dspark_hf.files import write_json
from dspark_hf.provenance import command_line, installed_versions

from .contents import TRAINING
from .folder import held_out_figures

# Where files lie and who watches says nothing about the drafter.
_SILENT = ("output_dir", "hub_", "logging_", "run_name", "report_to", "token", "trackio", "resume_from", "push_to_hub",
           "disable_tqdm", "log_level", "save_", "dataloader_", "local_rank", "ddp_", "eval_", "deepspeed", "use_cpu",
           "load_best", "metric_for", "greater_is", "project", "cache_dir")  # fmt: skip


def write_training_record(
    folder: str | os.PathLike,
    *,
    arguments: Any = None,
    data: list[str] | None = None,
    command: str | None = None,
    **figures: Any,
) -> Path:
    """Write down how a drafter was trained, for its card.

    What its last evaluation found is taken from the folder (`eval_results.json`).

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        arguments (`TrainingArguments`, *optional*): Those that differ from their defaults are kept.
        data (`list[str]`, *optional*): Datasets or files; of a file its name is kept, of a URL neither user nor query.
        command (`str`, *optional*): The command; this process's by default. Secrets and folders are taken out.
        figures: Anything else that is known, JSON-able: `num_conversations=3000`, `steps=4300`, ...

    Returns:
        `Path`: The file.
    """
    if command is None:
        command = command_line()
    record = {
        "command": shorten_command(command),
        "data": None if data is None else [_public(name) for name in data],
        "arguments": None if arguments is None else _changed(arguments),
        **figures,
        "held_out": held_out_figures(Path(folder)) or None,
        "versions": installed_versions("dspark_hf", "torch", "transformers"),
    }
    path = Path(folder) / TRAINING
    write_json(path, {name: value for name, value in record.items() if value is not None})
    return path


def _public(name: str) -> str:
    return PurePath(name).name if Path(name).exists() else shorten_value(name)


def _changed(arguments: Any) -> dict[str, Any]:
    values, changed = arguments.to_dict(), {}
    for field in dataclasses.fields(arguments):
        value = values.get(field.name)
        is_default = field.default is not dataclasses.MISSING and value == field.default
        is_plain = isinstance(value, bool | int | float | str)
        if is_plain and field.init and not is_default and not field.name.startswith(_SILENT):
            changed[field.name] = shorten_value(value) if isinstance(value, str) else value
    return changed
