"""A run that goes on is the run that was begun: its drafter, its data and its schedule."""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, logging

from dspark_hf.files import read_json, write_json
from dspark_hf.messages import shown
from dspark_hf.provenance import changes

logger = logging.get_logger(__name__)

RUN_FILE = "run.json"
# Of a drafter's config, what its weights do not depend on.
_ASIDE = {"architectures", "bos_token_id", "dtype", "eos_token_id", "num_anchors", "pad_token_id", "torch_dtype",
          "transformers_version", "use_cache"}  # fmt: skip


def check_same_drafter(checkpoint: str | Path, config: PreTrainedConfig) -> None:
    """Check that a `checkpoint` folder holds a drafter with this `config`.

    Raises:
        `ValueError`: If it holds another; both sides are named.
    """
    path = Path(checkpoint) / CONFIG_NAME
    if not path.is_file():
        return
    before, now = (_weights_fields(one) for one in (read_json(path), json.loads(config.to_json_string())))
    if before.get("target_fingerprint") is None or now.get("target_fingerprint") is None:
        before["target_fingerprint"] = now["target_fingerprint"] = None
    if changed := changes(before, now):
        raise ValueError(
            f"{checkpoint} is of another drafter ({changed}). Go on with the former, or begin in another output_dir."
        )


def check_same_run(checkpoint: str | Path, now: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare a run with what its folder says that it was begun with.

    Args:
        checkpoint (`str` or `Path`): What it goes on from; [`write_run`] has written to the folder above.
        now (`Mapping`): `fixed`, what must not change, and `free`, what may: a change of that is said.

    Raises:
        `ValueError`: If something fixed has changed; both sides are named. Or if the file holds no settings.
    """
    path = Path(checkpoint).absolute().parent / RUN_FILE
    if not path.is_file():
        return
    begun = read_json(path)
    for kind in ("fixed", "free"):
        if not isinstance(begun.get(kind), dict | None):
            raise ValueError(
                f"{path}: {kind} must hold settings, got {shown(begun[kind])}. Remove the file, and nothing is "
                "compared with how the run was begun."
            )
    fixed, free = (changes(begun.get(kind) or {}, json.loads(json.dumps(now[kind]))) for kind in ("fixed", "free"))
    if fixed:
        raise ValueError(
            f"{path.parent} holds a run that was begun otherwise ({fixed}). Go on with the former, or begin in "
            f"another output_dir; start_from={checkpoint} goes on from its drafter there."
        )
    if free:
        logger.warning(f"The run goes on otherwise than it was begun: {free}.")


def write_run(folder: str | Path, now: Mapping[str, Mapping[str, Any]]) -> None:
    """Note in a `folder` what a run is begun with `now`, settings by section; see [`check_same_run`]."""
    write_json(Path(folder) / RUN_FILE, dict(now))


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many `rows` of `input_ids` and `loss_mask` there are, and what tells them from others."""
    checksum = num_rows = 0
    for row in rows:
        num_rows += 1
        for name in ("input_ids", "loss_mask"):
            checksum = zlib.crc32(np.asarray(row[name], dtype=np.int64).tobytes(), checksum)
    return f"{num_rows} conversations, checksum {checksum:08x}"


def _weights_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _ASIDE and not name.endswith("name_or_path")}
