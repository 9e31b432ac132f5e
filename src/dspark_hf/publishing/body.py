"""The text of a card, section by section."""

from typing import Any

from .evaluations import describe
from .facts import CardFacts
from .folder import DrafterFolder, kind, num_slots
from .plots import ACCEPTANCE, RELIABILITY
from .serving import serving_commands

_HEADS = {"vanilla": "a vanilla", "gated": "a gated", "rnn": "a recurrent"}
_PAPERS = {
    "DSpark": "https://arxiv.org/abs/2607.05147",
    "DFlash": "https://arxiv.org/abs/2602.06036",
    "EAGLE-3": "https://arxiv.org/abs/2503.01840",
}


def card_body(drafter: DrafterFolder, facts: CardFacts, base_model: str | None, pictures: list[str]) -> str:
    """Everything below the front matter.

    Args:
        drafter ([`DrafterFolder`]): The drafter.
        facts ([`CardFacts`]): What else is known.
        base_model (`str` or `None`): The target's repository, if known.
        pictures (`list[str]`): Names of the pictures that were drawn.
    """
    sections = [
        _head(drafter, facts, base_model),
        _use(drafter, facts, base_model),
        _serve(drafter, facts, base_model),
        _training(drafter),
        _results(drafter, facts, pictures),
        _calibration(drafter, facts, pictures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> str:
    name = kind(drafter.config)
    what = f"{'an' if name == 'EAGLE-3' else 'a'} {name} drafter"
    target = _target_name(drafter, base_model)
    capital = what[0].upper() + what[1:]
    title = (facts.repo_id or "").split("/")[-1] or f"{capital} for {target}"
    linked = f"[{target}](https://huggingface.co/{target})" if base_model else target
    first = f"{linked} with {what} (`{facts.subfolder}/`)" if facts.subfolder else f"{capital} for {linked}"
    is_named = facts.subfolder and not facts.has_target
    place = " The target's weights are loaded from its own repository." if is_named else ""
    return (
        f"# {title}\n\n{first}, for speculative decoding ([{name}]({_PAPERS[name]})). It makes generation faster; "
        f"what is generated stays the target's own.{place}\n\nThe drafter: {'; '.join(_parts(drafter))}."
    )


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
    taps = f"taps after layers {_listed(config['target_layer_ids'])}"
    parts.append(
        taps + (f" of {config['num_target_layers']}, counted from 0" if "num_target_layers" in config else "")
    )
    parts.append(f"up to {num_slots(config)} drafts a round")
    if config.get("markov_rank"):
        head = _HEADS[config.get("markov_head_type", "vanilla")]
        parts.append(f"{head} sequential head of rank {config['markov_rank']}")
    if config.get("enable_confidence_head"):
        parts.append("a confidence head")
    if config.get("draft_vocab_size"):
        parts.append(f"a draft vocabulary of {config['draft_vocab_size']:,} of {config['vocab_size']:,} tokens")
    if config.get("dtype"):
        parts.append(config["dtype"])
    return parts


def _use(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> str:
    if facts.repo_id is None or not (facts.subfolder or base_model):
        return ""
    repo = facts.repo_id
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
            f'tokenizer = AutoTokenizer.from_pretrained("{base_model}")',
            f'model = AutoModelForCausalLM.from_pretrained("{base_model}", dtype="auto")',
            f'drafter = AutoDrafter.from_pretrained("{repo}")',
            'inputs = tokenizer("Why is the sky blue?", return_tensors="pt")',
            "model.generate(**inputs, assistant_model=drafter, max_new_tokens=128)",
        ]
    return "\n".join(["## Use", "", "```python", *lines, "```"])


def _serve(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> str:
    target = facts.repo_id if facts.subfolder and facts.has_target else base_model
    # Engines read whole drafters (merge_and_unload() makes one of an adapter), and EAGLE-3 in other packagings.
    if facts.repo_id is None or target is None or drafter.adapter is not None or kind(drafter.config) == "EAGLE-3":
        return ""
    parts = ["## Serve"]
    for one in serving_commands(drafter.config, facts.repo_id, target, facts.subfolder):
        if one.command is None:
            parts.append(f"{one.engine} cannot load this drafter: {'; '.join(one.reasons)}.")
        else:
            parts.append(f"With {one.engine}:\n\n```bash\n{one.command}\n```")
    return "\n\n".join(parts)


def _training(drafter: DrafterFolder) -> str:
    record = drafter.training
    if record is None:
        return ""
    parts = ["## How it was trained"]
    if record.get("data"):
        parts.append(f"Data: {_listed([f'`{name}`' for name in record['data']])}.")
    if record.get("command"):
        parts.append(f"```bash\n{record['command']}\n```")
    known = {"command", "data", "arguments", "versions"}
    figures = {name: value for name, value in record.items() if name not in known}
    rows = {**record.get("arguments", {}), **figures}
    if rows:
        parts.append(_table(["", ""], [[f"`{name}`", _number(value)] for name, value in rows.items()]))
    versions = record.get("versions") or {}
    if versions:
        parts.append("Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items() if value) + ".")
    return "\n\n".join(parts)


def _results(drafter: DrafterFolder, facts: CardFacts, pictures: list[str]) -> str:
    if not drafter.evaluations:
        return ""
    rows = [describe(record, name) for name, record in drafter.evaluations.items()]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    parts = [
        "## What it reaches",
        "tau is the mean number of tokens per round, the target's own included; 1 is plain generation."
        + (
            " Speed is tokens per second against plain `generate()`, median over prompts."
            if "speed" in columns
            else ""
        ),
        _table(columns, [[row[column] for column in columns] for row in rows]),
    ]
    if ACCEPTANCE in pictures:
        parts.append(f"![How often slots are accepted]({_place(facts, ACCEPTANCE)})")
    made = [_made(name, record.get("provenance") or {}) for name, record in drafter.evaluations.items()]
    if any(made):
        parts.append("How these figures were made:\n\n" + "\n".join(line for line in made if line))
    return "\n\n".join(parts)


def _made(name: str, provenance: dict[str, Any]) -> str:
    machine = provenance.get("machine") or {}
    place = machine.get("device_name")
    if place and machine.get("threads"):
        place += f", {machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    parts = [
        f"`{provenance['command']}`" if provenance.get("command") else None,
        f"commit {provenance['commit'][:12]}" if provenance.get("commit") else None,
        place,
    ]
    known = "; ".join(part for part in parts if part)
    return f"* {name}: {known}" if known else ""


def _calibration(drafter: DrafterFolder, facts: CardFacts, pictures: list[str]) -> str:
    parts = []
    if drafter.calibration is not None:
        temperatures = _listed([f"{one:.3g}" for one in drafter.calibration["temperatures"]])
        parts.append(
            f"`{_place(facts, 'calibration.json')}` has one temperature a slot ({temperatures}): the calibrated "
            "confidence of slot k is sigmoid(logit / temperature)."
        )
    if RELIABILITY in pictures:
        parts.append(
            "Confidence before calibration against acceptance, of slots whose predecessors were all accepted:\n\n"
            f"![Confidence against acceptance]({_place(facts, RELIABILITY)})"
        )
    return "\n\n".join(["## Does it know when it is right?", *parts]) if parts else ""


def _place(facts: CardFacts, name: str) -> str:
    return f"{facts.subfolder}/{name}" if facts.subfolder else name


def _target_name(drafter: DrafterFolder, base_model: str | None) -> str:
    return base_model or drafter.config.get("target_name_or_path") or "its target"


def _listed(items: list[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _count(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number:,}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
