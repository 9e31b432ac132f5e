"""Docstrings name other things as [`name`]; the reference makes a link of it, where the thing has an entry."""

import re

NAME = re.compile(r"\[<code>(~?)([\w.]+)</code>\](?!\()")


def on_page_content(html, page, config, files):
    """Turn names in brackets into links that need not lead anywhere."""

    def lead(match: re.Match) -> str:
        name = match[2]
        place = name if name.startswith("dspark_hf.") else f"dspark_hf.{name}"
        return f'<autoref optional identifier="{place}"><code>{name}</code></autoref>'

    return NAME.sub(lead, html)
