"""A small hub on loopback: the endpoints that huggingface_hub calls, over repositories in memory.

Large files are served by a second server, as the hub does it: the first one answers with a redirect that carries what
clients want to know, and the second one must not see anybody's token.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secret"
LARGE = (".safetensors", ".bin")


@dataclass
class Repo:
    """Commits by their hash: files by name."""

    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files, ref="main"):
        sha = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision):
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Seen:
    """A request, and how many bytes of body were answered."""

    method: str
    path: str
    range: str | None
    token: str | None
    server: str
    sent: int = 0


class HubServer:
    """The two servers, what they hold, and what they were asked."""

    def __init__(self):
        self.repos, self.objects, self.log, self.connections = {}, {}, [], []
        self.drops = {}  # part of a path -> bytes of the body after which the connection ends, once
        self.refusals = {}  # part of a path -> status, once
        self.deaf = False  # whether ranges are ignored
        self.lock = threading.Lock()
        self.api, self.cdn = self._start("api"), self._start("cdn")

    def _start(self, name):
        handler = type("Bound", (Handler,), {"hub": self, "name": name})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.api.server_port}"

    @property
    def storage(self):
        return f"http://127.0.0.1:{self.cdn.server_port}"

    def add(self, name, files, **settings):
        """Make a repository; returns its commit."""
        self.repos[name] = Repo(**settings)
        return self.repos[name].commit(files)

    def stop(self):
        for server in (self.api, self.cdn):
            server.shutdown()
            server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def downloads(self):
        """Names of the files of which bytes were served, with how many."""
        found = {}
        for seen in self.log:
            if seen.method == "GET" and not seen.path.startswith("/api"):
                name = unquote(seen.path.rpartition("/")[2])
                found[name] = found.get(name, 0) + seen.sent
        return found

    def take(self, once, path):
        with self.lock:
            key = next((key for key in once if key in path), None)
            return once.pop(key) if key is not None else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    name: str

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def answer(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.content = self.body()
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.seen(0)
        status = self.hub.take(self.hub.refusals, path)
        if status:
            return self.send(status, b"{}")
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return method(self, *match.groups())
        return self.send(404, json.dumps({"error": f"no route {path}"}).encode())

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def setup(self):
        super().setup()
        self.hub.connections.append(self.connection)

    def seen(self, sent):
        seen = Seen(
            self.command, unquote(urlsplit(self.path).path), self.headers.get("Range"), self.token, self.name, sent
        )
        with self.hub.lock:
            self.hub.log.append(seen)

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body and self.command != "HEAD":
            self.write(body)

    def write(self, body):
        most = self.hub.take(self.hub.drops, unquote(urlsplit(self.path).path))
        self.seen(len(body if most is None else body[:most]))
        self.wfile.write(body if most is None else body[:most])
        if most is not None:
            self.wfile.flush()
            self.close_connection = True

    def json(self, value, status=200):
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def allowed(self, name):
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != TOKEN):
            known = self.token == TOKEN
            self.send(404 if known else 401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        return repo

    def content_of(self, name, revision):
        repo = self.allowed(name)
        if repo is None:
            return None, None
        sha = repo.resolve(revision)
        if sha is None:
            self.send(404, b"{}", X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
            return None, None
        return sha, repo.commits[sha]

    def information(self, name, revision="main"):
        sha, files = self.content_of(name, revision)
        if sha:
            siblings = [{"rfilename": file, "size": len(data), "blobId": digest(data)} for file, data in files.items()]
            private = self.hub.repos[name].private
            self.json({"id": name, "modelId": name, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def tree(self, name, revision):
        sha, files = self.content_of(name, revision)
        if sha:
            self.json([{"type": "file", "path": f, "size": len(d), "oid": digest(d)} for f, d in files.items()])

    def search(self):
        wanted = self.query.get("search", [""])[0]
        self.json([{"id": name} for name, repo in self.hub.repos.items() if wanted[:4] in name and not repo.private])

    def resolve(self, name, revision, file):
        sha, files = self.content_of(name, revision)
        if sha is None:
            return
        if self.hub.repos[name].gated and self.token != TOKEN:
            self.send(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif file not in files:
            self.send(404, b"{}", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        elif file.endswith(LARGE):
            data = files[file]
            oid = hashlib.sha256(data).hexdigest()
            self.hub.objects[oid] = data
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": len(data), "X_Repo_Commit": sha}
            self.send(302, Location=f"{self.hub.storage}/store/{oid}/{file}?signature=abc", **linked)
        else:
            self.part(files[file], ETag=f'"{digest(files[file])}"', X_Repo_Commit=sha)

    def store(self, oid, _file):
        assert self.token is None, "the token of a user went to the storage"
        self.part(self.hub.objects[oid], ETag=f'"{oid}"')

    def part(self, data, **headers):
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None or self.hub.deaf:
            return self.send(200, data, **headers)
        first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        return self.send(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)

    def create(self):
        wanted = json.loads(self.content)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if self.token != TOKEN:
            return self.send(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        if name in self.hub.repos:
            return self.json({"url": f"{self.hub.endpoint}/{name}", "error": "exists"}, 409)
        self.hub.add(
            name, {".gitattributes": b""}, private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        return self.json({"url": f"{self.hub.endpoint}/{name}"})

    def branch(self, name, branch):
        repo = self.allowed(name)
        if repo and branch in repo.refs:
            self.json({"error": "exists"}, 409)
        elif repo:
            repo.refs[branch] = repo.refs["main"]
            self.json({})

    def preupload(self, name, revision):
        _, files = self.content_of(name, revision)
        if files is not None:
            modes = []
            for file in json.loads(self.content)["files"]:
                mode = "lfs" if file["path"].endswith(LARGE) else "regular"
                data = files.get(file["path"])
                oid = data and (hashlib.sha256(data).hexdigest() if mode == "lfs" else digest(data))
                modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.json({"files": modes})

    def batch(self, _name):
        answers = []
        for wanted in json.loads(self.content)["objects"]:
            href = {"upload": {"href": f"{self.hub.storage}/upload/{wanted['oid']}"}}
            answers.append(wanted if wanted["oid"] in self.hub.objects else {**wanted, "actions": href})
        self.json({"transfer": "basic", "objects": answers})

    def upload(self, oid):
        assert hashlib.sha256(self.content).hexdigest() == oid
        self.hub.objects[oid] = self.content
        self.send(200)

    def commit(self, name, revision):
        sha, files = self.content_of(name, revision)
        if sha is None:
            return
        changed = dict(files)
        for line in map(json.loads, self.content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.repos[name].commit(changed, revision)
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self.json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def validate(self):
        self.json({"errors": [], "warnings": []})


def digest(data):
    """The hash that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"((?:[\w.-]+/)?[\w.-]+)"
ROUTES = [
    (r"/api/models", Handler.search),
    (rf"/api/models/{_NAME}/revision/(.+)", Handler.information),
    (rf"/api/models/{_NAME}/tree/([^/]+)", Handler.tree),
    (rf"/api/models/{_NAME}/preupload/(.+)", Handler.preupload),
    (rf"/api/models/{_NAME}/commit/(.+)", Handler.commit),
    (rf"/api/models/{_NAME}/branch/(.+)", Handler.branch),
    (rf"/api/models/{_NAME}", Handler.information),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"/store/([0-9a-f]+)/(.+)", Handler.store),
    (r"/upload/([0-9a-f]+)", Handler.upload),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
