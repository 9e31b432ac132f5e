"""Rows of a Parquet file, in parts whose size is known before they are unpacked."""

import os
from collections.abc import Iterator
from typing import Any

# Bytes of a row, as of a line of a file of lines; what several rows may have that are unpacked together.
_LONGEST = 2**26
# What a value takes besides its text.
_OVERHEAD = 64
# Bytes that the numbers, and the places of texts, of a group of rows may have.
_LARGEST_GROUP = 2**30


def parquet_rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The rows of the Parquet file at `path`.

    A text that stands in a thousand rows is in the file once. It is read so too, and how much the rows take is counted
    before they are made.

    Raises:
        `OSError`: If the file cannot be read.
        `ValueError`: If a row has more than 64 MiB, or a group of rows more values than anybody would put there.
    """
    # A dependency of datasets, and slow to import.
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        metadata = parquet.read_metadata(path)
        columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        for index in range(metadata.num_row_groups):
            _check_group(path, index, metadata.row_group(index), columns)
            # Each group has texts of its own, so none is read with another.
            file = parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts)
            for batch in file.iter_batches(batch_size=1000, row_groups=[index]):
                for part in _parts(batch):
                    if part.num_rows == 1 and _size(part) > _LONGEST:
                        raise ValueError(f"{os.fspath(path)}, row {number + 1}: A row may have {_LONGEST >> 20} MiB.")
                    number += part.num_rows
                    yield from part.to_pylist()
    except ArrowException as error:
        raise OSError(str(error)) from error


def _check_group(path: str | os.PathLike, index: int, group: Any, columns: list[Any]) -> None:
    size = sum(group.column(number).num_values * max(column.length or 0, 8) for number, column in enumerate(columns))
    if size > _LARGEST_GROUP:
        raise ValueError(
            f"{os.fspath(path)}: Row group {index} would take {size >> 20} MiB, and may take {_LARGEST_GROUP >> 20}. "
            "Write the file with fewer rows a group (row_group_size)."
        )


def _parts(batch: Any) -> Iterator[Any]:
    """The batch in parts that are small enough, or of one row."""
    if batch.num_rows <= 1 or _size(batch) <= _LONGEST:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half))
    yield from _parts(batch.slice(half))


def _size(batch: Any) -> int:
    return sum(map(_size_of, batch.columns))


def _size_of(array: Any) -> int:
    """Bytes that an array's values take as Python objects, roughly."""
    import pyarrow as pa
    from pyarrow import compute

    own = _OVERHEAD * len(array)
    if isinstance(array, pa.ExtensionArray):
        return _size_of(array.storage)
    if isinstance(array, pa.StructArray):
        return own + sum(map(_size_of, array.flatten()))
    if isinstance(array, pa.MapArray):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return own + sum(_size_of(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pa.types.is_nested(array.type):
        return own + _size_of(array.flatten())
    if isinstance(array, pa.DictionaryArray):
        if pa.types.is_primitive(array.dictionary.type):
            return own
        lengths = compute.binary_length(array.dictionary).cast(pa.int64())
        return own + (compute.sum(lengths.take(array.indices)).as_py() or 0)
    return own + array.nbytes
