"""Pages link to files of the repository as they do on disk; the site holds a copy of each that is linked to."""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Where the copies stand in the site.
COPIES = "repository"
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")


def outside(page: Path, link: str) -> str | None:
    """A link's path in the repository, if it leads to a file outside of docs/."""
    path = Path(os.path.normpath(page.parent / link))
    return None if path.is_relative_to(DOCS) or not path.is_file() else path.relative_to(ROOT).as_posix()


def on_files(files, config):
    """Add the files that pages link to, and those that the files link to in turn."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
            name = outside(page, link)
            if name is None or files.get_file_from_path(f"{COPIES}/{name}"):
                continue
            files.append(File.generated(config, f"{COPIES}/{name}", abs_src_path=str(ROOT / name)))
            if name.endswith(".md"):
                waiting.append(ROOT / name)
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to the copies, and those of copied pages to where pages stand in the site."""
    source = Path(page.file.abs_src_path)

    def lead(match: re.Match) -> str:
        before, link, after = match.groups()
        path = Path(os.path.normpath(source.parent / link))
        name = outside(source, link)
        if name is not None:
            place = f"{COPIES}/{name}"
        elif path.is_relative_to(DOCS):
            place = path.relative_to(DOCS).as_posix()
        else:
            return match[0]
        return f"{before}{os.path.relpath(place, PurePosixPath(page.file.src_uri).parent)}{after}"

    return LINK.sub(lead, markdown)
