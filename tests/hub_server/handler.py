"""Requests in, answers out, and who may ask for what."""

import fnmatch
import hashlib
import json
import re
import urllib.parse
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .repos import NOT_LOGGED_IN, Refusal, Repo, User

if TYPE_CHECKING:
    from . import HubServer

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.parquet", "*.gguf", "*.png", "*.tar", "*.npy")


class Handler(BaseHTTPRequestHandler):
    """One connection; subclasses add the methods that routes name."""

    protocol_version = "HTTP/1.1"
    hub: "HubServer"
    routes: list[tuple[str, str, str]]

    def log_message(self, *arguments: Any) -> None:
        pass

    def serve(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(split.query))
        self.content: bytes | None = None
        method = "GET" if self.command == "HEAD" else self.command
        try:
            status = self.hub.intercept and self.hub.intercept(self.command, self.path)
            if status:
                raise Refusal(status, None, "The server was told to refuse this.")
            for route_method, pattern, name in self.routes:
                # Matched before unquoting: a branch may be called refs%2Fpr%2F1.
                match = re.fullmatch(pattern, split.path)
                if match and route_method == method:
                    groups = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items() if value}
                    if "repo_id" in groups:
                        groups.setdefault("kind", "model")
                    getattr(self, name)(**groups)
                    return
            raise Refusal(404, None, f"no route for {self.command} {self.path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer({"error": refusal.message}, status=refusal.status, headers=headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.body()  # what is left unread would be taken for the next request
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.content is None:
            if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self.content = b"".join(chunks)
            else:
                self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.content

    # Who asks, and may they?

    def user(self) -> User | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if header.removeprefix("Bearer ") not in self.hub.users:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.hub.users[header.removeprefix("Bearer ")]

    def logged_in(self) -> User:
        user = self.user()
        if user is None:
            raise NOT_LOGGED_IN
        return user

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not (user and user.owns(repo_id))):
            # The Hub does not tell strangers what exists.
            if user is None:
                raise Refusal(401, "RepoNotFound", NOT_LOGGED_IN.message)
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if write:
            self.check_may_write(self.logged_in(), repo_id)
        return repo

    def check_may_write(self, user: User, repo_id: str) -> None:
        if not (user.can_write and user.owns(repo_id)):
            raise Refusal(403, None, f"You don't have the rights to write to {repo_id} with this token")

    def commit_at(self, repo: Repo, revision: str) -> tuple[str, dict[str, str]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.trees[oid]

    def entry(self, tree: dict[str, str], path: str) -> dict[str, Any]:
        content = self.hub.blobs[tree[path]]
        entry = {"type": "file", "path": path, "size": len(content), "oid": tree[path]}
        if is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)
