"""A small Hub on the loopback interface: the real huggingface_hub client talks HTTP to it.

It knows repositories of models and datasets with commits, branches, tags and private ones; the preupload, LFS (`basic`
transfer) and commit calls of an upload; downloads with ranges; and who may do what, by token. It does not know Xet
storage, pull requests and gated repositories.
"""

import hashlib
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .reading import Reading
from .repos import Repo, User
from .writing import Writing

WRITE_TOKEN, READ_TOKEN, STRANGER_TOKEN = "hf_tester", "hf_tester_read", "hf_stranger"

# Every route: method, pattern of the path, name of the handler's method. Named groups become its arguments.
_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_REPO}"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("DELETE", r"/api/repos/delete", "delete_repo"),
    ("GET", r"/api/(?P<kind>model|dataset)s", "list_repos"),
    ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", "repo_info"),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "commits"),
    ("GET", rf"{_API}/refs", "refs"),
    ("POST", rf"{_API}/branch/(?P<name>[^/]+)", "create_branch"),
    ("DELETE", rf"{_API}/branch/(?P<name>[^/]+)", "delete_branch"),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", "create_tag"),
    ("PUT", rf"{_API}/settings", "settings"),
    ("POST", rf"/((?P<kind>dataset)s/)?{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("GET", rf"/((?P<kind>dataset)s/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
]


class _Handler(Reading, Writing):
    routes = ROUTES


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        # A client that is killed in the middle of a request is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


class HubServer:
    """The server and what it holds.

    Attributes:
        url (`str`): What HF_ENDPOINT should be.
        requests (`list[tuple[str, str, int]]`): Method, path and status of every answer.
        intercept (`Callable` or `None`): Called with method and path before a request is served. It may block, and a
            status that it returns is the answer.
    """

    def __init__(self) -> None:
        self.users = {
            WRITE_TOKEN: User("tester", can_write=True, orgs=("org",)),
            READ_TOKEN: User("tester", can_write=False, orgs=("org",)),
            STRANGER_TOKEN: User("stranger", can_write=True),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.lfs: dict[str, str] = {}  # sha256 of a large file: its blob
        self.requests: list[tuple[str, str, int]] = []
        self.intercept: Callable[[str, str], int | None] | None = None
        self.lock = threading.RLock()
        self._server = _Listener(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Any, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Variables with which another process uses this Hub; set them before it imports huggingface_hub."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return variables if token is None else variables | {"HF_TOKEN": token}

    def use(self, monkeypatch: Any, cache: Any, token: str | None = WRITE_TOKEN) -> None:
        """Let huggingface_hub, transformers and datasets in this process talk to this Hub until the test ends."""
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", self.url)
        monkeypatch.setattr(
            f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", self.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", self.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(cache) / "datasets")
        self.log_in(monkeypatch, token)

    def log_in(self, monkeypatch: Any, token: str | None) -> None:
        """Change whose token this process's clients send; with None they send none."""
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        # A token that the developer has saved must not be sent.
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Content of every file at a revision, as a client would see it."""
        repo = self.repos[kind, repo_id]
        return {path: self.blobs[blob] for path, blob in repo.trees[repo.resolve(revision)].items()}

    def put_blob(self, content: bytes) -> str:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.blobs[oid] = content
        return oid
