"""The manifest: what a cache was made from and how. Everything that would make its rows differ is in it."""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dspark_hf.files import open_regular
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftConfig
from dspark_hf.modeling.configuration.taps import check_taps
from dspark_hf.modeling.families import FAMILIES
from dspark_hf.modeling.fingerprint import public_name
from dspark_hf.modeling.wrappers import unwrap
from dspark_hf.provenance import changes

from .codecs import check_dtype
from .records import check_counts, read_record, write_record

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_SAMPLED = 32
_PIECE = 2**20
# Where `dspark cache` has another word for a setting.
_OPTIONS = {"target_layer_ids": "tap"}


@dataclass(frozen=True)
class Manifest:
    """What a cache was made from.

    Attributes:
        target (`str`): Name of the target; a folder's own name, not its place.
        revision (`str`, *optional*): Commit of the target's repository.
        fingerprint (`str`, *optional*): Digest of some of its weights ([`weights_digest`]).
        target_dtype (`str`): The dtype it ran in.
        num_target_layers, hidden_size, vocab_size (`int`): Its sizes.
        target_layer_ids (`list[int]`): The taps.
        tokenizer, chat_template (`str`, *optional*): Their SHA-256; `None` if rows came as ids, or without template.
        max_length (`int`): Rows were cut to so many tokens.
        dtype (`str`): How states are stored.
        log_norm (`bool`): Whether rows have `log_norm`.
        keep_special_tokens (`bool`): Whether conversations that spell special tokens are in it.
        channels (`int`, *optional*): CRC-32 of the channel statistics that `int8` and `int4` need.
        format (`int`): Version of this layout.
    """

    target: str
    revision: str | None
    fingerprint: str | None
    target_dtype: str
    num_target_layers: int
    hidden_size: int
    vocab_size: int
    target_layer_ids: list[int]
    tokenizer: str | None
    chat_template: str | None
    max_length: int
    dtype: str
    log_norm: bool
    # What was done before it could be chosen.
    keep_special_tokens: bool = True
    channels: int | None = None
    format: int = _FORMAT

    @classmethod
    def describe(
        cls,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        target_layer_ids: list[int],
        *,
        max_length: int,
        dtype: str,
        log_norm: bool,
        keep_special_tokens: bool = True,
    ) -> "Manifest":
        """The manifest of a cache to be built.

        Args:
            target (`PreTrainedModel`): The target.
            tokenizer (`PreTrainedTokenizerBase` or `None`): What reads the text; None where rows have ids.
            target_layer_ids (`list[int]`): The taps.
            max_length (`int`): Tokens after which rows are cut.
            dtype (`str`): How states are stored.
            log_norm (`bool`): Whether `logsumexp` of the target's logits is held, too.
            keep_special_tokens (`bool`, *optional*, defaults to `True`): Whether text may spell special tokens.

        Returns:
            [`Manifest`].

        Raises:
            `ValueError`: If a tap is out of range.
        """
        config = target.config.get_text_config()
        family = FAMILIES.get(config.model_type)
        with_last = family is not None and family.may_tap_last
        check_taps(target_layer_ids, config.num_hidden_layers, with_last=with_last)
        return cls(
            target=public_name(target.name_or_path) or type(target).__name__,
            revision=getattr(target.config, "_commit_hash", None),
            fingerprint=weights_digest(target),
            target_dtype=str(target.dtype).removeprefix("torch."),
            num_target_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            target_layer_ids=target_layer_ids,
            tokenizer=None if tokenizer is None else tokenizer_digest(tokenizer),
            chat_template=None if tokenizer is None else template_digest(tokenizer),
            max_length=max_length,
            dtype=dtype,
            log_norm=log_norm,
            keep_special_tokens=keep_special_tokens,
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of the cache in a `folder`.

        Raises:
            `ValueError`: If it is missing, damaged, or of a newer layout.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise ValueError(f"{folder} is no target cache: it has no {MANIFEST_FILE}. Build one: `dspark cache`.")
        record = {"keep_special_tokens": True, **read_record(path)}
        if record.get("format") != _FORMAT or set(record) != {field.name for field in fields(cls)}:
            raise ValueError(
                f"{path} has format {shown(record.get('format'))}, but this version of dspark_hf reads {_FORMAT}. "
                "Build the cache again, or use the version that made it."
            )
        manifest = cls(**record)
        manifest._check_fields(path)
        return manifest

    def _check_fields(self, path: Path) -> None:
        """Raise `ValueError` unless every field is what its description says."""
        sizes = ("num_target_layers", "hidden_size", "vocab_size", "max_length")
        check_counts(asdict(self), path, *sizes, lists=("target_layer_ids",))
        for name in ("target", "target_dtype", "revision", "fingerprint", "tokenizer", "chat_template"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("target", "target_dtype")):
                raise ValueError(f"{path}: {name} must be text, got {shown(value)}.")
        if self.channels is not None:
            check_counts(asdict(self), path, "channels")
        for name in ("log_norm", "keep_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{path}: {name} must be true or false, got {shown(getattr(self, name))}.")
        try:
            # Whether the last layer may be among them is the drafter's to say.
            check_taps(self.target_layer_ids, self.num_target_layers, with_last=True)
            check_dtype(self.dtype)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, folder: Path) -> None:
        """Write it to a `folder`, whole or not at all."""
        write_record(folder / MANIFEST_FILE, asdict(self))

    def check_same(self, wanted: "Manifest", folder: Path) -> None:
        """Check that the cache with this manifest in a `folder` can be continued as `wanted`.

        Raises:
            `ValueError`: If target, data or settings differ; the message names what.
        """
        if self._made_from() != wanted._made_from():
            other = f" ({wanted.target})" if wanted.target != self.target else ", with other weights of that name"
            raise ValueError(
                f"{folder} was made from {self.target} ({self.num_target_layers} layers, hidden size "
                f"{self.hidden_size}), not from this target{other}. Choose another folder, or the former target."
            )
        for name in ("tokenizer", "chat_template"):
            if getattr(self, name) != getattr(wanted, name):
                what = name.replace("_", " ")
                raise ValueError(f"{folder} was made with another {what}. Use the former, or another folder.")
        before, now = ({_named(name): value for name, value in one._settings().items()} for one in (self, wanted))
        if changed := changes(before, now):
            raise ValueError(f"{folder} holds another cache ({changed}). Use the former settings, or another folder.")

    def _made_from(self) -> tuple:
        return (self.fingerprint or self.target, self.num_target_layers, self.hidden_size, self.vocab_size)

    def _settings(self) -> dict[str, Any]:
        # Statistics are taken once, when a cache begins.
        told = ("target", "fingerprint", "tokenizer", "chat_template", "channels")
        return {name: value for name, value in asdict(self).items() if name not in told}

    def check_fits(
        self,
        config: DraftConfig,
        target: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Check that a drafter can learn from the cache.

        Args:
            config ([`DraftConfig`]): The drafter's.
            target (`PreTrainedModel`, *optional*): Its target.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): That of the target.

        Raises:
            `ValueError`: If the cache has other taps or sizes, or was made from another target or tokenizer.
        """
        mine = (list(self.target_layer_ids), self.hidden_size, self.num_target_layers)
        theirs = (list(config.target_layer_ids), config.hidden_size, config.num_target_layers)
        if mine != theirs:
            raise ValueError(
                f"The cache was made with taps {mine[0]} (hidden size {mine[1]}, {mine[2]} layers), but the drafter "
                f"reads {theirs[0]} (hidden size {theirs[1]}, {theirs[2]} layers). Build the cache with "
                "target_layer_ids=drafter.config.target_layer_ids."
            )
        fingerprint = None if target is None else weights_digest(target)
        if None not in (fingerprint, self.fingerprint) and fingerprint != self.fingerprint:
            raise ValueError(
                f"The cache was made from {self.target or 'a target'} with other weights than those of "
                f"{target.name_or_path or 'this target'}. Load the target that made it, or build the cache again."
            )
        if tokenizer is not None and self.tokenizer not in (None, tokenizer_digest(tokenizer)):
            raise ValueError(
                f"The cache was made with another tokenizer than {tokenizer.name_or_path!r}. Use the target's own, or "
                "build the cache again."
            )


def _named(setting: str) -> str:
    """A setting with its option."""
    return f"{setting} (--{_OPTIONS.get(setting, setting).replace('_', '-')})"


def weights_digest(target: PreTrainedModel) -> str | None:
    """Digest of a few elements of every parameter, equal for bfloat16 and float32 copies of one checkpoint.

    The output head alone does not tell a `target` from one that was fine-tuned, or has an adapter.

    Returns:
        `str`, or `None` where weights are not at hand (meta device).
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(unwrap(target).named_parameters()):
        if parameter.device.type == "meta":
            return None
        values = parameter.detach().flatten()
        step = max(1, len(values) // _SAMPLED)
        sample = values[::step][:_SAMPLED].cpu()
        sample = sample.to(torch.bfloat16) if sample.is_floating_point() else sample
        digest.update(name.encode() + sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides a `tokenizer`'s ids."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # The settings of the latest call are part of that text.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What tells chat templates, and files in their place, apart; None of a `tokenizer` without either."""
    if tokenizer.chat_template is None:
        file = getattr(tokenizer, "encoding_file", None)
        return None if file is None else file.digest
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> int:
    """CRC-32 of the file at `path`; `ValueError` if it is a pipe or a device."""
    checksum = 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum
