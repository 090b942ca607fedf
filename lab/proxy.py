"""A TCP server in a thread of the test's process, and a proxy that does harm to what it forwards.

`Server` is what the lab's servers share: a port that stays theirs while they refuse connections, an
event loop in a thread of its own, and a `stop` that leaves no thread and no socket behind.
`Proxy` stands between the listener and the broker (or the Role API) and plays a bad network:

    with Proxy(5672) as proxy:
        url = f"rabbit://guest:guest@127.0.0.1:{proxy.port}/"
        ...
        proxy.cut()        # every connection is reset
        proxy.stall()      # half-open: nothing arrives any more, and nothing is closed
        proxy.resume()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import TypeVar, cast

Result = TypeVar("Result")
AnyServer = TypeVar("AnyServer", bound="Server")

#: Bytes read from a connection at once. More makes one connection hog the loop.
CHUNK = 65536

#: A limited connection is read this often a second, so that its pace is even.
READS_A_SECOND = 20


def reset(transport: asyncio.BaseTransport) -> None:
    """Close a connection so that the other side sees a reset (RST), not an orderly end."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cast(asyncio.Transport, transport).abort()


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a non-blocking socket bound to `host` (IPv6 too) and `port` that refuses connections.

    It refuses until `listen` is called, and keeps the port from being given to anyone else.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


