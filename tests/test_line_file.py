"""Files that grow line by line, whoever is killed on the way."""

import errno
from contextlib import contextmanager

import pytest

from dspark_hf.files import write_text
from dspark_hf.line_file import LineFile


def test_lines_are_appended_behind_whole_ones(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    with LineFile(path) as lines:
        assert not lines.has_content() and lines.read() == []
        lines.begin()
        lines.append(["one", "zwölf"])
        # Nobody has to close the file for that.
        assert path.read_bytes() == "one\nzwölf\n".encode()
    with open(path, "ab") as file:
        file.write(b"cut o")
    with LineFile(path) as lines:
        assert lines.has_content() and lines.read() == [b"one", "zwölf".encode()]
        # Looking changes nothing.
        assert path.read_bytes().endswith(b"cut o")
        lines.begin()
        lines.append(["three"])
    assert path.read_text(encoding="utf-8") == "one\nzwölf\nthree\n"


@pytest.mark.parametrize("content", [b"", b"cut o"])
def test_without_a_whole_line_it_begins_anew(tmp_path, content):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    with LineFile(path) as lines:
        assert lines.has_content() is bool(content) and lines.read() == []
        lines.begin()
        assert not lines.has_content()


def test_one_process_at_a_time_writes(tmp_path):
    path = tmp_path / "lines.jsonl"
    with LineFile(path):
        with pytest.raises(ValueError, match="Another run is writing to .*lines.jsonl. Wait for it"):
            LineFile(path).__enter__()
    with LineFile(path) as lines:
        lines.begin()


@contextmanager
def longest_file(num_bytes):
    """As on a full disk: the system writes what fits, and then refuses."""
    resource = pytest.importorskip("resource", reason="limits of files are of Unix")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_names_the_file_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "lines.jsonl"
    told = f"What was written before is kept: {str(path)!r}"
    with LineFile(path) as lines:
        lines.begin()
        lines.append(["one"])
        with longest_file(100), pytest.raises(OSError) as raised:
            lines.append(["two" * 100])
        assert raised.value.errno == errno.EFBIG and told in str(raised.value)
        assert path.read_text() == "one\n"
        lines.append(["three"])
    # The lock is free, and no line is half.
    with LineFile(path) as lines:
        assert lines.read() == [b"one", b"three"]
    with longest_file(100), pytest.raises(OSError) as raised:
        write_text(path, "four" * 100)
    assert told in str(raised.value) and path.read_text() == "one\nthree\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == [".lines.jsonl.lock", "lines.jsonl"]
