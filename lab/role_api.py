"""A stand-in for K2HR3's Role API that answers, and fails, as the real one was seen to.

    with RoleApi() as api:
        api.register("0f8e…", "10.0.0.1", "10.0.0.2")
        ...                                # a listener with api_url = api.url does its work
        assert api.members() == {}
        api.fault = Status(503)            # from the next request on
        api.fault = None                   # well again

What a healthy one answers is FACTS.md section 3. Like the real process it works off one request
at a time (`one_at_a_time`), those whose client gave up included: their members go, though nobody
is told.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import ssl
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Union, cast

from lab.proxy import Server, reset

#: The only path there is.
PATH = "/v1/role"

#: A request line longer than this is answered 431, as Node.js does.
LONGEST_REQUEST_LINE = 16384

#: A request head is given up at this size, in bytes.
LONGEST_HEAD = 1 << 20


# Faults, for RoleApi.fault


@dataclass(frozen=True)
class Status:
    """Answer every request with this status and remove nothing."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Hang:
    """Accept and read, and answer nothing; what was read is worked off when the fault is lifted."""


@dataclass(frozen=True)
class Reset:
    """Reset (RST) the connection of every request."""


@dataclass(frozen=True)
class Drip:
    """Do the work, and send the reply byte by byte."""

    seconds_per_byte: float = 1.0


@dataclass(frozen=True)
class Slow:
    """Do the work, but take so many seconds longer for each request."""

    seconds: float


@dataclass(frozen=True)
class CloseKeptAlive:
    """Close a connection when a request arrives on it that is not its first; serve the first.

    With `reset` the client sees a reset, else an orderly end without an answer.
    """

    reset: bool = False


@dataclass(frozen=True)
class Blocked:
    """The store is down: every request, abandoned or not, blocks the process and then fails."""

    seconds: float
    status: int = 400


@dataclass(frozen=True)
class Kept:
    """A store operation times out: the index of a cuk goes, and its members stay.

    Its first DELETE is answered so; every later one is answered 204, also without this fault, and
    removes nothing. A cuk without members is answered as ever.

    Args:
        status: of the first answer; None for a reset.
        seconds: that the first answer takes.
    """

    status: int | None = 403
    seconds: float = 0


@dataclass(frozen=True)
class Interim:
    """Do the work, answer 1xx at once, and finally `status` so many seconds later."""

    interim: int
    seconds: float = 0
    status: int = 204


