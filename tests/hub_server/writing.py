"""Routes that change something."""

import base64
import hashlib
import json

from .handler import Handler, is_large
from .repos import Refusal, Repo


class Writing(Handler):
    """Repositories, branches, uploads, commits."""

    def create_repo(self) -> None:
        wish, user = json.loads(self.body()), self.logged_in()
        kind, repo_id = wish.get("type") or "model", f"{wish.get('organization') or user.name}/{wish['name']}"
        self.check_may_write(user, repo_id)
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                self.answer({"error": "You already created this repo", "url": url}, status=409)
                return
            repo = Repo(private=wish.get("private") is True or wish.get("visibility") == "private")
            repo.add("main", {".gitattributes": self.hub.put_blob(b"")}, "initial commit")
            self.hub.repos[kind, repo_id] = repo
        self.answer({"url": url, "name": repo_id, "id": repo_id})

    def delete_repo(self) -> None:
        wish, user = json.loads(self.body()), self.logged_in()
        key = wish.get("type") or "model", f"{wish.get('organization') or user.name}/{wish['name']}"
        self.repo(*key, write=True)
        del self.hub.repos[key]
        self.answer({})

    def settings(self, kind: str, repo_id: str) -> None:
        repo, wish = self.repo(kind, repo_id, write=True), json.loads(self.body())
        repo.private = wish.get("private", repo.private)
        self.answer({})

    def create_branch(self, kind: str, repo_id: str, name: str) -> None:
        repo, wish = self.repo(kind, repo_id, write=True), json.loads(self.body() or b"{}")
        if name in repo.branches:
            raise Refusal(409, None, f"Reference already exists: {name}")
        repo.branches[name], _ = self.commit_at(repo, wish.get("startingPoint") or "main")
        self.answer({})

    def delete_branch(self, kind: str, repo_id: str, name: str) -> None:
        del self.repo(kind, repo_id, write=True).branches[name]
        self.answer({})

    def create_tag(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id, write=True)
        repo.tags[json.loads(self.body())["tag"]], _ = self.commit_at(repo, revision)
        self.answer({})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        _, tree = self.commit_at(self.repo(kind, repo_id, write=True), revision)
        paths = [file["path"] for file in json.loads(self.body())["files"]]
        mode = {path: "lfs" if is_large(path) else "regular" for path in paths}
        self.answer(
            {"files": [{"path": p, "uploadMode": mode[p], "shouldIgnore": False, "oid": tree.get(p)} for p in paths]}
        )

    def lfs_batch(self, kind: str, repo_id: str) -> None:
        self.repo(kind, repo_id, write=True)
        objects = []
        for wish in json.loads(self.body())["objects"]:
            one = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.hub.lfs:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wish['oid']}"}}
            objects.append(one)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, None, f"The content does not have the SHA-256 {oid}")
        self.hub.lfs[oid] = self.hub.put_blob(content)
        self.answer(b"")

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id, write=True)
        lines = [json.loads(line) for line in self.body().splitlines()]
        with self.hub.lock:
            oid, tree = self.commit_at(repo, revision)
            if revision not in repo.branches:
                raise Refusal(400, None, f"{revision} is not a branch")
            tree, title = dict(tree), ""
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, oid):
                        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
                elif line["key"] == "file":
                    tree[value["path"]] = self.hub.put_blob(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.lfs:
                        raise Refusal(400, None, f"LFS object {value['oid']} was not uploaded")
                    tree[value["path"]] = self.hub.lfs[value["oid"]]
                elif line["key"] == "deletedFile":
                    tree.pop(value["path"], None)
                elif line["key"] == "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    tree = {path: blob for path, blob in tree.items() if not path.startswith(folder)}
            new = repo.add(revision, tree, title)
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}/commit/{new}"
        self.answer({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})
