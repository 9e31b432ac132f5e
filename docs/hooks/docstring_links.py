"""Docstrings write types and links as transformers does; the reference makes text and links of them."""

import re

NAME = re.compile(r"\[<code>(~?)([\w.]+)</code>\](?!\()")
# A type as its docstring has it, backticks and stars included, and the default that the signature has.
TYPE = re.compile(r"<code>([^<]*`[^<]*)</code>(,\s+default:\s+<code>[^<]*</code>)?")


def on_page_content(html, page, config, files):
    """Turn types into text, and names in brackets into links that need not lead anywhere."""

    def lead(match: re.Match) -> str:
        name = match[2]
        place = name if name.startswith("dspark_hf.") else f"dspark_hf.{name}"
        return f'<autoref optional identifier="{place}"><code>{name}</code></autoref>'

    if page.file.src_uri.startswith("reference/"):
        html = TYPE.sub(as_text, html)
    return NAME.sub(lead, html)


def as_text(match: re.Match) -> str:
    """A type with its marks made; a default that it tells itself is not told twice."""
    words = re.sub(r"`([^`]*)`", r"<code>\1</code>", match[1]).replace("*optional*", "<em>optional</em>")
    return words if "optional" in words else words + (match[2] or "")