@dataclass(frozen=True)
class Odd:
    """Do the work, and answer it with this status, these headers and this body.

    Args:
        missing: bytes that are announced and not sent: the connection is closed instead.
        endless: the body goes on until the client closes the connection.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    missing: int = 0
    endless: bool = False


Fault = Union[Status, Hang, Reset, Drip, Slow, CloseKeptAlive, Blocked, Kept, Interim, Odd]


# Requests


@dataclass(frozen=True)
class Request:
    """What is known of one request; its record is replaced by a new one when it ends.

    Args:
        begun: when it had been received, in seconds of `time.monotonic`.
        ended: when it was answered, or its connection went; None while it is under way.
        method: of the request line.
        target: raw path and query.
        extra: None where not given.
        host: the addresses it names, () if it names nothing that can be a member; None where no
            host is given, or two are: then all of a cuk's members are meant.
        cuk: None where not given.
        status: what was answered; None when nothing was.
    """

    begun: float
    ended: float | None
    method: str
    target: str
    extra: str | None = None
    host: tuple[str, ...] | None = None
    cuk: str | None = None
    status: int | None = None


def parse_request(method: str, target: str, begun: float) -> Request:
    """Return the record of a request that has just been received."""
    _, _, query = target.partition("?")
    given: dict[str, list[str]] = {}
    for name, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        given.setdefault(name, []).append(value)
    hosts = given.get("host", [])
    return Request(
        begun,
        None,
        method,
        target,
        extra=given.get("extra", [None])[0],
        # Express makes a list of a repeated parameter, which K2HR3 takes for none.
        host=parse_addresses(hosts[0]) if len(hosts) == 1 and hosts[0] else None,
        cuk=given.get("cuk", [None])[0],
    )


def parse_addresses(host: str) -> tuple[str, ...]:
    """Return the addresses that the parameter `host` names, () for what is no JSON list."""
    try:
        named = json.loads(host)
    except ValueError:
        return ()
    listed = named if isinstance(named, list) else []
    return tuple(address for address in listed if isinstance(address, str) and address)


def response(status: int, headers: Mapping[str, str], body: bytes, close: bool) -> bytes:
    """Return the bytes of an HTTP/1.1 response as Node.js writes it."""
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if status >= 200 and status != 204 and "Transfer-Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    lines += ["Connection: close"] if close else ["Connection: keep-alive", "Keep-Alive: timeout=5"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# The server


class RoleApi(Server):
    """A Role API of the lab; see the module's docstring.

    Args:
        host: address to listen on, IPv6 without brackets.
        tls: serve HTTPS with it; it may require a client certificate.
        one_at_a_time: work off one request at a time, as one API process does.
        delay: seconds of work for each request.
        on_end: called with the record of each request that ended, on the server's thread.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        one_at_a_time: bool = True,
        delay: float = 0,
        on_end: Callable[[Request], None] | None = None,
    ) -> None:
        super().__init__(host, tls)
        self.one_at_a_time = one_at_a_time
        self.delay = delay
        #: An idle connection is closed after so many seconds, counted from its last answer.
        self.keep_alive_seconds = 5.0
        #: Two requests at once get false 400 and 403 in turns, as from a store with small queues.
        self.false_errors_at_once = False
        #: Deletions of these cuks are answered `refused_status`, though the API is well.
        self.refused_cuks: set[str] = set()
        self.refused_status = 400
        #: One record for each request received, in that order.
        self.requests: list[Request] = []
        #: How often each cuk was answered 2xx, to a client that was there to read it.
        self.deletions: Counter[str] = Counter()
        #: Requests received and neither answered nor given up by their client: now, at most.
        self.under_way = 0
        self.most_at_once = 0
        self._on_end = on_end
        self._fault: Fault | None = None
        self._members: dict[str, set[str]] = {}
        self._unindexed: set[str] = set()  # cuks whose members no DELETE finds
        self._members_lock = threading.Lock()
        self._line: deque[_Job] = deque()
        self._in_work: set[_Job] = set()
        self._false_errors = 0

    @property
    def url(self) -> str:
        """What `api_url` has to be."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self._tls else ''}://{host}:{self.port}{PATH}"

    @property
    def fault(self) -> Fault | None:
        """What is wrong with it; takes effect for the next request that is worked off."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self._call(self._work)  # requests may wait in line for the end of a Hang

    @property
    def deleted(self) -> set[str]:
        """The cuks that were answered 2xx, to a client that was there to read it."""
        return set(self.deletions.copy())

    def register(self, cuk: str, *addresses: str) -> None:
        """Add members of the role."""
        with self._members_lock:
            self._members.setdefault(cuk, set()).update(addresses)
            self._unindexed.discard(cuk)

    def members(self) -> dict[str, set[str]]:
        """Return the addresses that are members of the role, by cuk."""
        with self._members_lock:
            return {cuk: set(addresses) for cuk, addresses in self._members.items()}

    def kept(self) -> set[str]:
        """Return the cuks with members that no DELETE removes any more; see `Kept`."""
        return self._unindexed & self.members().keys()

    def set_tls(self, context: ssl.SSLContext | None) -> None:
        """Use another context (a renewed certificate) for the connections to come."""
        self._tls = context

    def _protocol(self) -> asyncio.BaseProtocol:
        return _Connection(self)

    # The line in which requests wait

    def _receive(self, job: _Job) -> None:
        """Put a request in line."""
        self._begin(job)
        if self._line or self._in_work:
            for each in (job, *self._line, *self._in_work):
                each.overlapped = True
        self._line.append(job)
        self._work()

    def _work(self) -> None:
        """Begin with the next requests in line, as many as may be worked off now."""
        while self._line and not isinstance(self._fault, Hang):
            one_at_a_time = self.one_at_a_time or isinstance(self._fault, Blocked)
            blocked = any(isinstance(job.fault, Blocked) for job in self._in_work)
            if self._in_work and (one_at_a_time or blocked):
                return
            job = self._line.popleft()
            job.fault = self._fault
            seconds = self.delay
            if isinstance(job.fault, Kept) and not self._loses_index(job.request):
                job.fault = None
            if isinstance(job.fault, (Slow, Blocked, Kept)):
                seconds += job.fault.seconds
            if seconds > 0:
                self._in_work.add(job)
                asyncio.get_running_loop().call_later(seconds, self._worked_off, job)
            else:
                self._finish(job)

    def _worked_off(self, job: _Job) -> None:
        self._in_work.discard(job)
        self._finish(job)
        self._work()

    def _finish(self, job: _Job) -> None:
        """Do what the request asks and answer it, if its client is still there."""
        connection, fault = job.connection, job.fault
        if isinstance(fault, Kept) and job.request.cuk:
            self._unindexed.add(job.request.cuk)
        if isinstance(fault, Reset) or (isinstance(fault, Kept) and fault.status is None):
            if connection is not None:
                connection.drop(abruptly=True)
            return
        answer = self._answer(job)
        if answer.status == 204 and fault is not answer:
            self._remove(job.request)
        if connection is None:
            return
        if isinstance(fault, Odd):
            connection.send_odd(fault)
            return
        if isinstance(fault, Interim):
            connection.transport.write(f"HTTP/1.1 {fault.interim} Interim\r\n\r\n".encode())
            reply = response(fault.status, {}, b"", job.close)
            connection.send_later(reply, fault.status, fault.seconds)
            return
        reply = response(answer.status, answer.headers, answer.body, job.close)
        if isinstance(fault, Drip):
            connection.drip(reply, answer.status, fault.seconds_per_byte)
        else:
            self._end(job, answer.status)
            connection.send(reply)

    def _answer(self, job: _Job) -> Status:
        """What is answered to a request that was worked off."""
        if isinstance(job.fault, Status):
            return job.fault
        if isinstance(job.fault, (Kept, Blocked)):
            return Status(job.fault.status or 0)
        return Status(self._status(job))

    def _status(self, job: _Job) -> int:
        """Return what a Role API that is well answers."""
        request = job.request
        if request.target.partition("?")[0] != PATH:
            return 404
        if request.method != "DELETE" or not request.cuk:
            return 400
        if request.cuk in self.refused_cuks:
            return self.refused_status
        if self.false_errors_at_once and job.overlapped:
            self._false_errors += 1
            return 400 if self._false_errors % 2 else 403
        return 204

    def _loses_index(self, request: Request) -> bool:
        """Whether a cuk has members, and an index to lose."""
        return request.cuk in self.members() and request.cuk not in self._unindexed

    def _remove(self, request: Request) -> None:
        cuk = request.cuk
        assert cuk is not None
        if cuk in self._unindexed:
            return
        with self._members_lock:
            left = self._members.get(cuk, set())
            left.difference_update(left.copy() if request.host is None else request.host)
            if not left:
                self._members.pop(cuk, None)

    def _begin(self, job: _Job) -> None:
        """Record a request."""
        job.index = len(self.requests)
        self.requests.append(job.request)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)

    def _end(self, job: _Job, status: int | None) -> None:
        """Record the end of a request, as its client sees it."""
        self.under_way -= 1
        job.connection = None
        request = dataclasses.replace(job.request, ended=time.monotonic(), status=status)
        self.requests[job.index] = request
        if status is not None and 200 <= status < 300 and request.cuk:
            self.deletions[request.cuk] += 1
        if self._on_end is not None:
            self._on_end(request)


