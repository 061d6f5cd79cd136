"""As much of W&B's server as keeps runs, artifacts and views; the real client speaks to it.

It knows the requests that W&B's own programs send, and keeps what they say. Whether W&B's server
takes the same, and how its app draws it, is what it can not show.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40
DATE = "2026-11-21T00:00:00"
LAST = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
ME = {"id": "u", "name": "me", "username": "me", "email": "", "admin": False, "entity": "me"}
VIEWER = {**ME, "flags": "{}", "teams": {"edges": []}}
PROJECT = {"__typename": "Project", "id": "P", "name": "bitsweep", "entityName": "me"}
PROJECT |= {"createdAt": DATE, "isBenchmark": False, "user": None}
Json = dict[str, Any]


@dataclass
class Server:
    """What it was sent, and to which paths. ``deaf``: whether it gives no answer any more, asked at
    each request with the name of its operation or its path, and all that was said in it.
    """

    url: str = ""
    runs: dict[str, Json] = field(default_factory=dict)
    artifacts: list[Json] = field(default_factory=list)
    views: dict[str, Json] = field(default_factory=dict)
    sent: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    deaf: Callable[[str, str], bool] = lambda what, said: False

    def finished(self) -> dict[str, Json]:
        """Runs whose last message came, by id."""
        return {ident: run for ident, run in self.runs.items() if "exitcode" in run}

    def stream(self, ident: str, said: Json) -> Json:
        """A part of a run's files, and at its end how it went."""
        for name, part in said.get("files", {}).items():
            if name == "wandb-summary.json":
                self.runs[ident]["summary"] = json.loads(part["content"][-1])
        if said.get("complete"):
            self.runs[ident]["exitcode"] = said["exitcode"]
        return {}

    def answer(self, name: str, query: str, given: Json) -> Json:
        """What a GraphQL operation gets."""
        known = {
            "UpsertBucket": self._upsert,
            "Run": self._one,
            "CreateRunFiles": self._files,
            "CreateArtifact": self._artifact,
            "CreateArtifactManifest": self._manifest,
            "CreateArtifactFiles": self._contents,
            "CommitArtifact": self._commit,
        }
        if name in known:
            return known[name](given)
        if "upsertView" in query:
            return self._view(given)
        if "allViews" in query:
            return self._views(given)
        return {
            "viewer": VIEWER,
            "models": {"edges": [{"node": PROJECT}], "pageInfo": LAST},
            "project": {**PROJECT, "artifact": None},
            "serverInfo": {"features": []},
        }

    def _upsert(self, given: Json) -> Json:
        new = "id" not in given or given["id"] is None  # else: some of a run that is there
        ident = given["name"] if new else given["id"]
        run = self.runs.setdefault(ident, {})
        if new and given.get("displayName"):  # begun, perhaps anew; without a name it is said again
            run.pop("exitcode", None)
        run |= {name: value for name, value in given.items() if value is not None}
        if given.get("config") is not None:
            config = json.loads(given["config"])
            run["config"] = {name: value["value"] for name, value in config.items()}
        whole = {**self._run(ident), "project": {**PROJECT, "entity": {"id": "E", "name": "me"}}}
        return {"upsertBucket": {"bucket": whole, "inserted": True}}

    def _one(self, given: Json) -> Json:
        known = given["name"] in self.runs
        return {"project": {"run": self._run(given["name"]) if known else None}}

    def _run(self, ident: str) -> Json:
        run = self.runs[ident]
        empty = dict.fromkeys(("description", "notes", "sweepName", "commit", "heartbeatAt"))
        return {
            **empty,
            "id": ident,
            "name": ident,
            "projectId": "1",
            "displayName": run.get("displayName"),
            "tags": run.get("tags", []),
            "group": run.get("groupName"),
            "jobType": run.get("jobType"),
            "state": "finished",
            "config": json.dumps({k: {"value": v} for k, v in run["config"].items()}),
            "summaryMetrics": json.dumps(run.get("summary", {})),
            "systemMetrics": "{}",
            "readOnly": False,
            "createdAt": DATE,
            "historyLineCount": 0,
            "historyKeys": {},
            "user": {"name": "me", "username": "me"},
        }

    def _files(self, given: Json) -> Json:
        files = [{"name": n, "uploadUrl": f"{self.url}/put/{n}"} for n in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _artifact(self, given: Json) -> Json:
        asked = given["input"]
        self.artifacts.append({"run": asked["runName"], "type": asked["artifactTypeName"]})
        self.artifacts[-1]["name"] = asked["artifactCollectionName"]
        ident = str(len(self.artifacts) - 1)
        made = {"id": ident, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def _manifest(self, given: Json) -> Json:
        file = {"id": "f", "uploadUrl": f"{self.url}/manifest/{given['artifactID']}"}
        made = {"id": given["artifactID"], "file": {**file, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": made}}

    def _contents(self, given: Json) -> Json:
        made = [
            {
                "node": {
                    "id": "n",
                    "name": one["name"],
                    "displayName": one["name"],
                    "uploadUrl": f"{self.url}/put/{one['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "storagePath": one["name"],
                    "artifact": {"id": one["artifactID"]},
                }
            }
            for one in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": made}}}

    def _commit(self, given: Json) -> Json:
        self.artifacts[int(given["artifactID"])]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def _view(self, given: Json) -> Json:
        ident = given.get("id") or f"Vmlldzox{len(self.views):04}"
        names = ("name", "displayName", "description", "spec", "type")
        self.views[ident] = {"id": ident, **{name: given[name] for name in names}}
        self.views[ident] |= {"createdAt": DATE, "updatedAt": DATE}
        project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
        return {"upsertView": {"view": {**self.views[ident], "project": project}}}

    def _views(self, given: Json) -> Json:
        found = [
            {"node": view, "cursor": view["id"]}
            for view in self.views.values()
            if view["type"] == given.get("viewType", "runs")
            and given.get("viewName") in (None, view["name"])
        ]
        return {"project": {"allViews": {"edges": found, "pageInfo": LAST}}}


@contextmanager
def serving() -> Iterator[Server]:
    """Such a server at a port of this machine."""
    kept, closing = Server(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._say(b"{}")

        def do_PUT(self) -> None:
            kind, _, rest = self.path.strip("/").partition("/")
            body = self._read()
            if kind == "manifest":
                kept.artifacts[int(rest)]["files"] = json.loads(body)["contents"]
            self._say(b"{}")

        def do_POST(self) -> None:
            body = self._read()
            if not body.startswith(b"{"):  # its own measurements
                return self._say(b"{}")
            asked = json.loads(body)
            query = asked.get("query", "")
            named = re.search(r"(?:query|mutation)\s+(\w+)", query)
            name = named[1] if named else self.path.rpartition("/")[2]
            if kept.deaf(name, self.path + body.decode()):
                closing.wait(60)
                return None
            if query:
                said = {"data": kept.answer(name, query, asked.get("variables") or {})}
            elif name == "file_stream":
                said = kept.stream(self.path.split("/")[-2], asked)
            else:
                said = {}
            return self._say(json.dumps(said).encode())

        def _read(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            kept.sent.append(body)
            kept.asked.append(self.path)
            return body

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    kept.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kept
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
