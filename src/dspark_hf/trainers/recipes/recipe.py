"""Recipes: a short YAML file that says which drafter to train, on what, and how."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, PreTrainedConfig

from dspark_hf.files import read_text, write_text
from dspark_hf.messages import cut_middle, shown
from dspark_hf.modeling import ALGORITHMS, DraftModel
from dspark_hf.modeling.families import DEFAULT_FAMILY, FAMILIES
from dspark_hf.trainers.arguments import DraftTrainingArguments

from .consent import check_consent, check_no_token
from .yaml_text import parse_yaml

_SECTIONS = ("training", "drafter", "lora", "estimate")
_TARGET_DTYPES = ("auto", "bfloat16", "float16", "float32")
_FAMILY_KEYS = ("family=", "drafter.family=", "drafter=")
# What people call fields whose names do not look like it.
_OTHER_NAMES = {"rank": "r", "lora_rank": "r", "lr": "learning_rate", "batch_size": "per_device_train_batch_size"}
_INHERITED = {field.name for field in fields(PreTrainedConfig)}


@dataclass
class Recipe:
    """A training run.

    Args:
        target (`str`, *optional*, defaults to `"embedded"`): The target: a repository, a folder, or `embedded`.
        target_dtype (`str`, *optional*, defaults to `"auto"`): What it runs in: `bfloat16`, `float16`, `float32`, or
            `auto`, as it was saved. A cache is of one dtype.
        data (`list[str]`, *optional*): Files of conversations that the target wrote. Without them it writes
            `num_synthetic` first, into `text.jsonl` of the output folder.
        num_synthetic (`int`, *optional*, defaults to 200): Conversations to write then.
        openings (`str`, *optional*): File of beginnings for the prompts that it invents
            ([`~data.regeneration.synthesis.load_openings`]).
        held_out (`int`, *optional*, defaults to 100): Conversations at the end kept for evaluation; at most a fifth.
        max_length (`int`, *optional*, defaults to 4096): Tokens of a conversation that are used.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): As of [`~data.rows.encode_row`].
        strict (`bool`, *optional*, defaults to `False`): Whether a conversation that cannot be read or encoded ends
            the run, instead of being left out and counted.
        features (`str`, *optional*, defaults to `"online"`): Where the target's features come from: `online` runs it
            in the loop, `memory` runs it once and keeps them.
        streaming (`bool`, *optional*, defaults to `False`): Read and encode the data as they are needed instead of all
            at the start; the conversations kept for evaluation are then those at the beginning.
            `training.max_steps` says how long.
        cache (`str`, *optional*): Folder of a [`TargetCache`] to read them from instead; what it lacks is computed
            first, and stored as `training.cache_dtype`.
        start_from (`str`, *optional*): A drafter to go on with, a repository or a folder; a fresh one by default.
        algorithm (`str`, *optional*, defaults to `"dspark"`): Kind of the fresh drafter: `dspark`, `dflash`, `eagle3`.
        drafter (`dict`, *optional*): Its fields ([`DraftConfig.from_target`]).
        lora (`dict`, *optional*): Train an adapter with these fields of `peft.LoraConfig`, not the whole drafter.
        training (`dict`, *optional*): Fields of [`DraftTrainingArguments`].
        paper (`str`, *optional*): The table of the paper that the recipe is after.
        published (`dict[str, float]`, *optional*): Its figures.
        estimate (`dict`, *optional*): `tokens` of the text, the `target`'s config fields, and with them `cache_gb` and
            `memory_gb` as [`~trainers.recipes.estimate.estimate_training`] computes them.

    Raises:
        `ValueError`: If a value cannot be used, or a token is among them.
    """

    target: str = "embedded"
    target_dtype: str = "auto"
    data: list[str] | None = None
    num_synthetic: int = 200
    openings: str | None = None
    held_out: int = 100
    max_length: int = 4096
    keep_special_tokens: bool = False
    strict: bool = False
    features: str = "online"
    streaming: bool = False
    cache: str | None = None
    start_from: str | None = None
    algorithm: str = "dspark"
    drafter: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    paper: str | None = None
    published: dict[str, float] | None = None
    estimate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.data, str):
            self.data = [self.data]
        for name in ("target", "openings", "cache", "start_from", "paper"):
            value = getattr(self, name)
            if (value is None and name == "target") or not isinstance(value, str | None) or value == "":
                raise ValueError(f"{name} must be text, got {shown(value)}.")
        is_names = isinstance(self.data, list) and self.data and all(isinstance(one, str) for one in self.data)
        if self.data is not None and not is_names:
            raise ValueError(
                f"data must name one file or more, got {shown(self.data)}. Leave it out, and the target writes text."
            )
        if not isinstance(self.published, dict | None):
            raise ValueError(f"published must hold names and figures, got {shown(self.published)}.")
        for name in _SECTIONS:
            value = getattr(self, name)
            if not isinstance(value, dict | None):
                raise ValueError(f"{name} must hold keys and values, got {shown(value)}.")
            if value is None and name != "lora":
                setattr(self, name, {})  # named and left empty
        check_no_token(self.training)
        for name in ("num_synthetic", "held_out", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {shown(value)}.")
        if self.target_dtype not in _TARGET_DTYPES:
            raise ValueError(
                f"target_dtype must be one of {', '.join(_TARGET_DTYPES)}, got {shown(self.target_dtype)}."
            )
        if self.features not in ("online", "memory"):
            raise ValueError(f"features must be 'online' or 'memory', got {shown(self.features)}.")
        if self.cache is not None and self.features != "online":
            raise ValueError(
                f"cache={shown(self.cache)} holds the features already; leave features={shown(self.features)} out."
            )
        for name in ("keep_special_tokens", "strict", "streaming"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {shown(getattr(self, name))}.")
        if self.streaming and (self.data is None or self.features == "memory" or self.cache is not None):
            raise ValueError(
                f"streaming reads files that are there (data={shown(self.data)}) and keeps nothing: give data, and "
                f"leave features={shown(self.features)} at 'online' and cache={shown(self.cache)} out. "
                "training.cache_budget bounds a rolling cache instead."
            )
        if not isinstance(self.algorithm, str) or self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {shown(self.algorithm)}.")
        if self.start_from is not None and self.drafter:
            raise ValueError(
                f"start_from={shown(self.start_from)} brings a drafter with all its fields, and the recipe gives "
                f"{sorted(self.drafter)} for a fresh one; leave either out."
            )
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a drafter that is there already: name it with start_from.")

    @property
    def drafter_cls(self) -> type[DraftModel]:
        """The class of a fresh drafter."""
        return ALGORITHMS[self.algorithm]

    @property
    def needs_target(self) -> bool:
        """Whether the target runs while the drafter is trained: for features, or to decode held-out prompts."""
        is_online = self.features == "online" and self.cache is None
        return is_online or self.training.get("num_eval_prompts") != 0

    def training_arguments(self) -> DraftTrainingArguments:
        """The trainer's arguments.

        Raises:
            `ValueError`: If a value has the wrong type, or the arguments contradict each other.
        """
        words = []
        for name, value in self.training.items():
            if isinstance(value, list):
                # They become words of a command line, where it would be another argument that nobody has looked at.
                if dashed := [item for item in value if str(item).startswith("-")]:
                    word = shown(str(dashed[0]).partition("=")[0])
                    raise ValueError(f"training.{name} holds {word}: no value begins with a dash there.")
                words += [f"--{name}", *map(str, value)]
            elif value is not None:
                words.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        if not self.training.get("output_dir"):
            raise ValueError("The recipe does not say where the drafter goes: give training.output_dir.")
        try:
            arguments = _TrainingParser(DraftTrainingArguments).parse_args_into_dataclasses(words)[0]
        except ImportError:
            raise
        except Exception as error:  # they check each other as they are made, and read files that they name
            if type(error) is ValueError:
                raise ValueError(cut_middle(str(error))) from error
            what = f"{type(error).__name__}: {cut_middle(str(error))}"
            raise ValueError(f"A training argument of the recipe cannot be used: {what}") from error
        if self.streaming and arguments.max_steps <= 0:
            raise ValueError("streaming does not know how much text there is: give training.max_steps.")
        return arguments

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML to `path`."""
        given = {name: value for name, value in asdict(self).items() if value not in (None, {})}
        write_text(path, yaml.safe_dump(given, sort_keys=False))


