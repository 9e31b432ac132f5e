"""An index of weights that lacks `metadata`, which transformers asks for and nobody needs."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dspark_hf.files import read_json, write_json
from dspark_hf.publishing.weight_index import INDEX, read_weight_map


@contextmanager
def mended_index(index: str | None, find: Callable[[str], str]) -> Iterator[str | None]:
    """A folder with the same shards and a whole index, for as long as it is loaded from.

    Args:
        index (`str`, *optional*): The checkpoint's index.
        find (`Callable`): Gives a shard's path, and fetches it first if need be.

    Yields:
        `str`, or None where nothing is to be mended.

    Raises:
        `ValueError`: If a shard is missing.
    """
    if index is None or isinstance(read_json(index).get("metadata"), dict):
        yield None
        return
    weight_map = read_weight_map(index)
    with tempfile.TemporaryDirectory() as folder:
        for shard in sorted(set(weight_map.values())):
            (Path(folder) / shard).symlink_to(Path(find(shard)).resolve())
        write_json(Path(folder) / INDEX, {"metadata": {}, "weight_map": weight_map})
        yield folder
