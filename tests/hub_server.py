"""A small Hugging Face Hub on this machine: the endpoints that its client uses to make a repository, commit and download."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secretsecretsecret"
COMMIT = "c" * 40


class Hub:
    """The state of the server: repository -> file -> bytes; all requests, as "METHOD path"."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.read_only = False
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", headers.pop("length", str(len(content))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        out = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):  # chunked
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        self.hub.objects[self.path.rsplit("/", 1)[1]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        hub, content = self.hub, self.body()
        hub.requests.append(f"POST {self.path}")
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if not self.allowed:
            return self.error(401, "", "Invalid credentials in Authorization header")
        if hub.read_only:
            return self.error(403, "", "Forbidden: you must use a write token")
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            hub.repos.setdefault(name, {})
            return self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        if "/info/lfs/objects/batch" in path:
            objects = json.loads(content)["objects"]
            href = [{"upload": {"href": f"{hub.url}/lfs/{one['oid']}", "header": {}}} for one in objects]
            made = [{**one, "actions": action} for one, action in zip(objects, href, strict=True)]
            return self.answer(200, {"transfer": "basic", "objects": made})
        repo = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(content)["files"]
            kinds = ["lfs" if one["path"].endswith(".safetensors") else "regular" for one in files]
            found = [
                {"path": one["path"], "uploadMode": kind, "shouldIgnore": False, "oid": None}
                for one, kind in zip(files, kinds, strict=True)
            ]
            return self.answer(200, {"files": found})
        if "/commit/" in path:
            for row in map(json.loads, content.splitlines()):
                value = row["value"]
                if row["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                if row["key"] == "lfsFile":
                    hub.repos[repo][value["path"]] = hub.objects[value["oid"]]
            url = f"{hub.url}/{repo}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
        return self.error(404, "", f"no such endpoint {path}")

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            if repo not in hub.repos:
                return self.error(404, "RepoNotFound", "Repository not found")
            siblings = [{"rfilename": name} for name in hub.repos[repo]]
            return self.answer(200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False})
        if "/resolve/" not in path:
            return self.error(404, "", f"no such endpoint {path}")
        repo, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo not in hub.repos or (repo in hub.private and not self.allowed):
            return self.error(404 if self.allowed else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", COMMIT):
            return self.error(404, "RevisionNotFound", "Invalid rev id")
        if name not in hub.repos[repo]:
            return self.error(404, "EntryNotFound", "Entry not found")
        content = hub.repos[repo][name]
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT, length=str(len(content)))

    do_HEAD = do_GET  # noqa: N815


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port, in a `with` block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
