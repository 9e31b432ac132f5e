"""Routes that change nothing."""

import json
import re
import urllib.parse

from .handler import Handler
from .repos import Refusal


class Reading(Handler):
    """Accounts, lists, files."""

    def whoami(self) -> None:
        user = self.logged_in()
        role = "write" if user.can_write else "read"
        orgs = [{"type": "org", "name": name, "fullname": name} for name in user.orgs]
        token = {"accessToken": {"role": role, "displayName": "test"}}
        self.answer({"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": token})

    def validate_yaml(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def list_repos(self, kind: str) -> None:
        names = [repo_id for (one, repo_id), repo in self.hub.repos.items() if one == kind and not repo.private]
        self.answer([{"_id": name, "id": name, "modelId": name, "private": False, "tags": []} for name in names])

    def repo_info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        repo = self.repo(kind, repo_id)
        oid, tree = self.commit_at(repo, revision)
        files = [{"rfilename": path} for path in sorted(tree)]
        about = {"_id": oid[:24], "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": oid}
        self.answer(
            {**about, "private": repo.private, "gated": False, "disabled": False, "tags": [], "siblings": files}
        )

    def tree(self, kind: str, repo_id: str, revision: str, path: str = "") -> None:
        _, tree = self.commit_at(self.repo(kind, repo_id), revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries, folders = [], set()
        for name in sorted(tree):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    entries.append({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
            if recursive or len(parts) == 1:
                entries.append(self.entry(tree, name))
        if prefix and not entries:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        self.answer(entries)

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        _, tree = self.commit_at(self.repo(kind, repo_id), revision)
        body = self.body().decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else urllib.parse.parse_qs(body)["paths"]
        self.answer([self.entry(tree, path) for path in paths if path in tree])

    def commits(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        oid, _ = self.commit_at(repo, revision)
        when = {"message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
        self.answer([{"id": one, "title": repo.titles[one], **when} for one in repo.history(oid)])

    def refs(self, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        named = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
        lists = {
            name: [{"name": ref, "ref": f"refs/{word}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]
            for name, (word, refs) in named.items()
        }
        self.answer({**lists, "converts": []})

    def download(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        oid, tree = self.commit_at(self.repo(kind, repo_id), revision)
        if path not in tree:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        content = self.hub.blobs[tree[path]]
        headers = {"ETag": f'"{tree[path]}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(content, headers=headers)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(content[first : last + 1], status=206, headers=headers)