class _TrainingParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"A training argument of the recipe cannot be used: {cut_middle(message)}.")


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path (`str` or `Path`, *optional*): The YAML file; without it everything is as by default.
        overrides (`Sequence[str]`, *optional*): `key=value`, the value in YAML. A key is one of the recipe, of its
            sections with a dot (`drafter.block_size`), or the bare name of a training argument or drafter field.

    What a file may not decide for who runs it, such as an output folder outside the working folder, must come from
    `overrides` ([`~trainers.recipes.consent.check_consent`]).

    Returns:
        [`Recipe`].

    Raises:
        `ValueError`: If the file is no recipe, a key is unknown (the message has the nearest known one), or a value is
            not for a file to decide.
    """
    content = {} if path is None else _read(path)
    where = "the recipe" if path is None else str(path)
    _check_keys(content, known_keys(content), where)
    check_no_token(content.get("training") or {})
    asked = set()
    # Which fields there are depends on the family.
    for override in sorted(overrides, key=lambda override: not override.startswith(_FAMILY_KEYS)):
        known = known_keys(content)
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"Expected key=value, got {shown(override)}.")
        key = _resolve(key, known)
        asked.add(key)
        _put(content, key, parse_yaml(text, f"The value in {shown(override)}"))
        _check_sections(content, "the command line")
        if key == "target":
            # The sizes that the recipe states are those of its own target.
            (content.get("estimate") or {}).pop("target", None)
    # A section that is given as a whole.
    _check_keys(content, known_keys(content), "the command line")
    try:
        recipe = Recipe(**content)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    check_consent(content, asked, where)
    return recipe


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(
            f"Cannot read the recipe {path}: {error}. Name a YAML file, such as examples/recipes/embedded.yaml."
        ) from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}.")
    _check_sections(content, str(path))
    return content


def _check_sections(content: Mapping[str, Any], where: str) -> None:
    for section in _SECTIONS:
        if not isinstance(content.get(section), dict | None):
            raise ValueError(f"{where}: {section} must hold keys and values, got {shown(content[section])}.")


def known_keys(content: Mapping[str, Any]) -> set[str]:
    """Every key that a recipe with this `content` (`drafter.family`) may have, those of sections with a dot."""
    from peft import LoraConfig

    family = (content.get("drafter") or {}).get("family")
    decoder_cls = FAMILIES[family if isinstance(family, str) and family in FAMILIES else DEFAULT_FAMILY].config_cls
    # A key of any algorithm is a known one; whether it is one of this recipe's is for its config to say.
    own = set().union(*(cls.config_class.own_fields() for cls in ALGORITHMS.values()))
    drafter = own | {item.name for item in fields(decoder_cls)} - _INHERITED
    sections = {
        "training": {item.name for item in fields(DraftTrainingArguments) if item.init},
        "drafter": (drafter - {"decoder_config", "layer_types"}) | {"family", "num_taps"},
        "lora": {item.name for item in fields(LoraConfig) if item.init},
        "estimate": {"tokens", "target", "cache_gb", "memory_gb"},
    }
    inside = {f"{section}.{name}" for section, names in sections.items() for name in names}
    return {item.name for item in fields(Recipe)} | inside


def _check_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    if dotted := [key for key in content if "." in str(key)]:
        raise ValueError(f"{where}: unknown key {shown(dotted[0])}. What is behind a dot stands inside its section.")
    for key in _flat_keys(content):
        if key not in known:
            raise ValueError(f"{where}: unknown key {shown(key)}.{_nearest(key, known)}")


def _flat_keys(content: Mapping[str, Any]) -> Iterable[str]:
    for key, value in content.items():
        yield str(key)
        if key in _SECTIONS and isinstance(value, dict):
            yield from (f"{key}.{name}" for name in value)


def _resolve(key: str, known: set[str]) -> str:
    for candidate in (key, f"training.{key}", f"drafter.{key}"):
        if candidate in known:
            return candidate
    raise ValueError(f"Unknown key {shown(key)}.{_nearest(key, known)}")


def _nearest(key: str, known: set[str]) -> str:
    section, dot, name = key.rpartition(".")
    # Where a name occurs twice, the one outside sections counts.
    names = {candidate.rpartition(".")[2]: candidate for candidate in sorted(known, key=lambda key: "." not in key)}
    if dot:
        names = {candidate.rpartition(".")[2]: candidate for candidate in known if candidate.startswith(section + ".")}
    close = [_OTHER_NAMES[name]] if _OTHER_NAMES.get(name) in names else []
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {names[close[0]]!r}?"
    return " Keys are the fields of Recipe; those of its sections, of DraftTrainingArguments and the drafter's config."


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if dot:
        content[section] = (content.get(section) or {}) | {name: value}
    else:
        content[key] = value