class _Job:
    """One request in line or in work; `connection` is None once it is answered or abandoned."""

    def __init__(self, request: Request, connection: _Connection, close: bool) -> None:
        self.request = request
        self.connection: _Connection | None = connection
        self.close = close
        self.index = -1  # of its record
        self.overlapped = False
        self.fault: Fault | None = None


class _Connection(asyncio.Protocol):
    """One connection of a client: reads requests one after another and writes the answers."""

    def __init__(self, api: RoleApi) -> None:
        self.api = api
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.job: _Job | None = None
        self.served = 0
        self.idle_since: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.api._open.add(self.transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.api._open.discard(self.transport)
        if self.timer is not None:
            self.timer.cancel()
        job, self.job = self.job, None
        if job is not None and job.connection is not None:
            self.api._end(job, None)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.job is None:
            self.next_request()

    def next_request(self) -> None:
        """Take one request from what was received, if it is complete."""
        head_size = self.received.find(b"\r\n\r\n") + 4
        if head_size < 4:
            if len(self.received) > LONGEST_HEAD:
                self.drop(abruptly=True)
            return
        head = self.received[:head_size].decode("latin-1")
        line, _, headers = head.partition("\r\n")
        del self.received[:head_size]
        self.idle_since = None
        words = line.split(" ")
        valid = len(words) == 3 and words[2].startswith("HTTP/1.")
        method, target, version = words if valid else ("", line, "")
        request = parse_request(method, target, time.monotonic())
        close = version == "HTTP/1.0" or "connection: close" in headers.lower()
        self.job = _Job(request, self, close)
        self.served += 1
        fault = self.api.fault
        if not valid or len(line) > LONGEST_REQUEST_LINE:
            self.refuse(self.job, 431 if valid else 400)
        elif isinstance(fault, CloseKeptAlive) and self.served > 1:
            self.api._begin(self.job)
            self.drop(fault.reset)
        else:
            self.api._receive(self.job)

    def refuse(self, job: _Job, status: int) -> None:
        """Answer what the parser refuses: at once, whatever the process is busy with."""
        self.api._begin(job)
        job.close = True
        self.api._end(job, status)
        self.send(response(status, {}, b"", close=True))

    def send(self, reply: bytes) -> None:
        """Send an answer, and go on with the next request or close."""
        job, self.job = self.job, None
        self.transport.write(reply)
        if job is None or job.close:
            self.transport.close()
            return
        self.idle_since = time.monotonic()
        if self.timer is None:
            self.close_when_idle()

    def send_later(self, reply: bytes, status: int, seconds: float) -> None:
        """Send an answer so many seconds later, if its client is still there."""

        def send() -> None:
            if self.job is not None and not self.transport.is_closing():
                self.api._end(self.job, status)
                self.send(reply)

        asyncio.get_running_loop().call_later(seconds, send)

    def send_odd(self, odd: Odd) -> None:
        """Send an answer whose body is not what its headers say, or never ends."""
        assert self.job is not None
        headers = dict(odd.headers)
        if odd.endless:
            headers["Transfer-Encoding"] = "chunked"
        reply = response(odd.status, headers, odd.body + bytes(odd.missing), close=False)
        self.api._end(self.job, odd.status)
        if odd.endless:
            self.transport.write(reply)
            self.send_for_ever(b"%x\r\n%b\r\n" % (1000, bytes(1000)))
        elif odd.missing:
            self.transport.write(reply[: -odd.missing])
            self.transport.close()
        else:
            self.send(reply)

    def send_for_ever(self, more: bytes) -> None:
        """Send the same again and again, until the connection is closed."""
        if not self.transport.is_closing():
            self.transport.write(more)
            asyncio.get_running_loop().call_later(0.01, self.send_for_ever, more)

    def drip(self, reply: bytes, status: int, seconds: float) -> None:
        """Send an answer byte by byte; the request ends with the last one."""
        if self.job is None or self.transport.is_closing():
            return
        if len(reply) > 1:
            self.transport.write(reply[:1])
            asyncio.get_running_loop().call_later(seconds, self.drip, reply[1:], status, seconds)
        else:
            self.api._end(self.job, status)
            self.send(reply)

    def drop(self, abruptly: bool) -> None:
        """Close the connection without an answer, `abruptly` by a reset."""
        if abruptly:
            reset(self.transport)
        else:
            self.transport.close()

    def close_when_idle(self) -> None:
        """Close the connection if it is idle for too long, or look again when that may be."""
        now = time.monotonic()
        since = now if self.idle_since is None else self.idle_since
        left = since + self.api.keep_alive_seconds - now
        if left <= 0:
            self.transport.close()
        else:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(left, self.close_when_idle)
