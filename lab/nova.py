"""A stand-in for Keystone and Nova that lists deleted servers, and fails, as the real ones do.

    with OpenStack() as cloud:
        cloud.add("DELETED", count=3)
        cloud.faults[2] = Fault(500)      # of the second request for servers
        ...                               # a client with OS_AUTH_URL=cloud.auth_url asks

What healthy ones answer is FACTS.md section 7. `cloud.requests` are those that arrived.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

KEYSTONE = "/identity"
NOVA = "/compute"
SERVERS = f"{NOVA}/v2.1/servers"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
JSON = "application/json"
#: What a user's login names.
PROJECT = "admin"


@dataclass(frozen=True)
class Fault:
    """An answer in place of the right one.

    Args:
        status: None where there is no answer, only an open connection.
        body: `{token}` in it stands for the request's token.
    """

    status: int | None
    body: str = ""
    content_type: str = JSON


class Server(NamedTuple):
    """A row of Nova's: its status is its API's, the time of the last change UTC without zone."""

    id: str
    status: str
    updated: datetime


class Request(NamedTuple):
    """What is known of one request: of its query, each option with its values."""

    method: str
    path: str
    query: Mapping[str, list[str]]


@dataclass
class OpenStack:
    """Keystone and Nova on one port of 127.0.0.1, for as long as its context lasts.

    Args:
        page_size: most servers in one answer.
        token_uses: after so many requests with it a token has expired; None: never.
        discovery: whether Nova's version documents are there for everybody.
        access_rule: application credentials may list servers and do nothing else.
        catalog_type: the service type of Nova in the catalog.
        faults: what goes wrong at which request for servers, counted from 1.
        keystone_fault: what goes wrong at each request for a token.
        row: further keys of each server that is listed.
    """

    page_size: int = 3
    token_uses: int | None = None
    discovery: bool = True
    access_rule: bool = True
    catalog_type: str = "compute"
    faults: dict[int, Fault] = field(default_factory=dict)
    keystone_fault: Fault | None = None
    row: dict[str, Any] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    #: Each token with the number of requests that it was used for, and whether it is restricted.
    tokens: dict[str, tuple[int, bool]] = field(default_factory=dict)
    user: str = "lister"
    password: str = "pa55{w}ord"
    credential_id: str = "0c2e3a4b5d6f"
    secret: str = "s3{cr}3t"

    def __enter__(self) -> OpenStack:
        handler = type("Handler", (_Handler,), {"cloud": self})
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where both are."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def auth_url(self) -> str:
        """Keystone's, without version."""
        return self.url + KEYSTONE

    @property
    def of_nova(self) -> list[Request]:
        """The requests to Nova but those for version documents."""
        documents = (NOVA, f"{NOVA}/v2.1")
        own = [each for each in self.requests if each.path.startswith(NOVA)]
        return [each for each in own if each.path.rstrip("/") not in documents]

    def add(self, status: str, count: int = 1, ago: timedelta = timedelta()) -> list[str]:
        """Add servers with this status, changed so long ago; returns their ids, newest first."""
        changed = datetime.now(timezone.utc).replace(tzinfo=None) - ago
        added = [
            Server(str(uuid.uuid4()), status, changed - timedelta(milliseconds=number))
            for number in range(count)
        ]
        self.servers += added
        return [server.id for server in added]

    def stall(self) -> None:
        """Wait until the context ends."""
        self._ended.wait()

    def issue_token(self, body: Any) -> str | None:
        """The token for the body of a login, or None where that is refused."""
        identity = body["auth"]["identity"]
        credential = identity.get("application_credential")
        if credential is not None:
            right = (credential["id"], credential["secret"]) == (self.credential_id, self.secret)
        else:
            user = identity["password"]["user"]
            right = (user["name"], user["password"]) == (self.user, self.password)
            right = right and body["auth"]["scope"]["project"]["name"] == PROJECT
        if not right:
            return None
        token = f"gAAAAA{uuid.uuid4().hex}"
        self.tokens[token] = (0, credential is not None and self.access_rule)
        return token

    def accepts(self, token: str, method: str, path: str) -> bool:
        """Whether a request with this token may be made; counts it."""
        if token not in self.tokens:
            return False
        uses, restricted = self.tokens[token]
        if self.token_uses is not None and uses >= self.token_uses:
            return False
        self.tokens[token] = (uses + 1, restricted)
        return not restricted or (method, path) == ("GET", SERVERS)

    def listed(self, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        """Status and body of the answer to a request for servers."""
        option = {name: values[0] for name, values in query.items()}
        since = datetime.strptime(option.get("changes-since", "1970-01-01T00:00:00Z"), TIME_FORMAT)
        if "status" in option:
            statuses = {option["status"]}
        elif option.get("deleted", "").lower() == "true":
            statuses = {"DELETED", "SOFT_DELETED"}
        else:
            statuses = {"ACTIVE"}
        newest_first = sorted(self.servers, key=lambda server: server.updated, reverse=True)
        found = [each for each in newest_first if each.status in statuses and each.updated >= since]
        if "marker" in option:
            ids = [server.id for server in found]
            if option["marker"] not in ids:
                message = f"marker [{option['marker']}] not found"
                return 400, {"badRequest": {"code": 400, "message": message}}
            found = found[ids.index(option["marker"]) + 1 :]
        if "all_tenants" not in option:
            found = []
        page = found[: self.page_size]
        listed = [{"id": each.id, "name": "n", "links": [], **self.row} for each in page]
        answer: dict[str, Any] = {"servers": listed}
        if len(page) == self.page_size:
            further = urlencode({**option, "marker": page[-1].id})
            href = f"{self.url}{SERVERS}?{further}"
            answer["servers_links"] = [{"rel": "next", "href": href}]
        return 200, answer

    def documents(self) -> dict[str, Any]:
        """The version documents by path."""
        links = [{"rel": "self", "href": f"{self.auth_url}/v3/"}]
        v3 = {"id": "v3.14", "status": "stable", "links": links}
        links = [{"rel": "self", "href": f"{self.url}{NOVA}/v2.1/"}]
        versions = {"version": "2.100", "min_version": "2.1"}
        v2_1 = {"id": "v2.1", "status": "CURRENT", "links": links, **versions}
        found: dict[str, Any] = {
            KEYSTONE: {"versions": {"values": [v3]}},
            f"{KEYSTONE}/v3": {"version": v3},
        }
        if self.discovery:
            found.update({NOVA: {"versions": [v2_1]}, f"{NOVA}/v2.1": {"version": v2_1}})
        return found

    def login(self) -> Any:
        """The body that comes with a token."""
        now, form = datetime.now(timezone.utc), "%Y-%m-%dT%H:%M:%S.000000Z"
        domain = {"id": "default", "name": "Default"}
        region = {"region": "RegionOne", "region_id": "RegionOne"}
        endpoint = {"id": "endpoint", "interface": "public", "url": f"{self.url}{NOVA}/v2.1"}
        service = {"id": "service", "type": self.catalog_type, "name": "nova"}
        token = {
            "methods": ["password"],
            "issued_at": now.strftime(form),
            "expires_at": (now + timedelta(hours=1)).strftime(form),
            "user": {"id": "user", "name": self.user, "domain": domain},
            "project": {"id": "project", "name": PROJECT, "domain": domain},
            "roles": [{"id": "role", "name": "admin"}],
            "catalog": [{**service, "endpoints": [{**endpoint, **region}]}],
        }
        return {"token": token}


class _Handler(BaseHTTPRequestHandler):
    cloud: OpenStack

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Write nothing."""

    def do_POST(self) -> None:
        """A login; nothing else is ever posted."""
        cloud, path = self.cloud, self._record()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path != f"{KEYSTONE}/v3/auth/tokens":
            self._answer(404, {})
        elif cloud.keystone_fault:
            self._fail(cloud.keystone_fault)
        elif token := cloud.issue_token(body):
            self._answer(201, cloud.login(), {"X-Subject-Token": token})
        else:
            self._refuse()

    def do_GET(self) -> None:
        """Version documents and servers."""
        cloud, path = self.cloud, self._record()
        document = cloud.documents().get(path.rstrip("/"))
        if document:
            self._answer(300 if "versions" in document else 200, document)
        elif not cloud.accepts(self.headers["X-Auth-Token"] or "", "GET", path):
            self._refuse()
        elif path != SERVERS:
            self._answer(404, {"itemNotFound": {"code": 404, "message": "not found"}})
        elif fault := cloud.faults.get(sum(each.path == SERVERS for each in cloud.requests)):
            self._fail(fault)
        else:
            self._answer(*cloud.listed(parse_qs(urlsplit(self.path).query)))

    def _record(self) -> str:
        """Note this request; returns its path."""
        parts = urlsplit(self.path)
        self.cloud.requests.append(Request(self.command, parts.path, parse_qs(parts.query)))
        return parts.path

    def _refuse(self) -> None:
        message = "The request you have made requires authentication."
        self._answer(401, {"error": {"code": 401, "title": "Unauthorized", "message": message}})

    def _fail(self, fault: Fault) -> None:
        if fault.status is None:
            self.cloud.stall()
            return
        body = fault.body.replace("{token}", self.headers["X-Auth-Token"] or "")
        self._send(fault.status, body.encode(), {"Content-Type": fault.content_type})

    def _answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": JSON, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
