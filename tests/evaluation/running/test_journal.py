"""What a stopped measurement leaves, and what goes on from it."""

import json
import os

import pytest
from filelock import FileLock

from dspark_hf.evaluation import Journal, journal_path
from dspark_hf.evaluation.running.journal import read_journal

MADE_WITH = {"seed": 0, "settings": {"dtype": "bfloat16", "shape": (1, 2)}}


def refuse():
    raise AssertionError("made again")


def fill(path, *names, made_with=MADE_WITH):
    with Journal(path, made_with) as journal:
        return [journal.part(name, lambda name=name: {"name": name, "seconds": 0.125}) for name in names]


def test_parts_are_made_once(tmp_path):
    path = tmp_path / "new folder" / "parts.jsonl"
    parts = fill(path, "a", "b")
    with Journal(path, MADE_WITH, resume=True) as journal:
        assert journal.num_found == 2
        assert [journal.part(name, refuse) for name in ("a", "b")] == parts
        assert journal.part("c", lambda: {1: (2,)}) == {"1": [2]}
    with Journal(path, MADE_WITH, resume=True) as journal:
        assert journal.num_found == 3 and journal.part("c", refuse) == {"1": [2]}


def test_a_part_that_fails_is_not_kept(tmp_path):
    path = tmp_path / "parts.jsonl"
    with pytest.raises(AssertionError, match="made again"), Journal(path, MADE_WITH) as journal:
        journal.part("a", refuse)
    with Journal(path, MADE_WITH, resume=True) as journal:
        assert journal.num_found == 0


def test_without_a_file_parts_are_in_memory():
    with Journal(None, MADE_WITH) as journal:
        assert journal.part("a", lambda: (1,)) == [1]
        assert journal.part("a", refuse) == [1]


def test_cut_off_anywhere_it_goes_on(tmp_path):
    path = tmp_path / "parts.jsonl"
    fill(path, "a", "b")
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with Journal(path, MADE_WITH, resume=True) as journal:
            whole_parts = sum(end <= length for end in ends[1:])
            assert journal.num_found == whole_parts
            journal.part("a", refuse if whole_parts else dict)
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_changed_byte_is_named(tmp_path):
    path = tmp_path / "parts.jsonl"
    fill(path, "a", "b")
    content = bytearray(path.read_bytes())
    second = content.index(b"\n") + 1
    for index in range(second, content.index(b"\n", second)):
        changed = bytearray(content)
        changed[index] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"line \d: damaged"), Journal(path, MADE_WITH, resume=True):
            pass


@pytest.mark.parametrize("line", ["[]", '"crc32"', '{"part": "a", "value": 1}', '{"crc32": 1}', "{broken"])
def test_another_file_is_refused(tmp_path, line):
    path = tmp_path / "parts.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="line 1: damaged"), Journal(path, MADE_WITH, resume=True):
        pass
    assert path.read_text() == f"{line}\n"


def test_other_settings_are_named(tmp_path):
    path = tmp_path / "parts.jsonl"
    fill(path, "a")
    before = path.read_bytes()
    other = {"seed": 1, "settings": {"dtype": "float32", "shape": (1, 2)}, "new": True}
    expected = (
        r"made otherwise \(new: None before, True now; seed: 0 before, 1 now; "
        r"settings.dtype: 'bfloat16' before, 'float32' now\)"
    )
    with pytest.raises(ValueError, match=expected), Journal(path, other, resume=True):
        pass
    assert path.read_bytes() == before


def test_settings_in_lists_are_named_by_their_places(tmp_path):
    path = tmp_path / "parts.jsonl"
    tasks = [{"name": "chat", "source": {"file": "a.jsonl", "limit": 2}}]
    with Journal(path, {"tasks": tasks, "sizes": [1, 4]}) as journal:
        journal.part("a", lambda: 1)
    longer = [{"name": "chat", "source": {"file": "a.jsonl", "limit": 3}}, {"name": "code"}]
    expected = (
        r"\(sizes: \[1, 4\] before, \[1\] now; tasks.0.source.limit: 2 before, 3 now; "
        r"tasks.1.name: None before, 'code' now\)"
    )
    with pytest.raises(ValueError, match=expected), Journal(path, {"tasks": longer, "sizes": [1]}, resume=True):
        pass


def test_nothing_is_lost_without_resume(tmp_path):
    path = tmp_path / "parts.jsonl"
    fill(path, "a")
    with pytest.raises(ValueError, match="is what an earlier run left. Go on with --resume"):
        fill(path, "a")
    with Journal(path, MADE_WITH, resume=True) as journal:
        assert journal.num_found == 1


def test_a_part_that_is_there_twice(tmp_path):
    path = tmp_path / "parts.jsonl"
    fill(path, "a", "b")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    assert read_journal(path)[1].keys() == {"a", "b"}
    other = tmp_path / "others.jsonl"
    with Journal(other, MADE_WITH) as journal:
        journal.part("a", lambda: 2)
    path.write_text("".join([*lines, other.read_text().splitlines(keepends=True)[1]]))
    with pytest.raises(ValueError, match="line 4: 'a' is there a second time with other figures. Remove the line"):
        read_journal(path)


def test_one_run_writes_at_a_time(tmp_path):
    path = tmp_path / "parts.jsonl"
    with FileLock(tmp_path / ".parts.jsonl.lock"), pytest.raises(ValueError, match="Another run is writing"):
        fill(path, "a")
    assert fill(path, "a")


def test_where_the_parts_of_a_result_are(tmp_path):
    out, parts = tmp_path / "result.json", tmp_path / "result.json.unfinished.jsonl"
    assert journal_path(None, False) is None
    assert journal_path(out, False) == journal_path(out, True) == parts
    with pytest.raises(ValueError, match="--resume goes on with the file of --json. Name it."):
        journal_path(None, True)
    out.write_text("{}")
    assert journal_path(out, False) == parts
    with pytest.raises(ValueError, match="result.json is finished"):
        journal_path(out, True)
    fill(parts, "a")
    assert journal_path(out, True) == parts
    with pytest.raises(ValueError, match="is what an earlier run left"):
        journal_path(out, False)
    os.truncate(parts, 0)
    assert journal_path(out, False) == parts