class Server:
    """A TCP server on one port, worked by one thread; subclasses say what a connection does.

    The port is taken when the object is made; connections are refused until `start`.

    Args:
        host: address to listen on, IPv6 without brackets.
        tls: context of the connections to come, None for plain TCP.
    """

    #: What its event loop waits with.
    selector: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector

    def __init__(self, host: str, tls: ssl.SSLContext | None = None) -> None:
        self._listening = bound_socket(host, 0)
        self.host = host
        self.port: int = self._listening.getsockname()[1]
        #: TCP connections accepted so far.
        self.connections = 0
        self._tls = tls
        self._open: set[asyncio.Transport] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self: AnyServer) -> AnyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to accept connections; they are accepted when this returns."""
        self._loop = asyncio.SelectorEventLoop(type(self).selector())
        self._thread = threading.Thread(
            target=self._run, args=(self._loop,), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        self.accept()

    def stop(self) -> None:
        """Reset all connections and end the thread; harmless when stopped already."""
        if self._loop is not None and self._thread is not None:
            self._call(self._close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop = self._thread = None
        self._listening.close()

    def refuse(self) -> None:
        """Refuse connections and reset the open ones, as when the server's process was killed."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._call(self._accept)

    def _protocol(self) -> asyncio.BaseProtocol:
        """Return what handles one new connection."""
        raise NotImplementedError

    def _call(self, action: Callable[[], Result]) -> Result:
        """Run `action` on the server's thread and return its result; at once if there is none."""
        if self._loop is None or threading.current_thread() is self._thread:
            return action()
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.run_until_complete(self._close_all())
        loop.close()

    async def _close_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close their sockets a turn or two of the loop after they were aborted.
        for _ in range(3):
            for transport in list(self._open):
                transport.abort()
            await asyncio.sleep(0)
        await asyncio.get_running_loop().shutdown_default_executor()

    def _accept(self) -> None:
        self._listening.listen(128)
        if self._loop is not None:
            self._loop.add_reader(self._listening.fileno(), self._accept_one)

    def _refuse(self) -> None:
        self._close()
        self._listening = bound_socket(self.host, self.port)

    def _close(self) -> None:
        """Give the port up, and reset the open connections."""
        if self._loop is not None:
            self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        for task in list(self._opening):
            # One turn later: a task cancelled before its first step would leave its socket open.
            task.get_loop().call_soon(task.cancel)
        for transport in list(self._open):
            reset(transport)

    def _accept_one(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return  # gone before it could be accepted
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        assert self._loop is not None
        task = self._loop.create_task(self._open_connection(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_connection(self, connection: socket.socket) -> None:
        assert self._loop is not None
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError:
            pass  # a TLS handshake that failed: the client has its alert, asyncio closed the socket


class Proxy(Server):
    """A TCP proxy on 127.0.0.1 that forwards to one port and can cut, stall, slow and refuse.

    Every fault takes effect at once and holds until it is undone; all may be set from any thread.

    Args:
        target_port: where to forward to, on 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__("127.0.0.1")
        self.target = ("127.0.0.1", target_port)
        #: Bytes per second of each direction of each connection; None for no limit.
        self.rate: float | None = None
        #: Bytes forwarded so far.
        self.to_client = 0
        self._stalled = False
        self._spared: set[_Side] = set()
        self._cut_at: int | None = None
        self._sides: set[_Side] = set()

    def cut(self) -> None:
        """Reset all connections, on both sides; new ones are accepted."""
        self._call(self._cut)

    def cut_after(self, count: int) -> None:
        """Reset all connections, once, when `count` further bytes have gone to clients."""

        def plan() -> None:
            self._cut_at = self.to_client + count

        self._call(plan)

    def stall(self) -> None:
        """Forward nothing and close nothing; new connections are accepted and stay silent."""
        self._call(lambda: self._set_stalled(True))

    def spare(self) -> None:
        """What is open now is spared by the stalls to come."""
        self._call(lambda: self._spared.update(self._sides))

    def resume(self) -> None:
        """Forward again, beginning with what was held back."""
        self._call(lambda: self._set_stalled(False))

    def _protocol(self) -> asyncio.BaseProtocol:
        return _Side(self, None)

    def _close(self) -> None:
        super()._close()
        self._cut()

    def _cut(self) -> None:
        self._cut_at = None
        for side in list(self._sides):
            if side.transport is not None:
                reset(side.transport)

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        for side in list(self._sides):
            side.pace()

    async def _connect(self, client: _Side) -> None:
        """Open the way from `client` to the target."""
        assert self._loop is not None
        try:
            await self._loop.create_connection(lambda: _Side(self, client), *self.target)
        except OSError:
            if client.transport is not None:
                reset(client.transport)


class _Side(asyncio.BufferedProtocol):
    """One end of a forwarded connection: the client's, or (with `client`) the target's."""

    def __init__(self, proxy: Proxy, client: _Side | None) -> None:
        self.proxy = proxy
        self.other = client
        self.is_target = client is not None
        self.transport: asyncio.Transport | None = None
        self.buffer = memoryview(bytearray(CHUNK))
        self.full = False  # the other end takes no more for now
        self.waiting: asyncio.TimerHandle | None = None  # for the rate to allow more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.proxy._sides.add(self)
        self.proxy._open.add(self.transport)
        if self.other is None:
            assert self.proxy._loop is not None
            task = self.proxy._loop.create_task(self.proxy._connect(self))
            self.proxy._opening.add(task)
            task.add_done_callback(self.proxy._opening.discard)
        else:
            self.other.other = self
            self.other.pace()
            if self.other.transport is None or self.other.transport.is_closing():
                reset(self.transport)
        self.pace()

    def connection_lost(self, error: Exception | None) -> None:
        assert self.transport is not None
        if self.waiting is not None:
            self.waiting.cancel()
        self.proxy._sides.discard(self)
        self.proxy._spared.discard(self)
        self.proxy._open.discard(self.transport)
        other = self.other.transport if self.other is not None else None
        if other is not None and not other.is_closing():
            if error is None:
                other.close()  # after what is still to be written
            else:
                reset(other)

    def get_buffer(self, sizehint: int) -> memoryview:
        rate = self.proxy.rate
        return self.buffer if rate is None else self.buffer[: max(1, int(rate / READS_A_SECOND))]

    def buffer_updated(self, nbytes: int) -> None:
        proxy = self.proxy
        assert self.other is not None
        assert self.other.transport is not None
        data = bytes(self.buffer[:nbytes])
        if not self.is_target:
            self.other.transport.write(data)
        elif proxy._cut_at is not None and proxy.to_client + nbytes >= proxy._cut_at:
            self._last_bytes(data[: proxy._cut_at - proxy.to_client])
            return
        else:
            proxy.to_client += nbytes
            self.other.transport.write(data)
        if proxy.rate is not None:
            assert proxy._loop is not None
            self.waiting = proxy._loop.call_later(nbytes / proxy.rate, self._wait_is_over)
            self.pace()

    def eof_received(self) -> None:
        """Let the connection close; `connection_lost` then closes the other end."""

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.full = True
            self.other.pace()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.full = False
            self.other.pace()

    def pace(self) -> None:
        """Read from this end only while what is read may go on to the other one."""
        if self.transport is None or self.transport.is_closing():
            return
        ready = self.other is not None and self.other.transport is not None
        stalled = self.proxy._stalled and self not in self.proxy._spared
        if ready and not stalled and not self.full and self.waiting is None:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _wait_is_over(self) -> None:
        self.waiting = None
        self.pace()

    def _last_bytes(self, data: bytes) -> None:
        """Write `data` to the client and cut all connections once the client's kernel has it."""
        proxy = self.proxy
        assert self.other is not None
        assert self.other.transport is not None
        proxy.to_client += len(data)
        self.other.transport.write(data)
        proxy._cut()
