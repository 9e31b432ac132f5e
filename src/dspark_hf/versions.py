"""Versions of packages, for whoever wants to make a result again."""

import importlib.metadata


def installed_versions(*packages: str) -> dict[str, str | None]:
    """The packages' installed versions; `None` where one is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
