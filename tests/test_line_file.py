"""Files that grow line by line, whoever is killed on the way."""

import pytest

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
