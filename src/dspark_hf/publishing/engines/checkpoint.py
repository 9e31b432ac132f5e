"""A drafter's checkpoint as an engine meets it: the config's fields, and its tensors' names and shapes.

Shapes: E hidden size, L taps, V vocabulary, D draft vocabulary, r Markov rank.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_hf.files import read_json
from dspark_hf.publishing.config_fields import check_fields
from dspark_hf.publishing.contents import CONFIG
from dspark_hf.publishing.weight_index import HOLDER, WRAPPERS, read_stored

# What a converted checkpoint has besides the one it was made of.
CONVERT = "`dspark convert DRAFTER FOLDER --format speculators --target TARGET`"
# Layers of which speculators' packaging holds a drafter, by its kind.
SPECULATORS_LAYERS = {"dspark": ("qwen3",), "dflash": ("qwen3",), "eagle3": ("qwen3", "llama")}


@dataclass(frozen=True)
class Checkpoint:
    """What engines read of a drafter.

    Args:
        config (`Mapping`): The `config.json`.
        shapes (`Mapping[str, tuple[int, ...]]`, *optional*): The tensors' shapes by name. Without them it is taken
            for one that `save_pretrained` will write.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]] | None = None

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Checkpoint":
        """The checkpoint in a `folder`.

        Raises:
            `ValueError`: If there is none, or a file of it is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ValueError(f"There is no {CONFIG} in {folder}; name a folder that holds a drafter.")
        config = read_json(folder / CONFIG)
        check_fields(config, str(folder))
        if "dspark_block_size" in config:
            raise ValueError(
                f"{folder} is a target with its drafter inside, as DeepSeek-V4's releases are; what engines demand of "
                "those is not known here. Check a drafter that stands alone."
            )
        return cls(config, {name: one.shape for name, one in read_stored(folder).items()})

    @property
    def is_speculators(self) -> bool:
        """Whether it is in speculators' packaging."""
        return "speculators_model_type" in self.config

    @property
    def nested(self) -> Mapping[str, Any] | None:
        """The section that SpecForge's packaging has for the drafter's fields; None in others."""
        return self.config.get("dflash_config")

    @property
    def kind(self) -> str:
        """`dspark`, `dflash`, `domino` or `eagle3`; of others the name that their packaging gives."""
        if self.is_speculators:
            return str(self.config["speculators_model_type"])
        if self.nested is not None:
            return self.nested.get("projector_type") or ("dspark" if "DSpark" in self.architecture else "dflash")
        if self.config.get("markov_head_type") == "domino":
            return "domino"
        if "ttt_length" in self.config:
            return "eagle3"
        has_heads = self.config.get("markov_rank") or self.config.get("enable_confidence_head")
        return "dspark" if has_heads else "dflash"

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The fields of the draft layers."""
        return (self.config.get("transformer_layer_config") or {}) if self.is_speculators else self.config

    @property
    def layers(self) -> str:
        """The draft layers' `model_type`."""
        named = self.decoder.get("model_type")
        return "qwen3" if self.nested is not None and named in (None, "dspark", "dflash") else str(named)

    def conversion(self, what: str) -> str:
        """The end of a sentence: what writes it in speculators' packaging; nothing where that has no place for it.

        Args:
            what (`str`): What is gained, in a word.
        """
        is_written = self.is_speculators or self.layers in SPECULATORS_LAYERS.get(self.kind, ())
        return f"; {CONVERT} writes {what}" if is_written else ""

    @property
    def architecture(self) -> str:
        """The name by which engines choose a class."""
        return (self.config.get("architectures") or ["none"])[0]

    @property
    def is_reduced(self) -> bool:
        """Whether only some of the target's tokens can be drafted."""
        return self.config.get("draft_vocab_size") not in (None, self.decoder.get("vocab_size"))

    @property
    def rank(self) -> int:
        """The sequential head's; 0 without one."""
        return self.config.get("markov_rank") or 0

    @property
    def head_type(self) -> str:
        """The sequential head's form."""
        return self.config.get("markov_head_type") or "vanilla"

    def has(self, name: str) -> bool:
        """Whether it holds a tensor of this `name`, or will."""
        if self.shapes is not None:
            return name in self.shapes
        written = {"lm_head.weight": bool(self.config.get("own_lm_head")), "d2t": self.is_reduced}
        return written.get(name, True)

    def contradictions(self) -> list[str]:
        """Tensors whose shapes or names are not those that the config asks for; of the kinds that draft blocks."""
        if self.shapes is None or self.kind not in ("dspark", "dflash"):
            return []
        wrapped = sorted(name for name in self.shapes if name.startswith(HOLDER) or WRAPPERS & set(name.split(".")))
        if wrapped:
            return [
                f"names of its tensors hold parts that wrappers put there, as {wrapped[0]} does; `dspark convert "
                "DRAFTER FOLDER` writes them without"
            ]
        if unsaid := [name for name in ("hidden_size", "vocab_size") if self.decoder.get(name) is None]:
            return [f"its config.json does not say {' and '.join(unsaid)}"]
        return [
            f"{name} has the shape {list(self.shapes[name])}, and its config.json asks for {list(shape)}"
            if name in self.shapes
            else f"it lacks the tensor {name}"
            for name, shape in self._expected().items()
            if self.shapes.get(name) != shape
        ]

    def _expected(self) -> dict[str, tuple[int, ...]]:
        hidden, vocab = self.decoder["hidden_size"], self.decoder["vocab_size"]
        taps = (
            (self.nested or {}).get("target_layer_ids")
            or self.config.get("target_layer_ids")
            or self.config.get("aux_hidden_state_layer_ids")
            or []
        )
        outputs = self.config["draft_vocab_size"] if self.is_reduced else vocab
        expected = {"fc.weight": (hidden, len(taps) * hidden), "hidden_norm.weight": (hidden,)}
        if self.rank:
            expected["markov_head.markov_w1.weight"] = (vocab, self.rank)
            expected["markov_head.markov_w2.weight"] = (outputs, self.rank)
        if self.config.get("enable_confidence_head"):
            width = self.rank if self.config.get("confidence_head_with_markov") else 0
            expected["confidence_head.proj.weight"] = (1, hidden + width)
        return expected
