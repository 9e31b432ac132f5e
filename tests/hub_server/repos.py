"""What the Hub knows: users, repositories, and how it refuses."""

import hashlib
import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class User:
    """Who a token stands for."""

    name: str
    can_write: bool
    orgs: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass
class Repo:
    """A repository: each commit is a whole tree of paths and blob hashes."""

    private: bool = False
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: dict[str, str], title: str) -> str:
        seed = json.dumps([tree, title, len(self.trees)], sort_keys=True).encode()
        oid = hashlib.sha1(seed).hexdigest()
        self.trees[oid], self.titles[oid], self.parents[oid] = tree, title, self.branches.get(branch)
        self.branches[branch] = oid
        return oid

    def history(self, oid: str | None) -> list[str]:
        return [] if oid is None else [oid, *self.history(self.parents[oid])]

    def resolve(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.trees else None)


class Refusal(Exception):
    """An answer that is an error, as the Hub words it."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


NOT_LOGGED_IN = Refusal(401, None, "Invalid username or password.")
