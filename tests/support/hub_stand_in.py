"""A stand-in of the Hugging Face Hub: a real HTTP server that keeps what is pushed and serves it.

It answers the requests of `huggingface_hub` for creating repositories and branches, for commits
with regular and LFS files, and for downloads. `HF_HUB_DISABLE_XET=1` lets a client use LFS.
`python tests/support/hub_stand_in.py` prints the variables to set.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_test_of_the_stand_in"
USER = "ada"


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[dict[str, Any]] = field(default_factory=list)
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, bytes] | None:
        revision = unquote(revision)
        return self.branches.get(revision, self.revisions.get(revision))

    def sha(self, revision: str) -> str:
        files = self.files(revision) or {}
        parts = [f"{path} {hashlib.sha256(data).hexdigest()}" for path, data in files.items()]
        return hashlib.sha1("\n".join(sorted(parts)).encode()).hexdigest()


class HubStandIn:
    """The repositories, the requests that came, and which requests fail."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        # A regular expression of "METHOD path" -> the status to answer with; 0: hang up.
        self.failures: dict[str, int] = {}
        self.delay = 0.0
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        files = self.repos[repo].files(revision)
        assert files is not None
        return files


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        hub = self.stand_in
        self.path_only = urlsplit(self.path).path
        request = f"{self.command} {self.path_only}"
        hub.requests.append(request)
        body = self._body()
        time.sleep(hub.delay)
        for pattern, status in hub.failures.items():
            if re.search(pattern, request):
                if not status:
                    self.close_connection = True
                    return
                return self._json({"error": f"the stand-in answers {status}"}, status)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.is_user = token == TOKEN
        if self.command in ("POST", "PUT") and not self.is_user and "/lfs/" not in self.path:
            return self._json({"error": "Invalid username or password."}, 401)
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, request):
                return getattr(self, method)(body, *map(unquote, match.groups()))
        self._json({"error": f"the stand-in has no {request}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _repo(self, name: str, revision: str = "main") -> Repo | None:
        repo = self.stand_in.repos.get(name)
        if repo is None or (repo.private and not self.is_user):
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        if repo.files(revision) is None:
            self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return repo

    # ---- pushing ----

    def create(self, body: bytes) -> None:
        values = json.loads(body)
        name = f"{values.get('organization') or USER}/{values['name']}"
        url = f"{self.stand_in.url}/{name}"
        if name.split("/")[0] != USER:
            return self._json({"error": f"You cannot write to {name}"}, 403)
        if name in self.stand_in.repos:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        private = values.get("private") or values.get("visibility") == "private"
        self.stand_in.repos[name] = Repo(private=bool(private))
        self._json({"url": url, "name": name})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = []
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.S)
        try:
            values = yaml.safe_load(match[1]) if match else {}
            for result in [r for m in values.get("model-index", []) for r in m["results"]]:
                if not (result["task"]["type"] and result["dataset"]["type"] and result["metrics"]):
                    errors.append({"message": "model-index: a field is empty"})
        except (yaml.YAMLError, KeyError, AttributeError) as error:
            errors.append({"message": f"{type(error).__name__}: {error}"})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        present = repo.files(revision) or {}
        files = []
        for file in json.loads(body)["files"]:
            is_large = file["path"].endswith((".safetensors", ".onnx", ".data"))
            data = present.get(file["path"])
            oid = None if data is None else hashlib.sha256(data).hexdigest()
            if data is not None and not is_large:
                oid = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
            mode = "lfs" if is_large else "regular"
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            entry = dict(item)
            if item["oid"] not in self.stand_in.objects:
                url = f"{self.stand_in.url}/lfs/{item['oid']}"
                entry["actions"] = {"upload": {"href": url}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "the content has another SHA-256"}, 400)
        self.stand_in.objects[oid] = body
        self._json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        files, summary = dict(repo.files(revision) or {}), {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                summary = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.stand_in.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
            else:
                return self._json({"error": f"no {item['key']}"}, 400)
        is_pull = "create_pr=1" in self.path
        target = f"refs/pr/{len(repo.commits) + 1}" if is_pull else revision
        repo.branches[target] = files
        oid = repo.sha(target)
        repo.revisions[oid] = files
        repo.commits.append({"revision": target, **summary})
        url = f"{self.stand_in.url}/{name}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        if is_pull:
            answer["pullRequestUrl"] = f"{url}/discussions/1"
        self._json(answer)

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        if branch in repo.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repo.branches[branch] = dict(repo.branches["main"])
        self._json({})

    # ---- reading ----

    def who(self, _: bytes) -> None:
        if not self.is_user:
            return self._json({"error": "Invalid username or password."}, 401)
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {}})

    def info(self, _: bytes, name: str, revision: str = "main") -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        files = repo.files(revision) or {}
        siblings = [{"rfilename": path} for path in files]
        sha = repo.sha(revision)
        repo.revisions[sha] = files
        self._json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def tree(self, _: bytes, name: str, revision: str, folder: str = "") -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        files = repo.files(revision) or {}
        found = {p: d for p, d in files.items() if p.startswith(folder + "/" * bool(folder))}
        if folder and not found:
            return self._json({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
        entries = [
            {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha256(d).hexdigest()}
            for p, d in found.items()
        ]
        self._json(entries)

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        files = repo.files(revision) or {}
        sha = repo.sha(revision)
        repo.revisions[sha] = files
        if path not in files:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": sha}
            return self._json({"error": "Entry not found"}, 404, **headers)
        etag = hashlib.sha256(files[path]).hexdigest()
        self._send(files[path], ETag=f'"{etag}"', X_Repo_Commit=sha)


_NAME = r"([^/]+/[^/]+)"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (rf"POST /api/models/{_NAME}/commit/([^/]+)", "commit"),
    (rf"POST /api/models/{_NAME}/branch/([^/]+)", "branch"),
    (r"GET /api/whoami-v2", "who"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"GET /api/models/{_NAME}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)", "tree"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)/(.+)", "tree"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def environment(hub: HubStandIn, cache: Any) -> dict[str, str]:
    """The environment variables of a process that uses the stand-in as its Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@contextmanager
def used_by_this_process(monkeypatch: Any, cache: Any) -> Iterator[HubStandIn]:
    """Let `huggingface_hub`, which read its variables when it was imported, use a new stand-in."""
    import transformers.utils.hub
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = HubStandIn()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    try:
        yield hub
    finally:
        close_session()
        hub.stop()


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubStandIn]:
    with used_by_this_process(monkeypatch, tmp_path / "hub_cache") as stand_in:
        yield stand_in


if __name__ == "__main__":
    served = HubStandIn()
    print(f"HF_ENDPOINT={served.url} HF_TOKEN={TOKEN}", flush=True)
    # Lines such as `fail commit 403`, `clear` and `list` on standard input.
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["fail"]:
            served.failures[words[1]] = int(words[2])
        elif words == ["clear"]:
            served.failures.clear()
        elif words == ["list"]:
            for repo_name, kept in served.repos.items():
                for branch_name, held in kept.branches.items():
                    print(repo_name, branch_name, {p: len(d) for p, d in held.items()}, flush=True)
