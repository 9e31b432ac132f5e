"""Files that are whole or absent: written aside, then renamed. And small files of others, read with an error that says
which."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

# What a disk tells while it is written to.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# The longest of our own are indexes of weights, a few megabytes.
_LARGEST = 2**26


def cache_root() -> Path:
    """Return the folder for what this library derives: `$DSPARK_HF_CACHE`, else `dspark_hf` inside `HF_HOME`."""
    override = os.environ.get("DSPARK_HF_CACHE")
    if override:
        return Path(override).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "dspark_hf"


@contextmanager
def whole_file(path: str | os.PathLike, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes that place at the end, or vanishes on any failure.

    Args:
        path (`str` or `os.PathLike`): The file; its folder is made where it is missing.
        durable (`bool`, *optional*, defaults to `False`): Whether to wait until the file is on the disk. Otherwise it
            may be lost with the machine's power, not with the process.

    Raises:
        `OSError`: If it cannot be written, such as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    # A new file: what others have put in its place, such as a link to elsewhere, is not written to.
    _touch(temp)
    mode = temp.stat().st_mode
    try:
        yield temp
        temp.chmod(mode)  # safetensors puts a file for the owner alone in its place
        if durable:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
        if durable:
            _sync_folder(path.parent)
    except SafetensorError as error:
        raise OSError(f"Cannot write {path}: {error}. What was written before is kept.") from error
    except OSError as error:
        raise named_error(error, path) from None
    finally:
        temp.unlink(missing_ok=True)


def named_error(error: OSError, path: Path) -> OSError:
    """The same `error`, of the file at `path` where it names none: the system tells of a full disk, not of which."""
    if error.filename is not None or error.errno not in _NO_ROOM:
        return error
    return OSError(error.errno, f"{os.strerror(error.errno)}. What was written before is kept", str(path))


def follow_umask(folder: str | os.PathLike) -> None:
    """Let those read a folder's weights who may read any new file: safetensors writes them for their owner alone.

    Args:
        folder (`str` or `os.PathLike`): The folder, to which was just written.
    """
    probe = Path(folder) / f".{secrets.token_hex(8)}.tmp"
    _touch(probe)
    mode = probe.stat().st_mode
    probe.unlink()
    for path in Path(folder).glob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(mode)


def _touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` in UTF-8 so that the file at `path` is either whole or as it was."""
    with whole_file(path) as temp:
        temp.write_text(text, encoding="utf-8")


def copy_files(source: Path, names: Iterable[str | os.PathLike], target: Path) -> None:
    """Copy files to the same places below another folder; folders are made where they are missing.

    Args:
        source (`Path`): The folder that has them.
        names (`Iterable[str | os.PathLike]`): Their paths below it.
        target (`Path`): The folder that gets them.

    Raises:
        `OSError`: If one cannot be copied.
    """
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def sole_writer(path: Path) -> FileLock:
    """The lock of a `path`, a file or a folder that is there, which one process at a time may write; acquired.

    A file's folder is made where it is missing. The lock ends with its process, however that ends.

    Raises:
        `ValueError`: If another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        kind = "folder" if path.is_dir() else "file"
        raise ValueError(f"Another run is writing to {path}. Wait for it, or choose another {kind}.") from None
    return lock


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Open the file at `path` for reading its bytes.

    Raises:
        `OSError`: If it cannot be opened.
        `ValueError`: If it is a pipe or a device, which may have no end.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{os.fspath(path)} is no regular file. Name a file on the disk.")
    return open(path, "rb")


def read_text(path: str | os.PathLike) -> str:
    """The text of the small file at `path`, such as a config or a recipe.

    Raises:
        `OSError`: If it cannot be opened.
        `ValueError`: If it is no regular file, has more than 64 MiB, or is not UTF-8.
    """
    try:
        return read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is no text in UTF-8: {error}.") from error


def read_small(path: str | os.PathLike) -> bytes:
    """What is in the small file at `path`, which should be text.

    Raises:
        `OSError`: If it cannot be opened.
        `ValueError`: If it is no regular file, or has more than 64 MiB.
    """
    with open_regular(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{os.fspath(path)} has more than {_LARGEST >> 20} MiB, too much for what it should be.")
    return content


def parse_json(text: str | bytes) -> Any:
    """What the JSON in `text` says.

    Raises:
        `ValueError`: If it is none, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Raises:
        `ValueError`: If there is no such file, or it holds something else.
    """
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch or write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write `content` as a JSON object so that the file at `path` is either whole or as it was."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _sync_folder(folder: Path) -> None:
    """Push a rename to the disk, where the system can do that for folders."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
