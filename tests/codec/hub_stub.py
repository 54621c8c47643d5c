"""As much of the hub's HTTP API as uploading a folder and downloading its files takes, on localhost."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories: name -> revision -> file -> bytes."""

    def __init__(self):
        self.repositories, self.blobs, self.tokens, self.address = {}, {}, set(), None

    def create(self, body):
        name = "/".join(filter(None, (body.get("organization"), body["name"])))
        self.repositories.setdefault(name, {"main": {}})
        return {"url": f"/{name}", "name": name}

    def commit(self, name, revision, lines):
        files = self.repositories[name].setdefault(revision, {})
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        return {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def _answer(self, body=b"", status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        body, hub, path = self._body(), self.hub, self.path.partition("?")[0]
        hub.tokens.add(self.headers.get("Authorization"))
        if path == "/api/repos/create":
            return self._answer(hub.create(json.loads(body)))
        if path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{hub.address}/blobs/{one['oid']}"}}} for one in objects]
            return self._answer({"transfer": "basic", "objects": upload}, Content_Type="application/vnd.git-lfs+json")
        name, _, rest = path.removeprefix("/api/models/").rpartition("/")
        name, _, action = name.rpartition("/")
        if action == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            return self._answer({"files": files})
        if action == "commit":
            return self._answer(hub.commit(name, rest, body.splitlines()))
        return self._answer(status=404)

    def do_PUT(self):
        body = self._body()
        self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
        self._answer()

    def do_GET(self):
        path = self.path.partition("?")[0]
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if about := path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            revision = revision or "main"
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._answer(status=404, X_Error_Code="RepoNotFound")
        if revision not in repository:
            return self._answer(status=404, X_Error_Code="RevisionNotFound")
        if about:
            return self._answer({"id": name, "siblings": [{"rfilename": file} for file in repository[revision]]})
        if file not in repository[revision]:
            return self._answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit="1" * 40)
        data = repository[revision][file]
        digest = hashlib.sha256(data).hexdigest()
        commit = hashlib.sha1(revision.encode()).hexdigest()
        return self._answer(data, ETag=f'"{digest}"', X_Repo_Commit=commit, Accept_Ranges="none")

    do_HEAD = do_GET  # noqa: N815 - its name in http.server


@contextmanager
def serving():
    """(hub, its address) while it is served."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub, hub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
