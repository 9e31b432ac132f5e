"""The text of a card: `card_template.md`, and what goes into its places."""

import functools
import re
from pathlib import Path
from typing import Any

import jinja2

from dspark_hf.publishing.contents import ACCEPTANCE, CALIBRATION, RELIABILITY
from dspark_hf.publishing.engines import Checkpoint
from dspark_hf.publishing.evaluations import describe
from dspark_hf.publishing.folder import DrafterFolder, kind, num_slots
from dspark_hf.publishing.records import HEADS

from .facts import CardFacts
from .markdown import Markdown, code, fenced, quoted, table
from .serving import Serving, serving_commands

_PAPERS = {
    "DSpark": "https://arxiv.org/abs/2607.05147",
    "Domino": "https://arxiv.org/abs/2605.29707",
    "DFlash": "https://arxiv.org/abs/2602.06036",
    "EAGLE-3": "https://arxiv.org/abs/2503.01840",
}
# Of a training record, what is no row of its table.
_APART = ("command", "data", "arguments", "versions", "held_out")


def card_body(drafter: DrafterFolder, facts: CardFacts, base_model: str | None, pictures: list[str]) -> str:
    """Everything below the front matter.

    Args:
        drafter ([`DrafterFolder`]): The drafter.
        facts ([`CardFacts`]): What else is known.
        base_model (`str` or `None`): The target's repository, if known.
        pictures (`list[str]`): Names of the pictures that were drawn.
    """
    name = kind(drafter.config)
    what = f"{'an' if name == 'EAGLE-3' else 'a'} {name} drafter"
    target = base_model or drafter.config.get("target_name_or_path") or "its target"
    capital = what[0].upper() + what[1:]
    text = _template().render(
        facts=facts,
        name=name,
        paper=_PAPERS[name],
        what=what,
        capital=capital,
        title=(facts.repo_id or "").split("/")[-1] or f"{capital} for {target}",
        target=Markdown(f"[{target}](https://huggingface.co/{target})") if base_model else target,
        parts=_parts(drafter),
        usage=_usage(drafter, facts, base_model),
        **_serving(drafter, facts, base_model),
        **_training(drafter),
        **_results(drafter),
        **_calibration(drafter),
        calibration_place=_place(facts, CALIBRATION),
        acceptance=Markdown(_place(facts, ACCEPTANCE)) if ACCEPTANCE in pictures else None,
        reliability=Markdown(_place(facts, RELIABILITY)) if RELIABILITY in pictures else None,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def _template() -> jinja2.Template:
    # Whatever the template puts into the card is quoted, unless it was made as markdown.
    environment = jinja2.Environment(
        finalize=lambda value: "" if value is None else quoted(value),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(code=code, fenced=fenced, table=table)
    return environment.from_string(Path(__file__).with_name("card_template.md").read_text(encoding="utf-8"))


def _parts(drafter: DrafterFolder) -> list[str]:
    """What the drafter is made of, as far as its config says."""
    config = drafter.config
    size = f"{_count(drafter.num_parameters)} parameters"
    if drafter.adapter is not None:
        below = drafter.adapter.get("base_model_name_or_path")
        size = f"a {drafter.adapter.get('peft_type', 'PEFT')} adapter of {size}" + (f" on {below}" if below else "")
    parts = [size]
    if {"num_hidden_layers", "model_type", "hidden_size"} <= set(config):
        layers = "layer" if config["num_hidden_layers"] == 1 else "layers"
        parts.append(
            f"{config['num_hidden_layers']} {config['model_type']}-shaped {layers} of width {config['hidden_size']}"
        )
    taps = f"taps after layers {', '.join(map(str, config['target_layer_ids']))}"
    parts.append(
        taps + (f" of {config['num_target_layers']}, counted from 0" if config.get("num_target_layers") else "")
    )
    parts.append(f"up to {num_slots(config)} drafts a round")
    if config.get("markov_rank"):
        head = HEADS[config.get("markov_head_type") or "vanilla"]
        parts.append(f"{head} sequential head of rank {config['markov_rank']}")
    if config.get("enable_confidence_head"):
        parts.append("a confidence head")
    if config.get("draft_vocab_size"):
        parts.append(f"a draft vocabulary of {config['draft_vocab_size']:,} of {config['vocab_size']:,} tokens")
    if config.get("dtype"):
        parts.append(config["dtype"])
    return parts


def _usage(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> Markdown:
    repo = facts.repo_id or "OWNER/THIS-REPOSITORY"
    if facts.subfolder:
        lines = [
            "from transformers import AutoTokenizer",
            "",
            "from dspark_hf import DSparkForCausalLM",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            f'model = DSparkForCausalLM.from_pretrained("{repo}", dtype="auto")',
            'inputs = tokenizer("Why is the sky blue?", return_tensors="pt")',
            "model.generate(**inputs, max_new_tokens=128)",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            "from dspark_hf import AutoDrafter",
            "",
            f'target = "{base_model}"' if base_model else 'target = "OWNER/TARGET"  # the model it was trained for',
            "tokenizer = AutoTokenizer.from_pretrained(target)",
            'model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")',
            f'drafter = AutoDrafter.from_pretrained("{repo}")',
            'inputs = tokenizer("Why is the sky blue?", return_tensors="pt")',
            "model.generate(**inputs, assistant_model=drafter, max_new_tokens=128)",
        ]
    return fenced("\n".join(lines), "python")


def _serving(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> dict[str, Any]:
    target = facts.repo_id if facts.subfolder and facts.has_target else base_model
    is_named = facts.repo_id is not None and target is not None
    checkpoint = Checkpoint(drafter.config, drafter.shapes)
    found = serving_commands(
        checkpoint, facts.repo_id or "", target or "", facts.subfolder, is_adapter=drafter.adapter is not None
    )
    # Why an engine cannot load it is true of any name; a command needs both.
    shown: list[Serving] = [one for one in found if is_named or one.command is None]
    return {"serving": shown, "served": any(one.command for one in found)}


def _training(drafter: DrafterFolder) -> dict[str, Any]:
    record = {name: value for name, value in (drafter.training or {}).items() if name != "held_out" and value}
    figures = {name: value for name, value in record.items() if name not in _APART}
    rows = {**(record.get("arguments") or {}), **figures}
    versions = {name: value for name, value in (record.get("versions") or {}).items() if value}
    return {
        "training": record,
        "training_rows": [[code(name), _figure(value)] for name, value in rows.items()],
        "versions": versions,
        "held_out": {
            name.replace("accept_rate_slot_", "slot "): f"{value:.3f}"
            for name, value in ((drafter.training or {}).get("held_out") or {}).items()
        },
    }


def _results(drafter: DrafterFolder) -> dict[str, Any]:
    rows = [row for name, record in drafter.evaluations.items() for row in describe(record, name)]
    columns = [column for column in rows[0] if any(row[column] for row in rows)] if rows else []
    made = [_made(name, record) for name, record in drafter.evaluations.items()]
    return {
        "columns": columns,
        "results": [[row[column] for column in columns] for row in rows],
        "made": [one for one in made if one["command"] or one["rest"]],
    }


def _made(name: str, record: dict[str, Any]) -> dict[str, Any]:
    provenance = record.get("provenance") or {}
    machine = provenance.get("machine") or {}
    place = machine.get("device_name")
    if place and machine.get("threads"):
        place = f"{place}, {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    commit = f"commit {provenance['commit'][:12]} of dspark_hf" if provenance.get("commit") else None
    prompting = f"prompts: {record['prompting']}" if record.get("prompting") else None
    baseline = f"speed against {record['baseline']}" if record.get("baseline") else None
    return {
        "name": name,
        "command": provenance.get("command"),
        "rest": "; ".join(str(part) for part in (commit, place, prompting, baseline) if part),
    }


def _calibration(drafter: DrafterFolder) -> dict[str, Any]:
    temperatures = (drafter.calibration or {}).get("temperatures", ())
    return {"temperatures": ", ".join(f"{one:.3g}" for one in temperatures)}


def _place(facts: CardFacts, name: str) -> str:
    return f"{facts.subfolder}/{name}" if facts.subfolder else name


def _count(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number:,}"


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
