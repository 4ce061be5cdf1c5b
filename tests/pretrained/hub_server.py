"""A server on this machine that speaks the part of the hub's protocol that pushing and fetching a model takes."""

import base64
import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
MAIN = "main"


class Hub:
    """Repositories as folders, one for each commit: root/user/name/<commit>/files.

    Args:
        root: an empty folder.
    """

    def __init__(self, root):
        self.root = Path(root)
        self.branches = {}  # repository -> branch -> commits, oldest first
        self.requests = []
        self.private = {}
        self.url = None

    def commit(self, repo, files=None, deleted=(), branch=MAIN):
        """Put files in place of those of the same names, as a new commit; returns its id."""
        history = self.branches[repo][branch]
        name = hashlib.sha1(f"{repo} {branch} {len(history)}".encode()).hexdigest()
        folder = self.root / repo / name
        if history:
            shutil.copytree(self.root / repo / history[-1], folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in (files or {}).items():
            (folder / path).write_bytes(content)
        for path in deleted:
            (folder / path).unlink()
        history.append(name)
        return name

    def create(self, repo, private=False, branches=(MAIN,)):
        self.branches[repo] = {branch: [] for branch in branches}
        self.private[repo] = private
        for branch in branches:
            self.commit(repo, {".gitattributes": b""}, branch=branch)

    def pull(self, repo):
        """Open a pull request onto main; returns its branch."""
        number = sum(name.startswith("refs/pr/") for name in self.branches[repo]) + 1
        self.branches[repo][f"refs/pr/{number}"] = list(self.branches[repo][MAIN])
        return f"refs/pr/{number}"

    def folder(self, repo, revision=MAIN):
        """The folder of a branch or commit, or None."""
        if revision in self.branches[repo]:
            revision = self.branches[repo][revision][-1]
        folder = self.root / repo / revision
        return folder if folder.is_dir() else None

    def text(self, repo, path="README.md", revision=MAIN):
        return (self.folder(repo, revision) / path).read_text(encoding="utf-8")


@contextmanager
def served(root):
    """A hub at `.url` until the block ends."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._file()

    def do_GET(self):
        parts = self._parts()
        if parts[:2] == ["api", "models"] and parts[4:5] == ["discussions"]:
            self._discussion("/".join(parts[2:4]), int(parts[5]))
        elif parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else MAIN)
        else:
            self._file()

    def do_POST(self):
        body, parts = self._body(), self._parts()
        if parts == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "", "Invalid username or password.")
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[:2] == ["api", "models"] and parts[4] == "discussions":
            repo = "/".join(parts[2:4])
            self._discussion(repo, int(self.hub.pull(repo).rsplit("/", 1)[1]))
        elif parts[:2] == ["api", "models"] and parts[4] in ("preupload", "commit"):
            repo, branch = "/".join(parts[2:4]), parts[5]
            if branch not in self.hub.branches.get(repo, {}):
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            elif parts[4] == "preupload":
                self._preupload(repo, branch, json.loads(body)["files"])
            else:
                self._commit(repo, branch, [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "", "no such endpoint")

    def _parts(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, said):
        repo = f"{said['organization']}/{said['name']}"
        if repo in self.hub.branches:
            self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}
            )
            return
        self.hub.create(repo, said.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _preupload(self, repo, branch, files):
        there = self.hub.folder(repo, branch)
        modes = []
        for file in files:
            path = there / file["path"]
            oid = _git_id(path.read_bytes()) if path.is_file() else None
            modes.append({"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": modes})

    def _commit(self, repo, branch, lines):
        files, deleted = {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        said = {"success": True}
        if "create_pr=1" in self.path:  # so where hf_xet is not installed; else the request is opened first
            branch = self.hub.pull(repo)
            said["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{branch.rsplit('/', 1)[1]}"
        name = self.hub.commit(repo, files, deleted, branch)
        self._answer(200, {**said, "commitUrl": f"{self.hub.url}/{repo}/commit/{name}", "commitOid": name})

    def _discussion(self, repo, number):
        self._answer(200, {
            "num": number, "title": "", "createdAt": "2024-01-01T00:00:00.000Z", "status": "draft", "events": [],
            "repo": {"name": repo, "type": "model"}, "isPullRequest": True, "filesWithConflicts": [],
            "changes": {"base": "refs/heads/main"},
        })  # fmt: skip

    def _info(self, repo, revision):
        if repo not in self.hub.branches:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        folder = self.hub.folder(repo, revision)
        if folder is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        self._answer(200, {"id": repo, "sha": folder.name, "siblings": siblings, "tags": []})

    def _file(self):
        parts = (
            self._parts() if self.command == "HEAD" else [unquote(p) for p in self.path.strip("/").split("/")]
        )
        if len(parts) != 5 or parts[2] != "resolve":
            self._refuse(404, "", "no such endpoint")
            return
        repo = "/".join(parts[:2])
        if repo not in self.hub.branches:
            self._refuse(
                401, "RepoNotFound", "Repository not found"
            )  # as the real one: private, or not there
            return
        folder = self.hub.folder(repo, parts[3])
        if folder is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
            return
        path = folder / parts[4]
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": folder.name})
            return
        content = path.read_bytes()
        self._send(200, content, {"ETag": f'"{_git_id(content)}"', "X-Repo-Commit": folder.name})

    def _refuse(self, status, code, message, headers=None):
        said = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), {k: v for k, v in said.items() if v})

    def _answer(self, status, said):
        self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _git_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
