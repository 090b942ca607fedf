"""A broker, a clock and a Role API in memory, for lab.model.

The broker stands behind the part of pika's API that the module uses. It does what FACTS 4 says of
RabbitMQ, and no more. Each call of a client runs `Broker.meanwhile` first, so that other threads'
steps can fall into it. What the broker closes is closed there at once, and the client sees it with
its next call, as it is with a real socket.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import pika
from pika import exceptions as amqp

from k2hr3_osnl import Error, RoleApiError


class Violation(BaseException):
    """A rule is broken; the text says which. No `except Exception` of the module catches it."""


class Clock:
    """Runs only when told to; stands for the module `time`."""

    def __init__(self) -> None:
        self.elapsed = 1000.0
        self.offset = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.elapsed

    def time(self) -> float:
        return self.elapsed + self.offset

    def sleep(self, seconds: float) -> None:
        self.elapsed += seconds


class Answer(NamedTuple):
    """An answer of the Role API.

    :param status: None where there is none
    :param seconds: how long it takes
    :param may_have_acted: it may have removed an index and kept the member, FACTS 3
    """

    status: int | None
    seconds: float = 0.05
    timed_out: bool = False
    may_have_acted: bool = False
    retry_after: float = 0.0

    def error(self) -> RoleApiError | None:
        """Return what an attempt makes of it."""
        if self.status == 204:
            return None
        return RoleApiError(
            f"status {self.status}",
            self.status,
            timed_out=self.timed_out,
            may_have_acted=self.may_have_acted,
            retry_after=self.retry_after,
        )


GOOD = Answer(204)
LATE = Answer(204, 9)
TOO_LONG = Answer(431)
#: FACTS 3: its store is down, the caller is refused, it is busy, hangs, resets, refuses.
BAD = (
    Answer(400),
    Answer(400, 25),
    Answer(403, 50, may_have_acted=True),
    Answer(503, retry_after=5),
    Answer(503, retry_after=3600),
    Answer(None, 60, timed_out=True, may_have_acted=True),
    Answer(None, may_have_acted=True),
    Answer(None),
)


@dataclass(eq=False)
class Message:
    """A message in a queue, or delivered and not acked."""

    body: bytes
    properties: pika.BasicProperties
    since: float  # monotonic: when it came into this queue
    returns: int = 0


@dataclass(eq=False)
class Queue:
    """A queue; one with a limit drops what is returned more often."""

    name: str
    kind: str = "classic"
    limit: float = float("inf")
    ready: deque[Message] = field(default_factory=deque)
    consumers: list[Channel] = field(default_factory=list)
    is_deleted: bool = False


class Broker:
    """The broker.

    :param clock: tells when a message came
    :param on_gone: called when a message goes, with its body, whether no other has this body, and
        the cause, see `remove`
    """

    def __init__(self, clock: Clock, on_gone: Callable[[bytes, bool, str], None]) -> None:
        self.clock = clock
        self.meanwhile: Callable[[], None] = lambda: None
        self.queues: dict[str, Queue] = {}
        self.exchanges: set[str] = set()
        self.bindings: set[tuple[str, str, str]] = set()  # exchange, routing key, queue
        self.copies: Counter[bytes] = Counter()  # how often a body is in queues or unacked
        self.connections: list[Connection] = []
        self.lost: Counter[str] = Counter()  # what others took from a queue
        self.moves: Counter[str] = Counter()  # what came to a queue, left it or came back
        # both, at the last passive declare of a queue, and what was ready then
        self.counted: dict[str, tuple[int, int, int]] = {}
        self._on_gone = on_gone
        self.on_ack: Callable[[Channel, int], None] = lambda channel, tag: None
        self.repair()

    def repair(self) -> None:
        """End all faults."""
        self.is_up = True
        self.denied: set[str] = set()  # rights
        self.full: set[str] = set()  # queues that nack what is published
        self.leaderless: set[str] = set()  # quorum queues that say they are empty
        self.publish_fault = ""

    def connect(self, hosts: Any, gives_up: Callable[[], bool] | None = None) -> Any:
        """Stand for the module's function `connect`."""
        self.meanwhile()
        if not self.is_up or (gives_up and gives_up()):
            raise Error("no broker reached")
        connection = Connection(self)
        self.connections.append(connection)
        return connection

    def declare(self, name: str, kind: str = "classic", limit: float = float("inf")) -> Queue:
        """Make a queue where there is none."""
        return self.queues.setdefault(name, Queue(name, kind, limit))

    def delete(self, name: str) -> None:
        """Delete a queue: what is ready is lost, and its consumers are cancelled."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        queue.is_deleted = True
        self.bindings = {each for each in self.bindings if each[2] != name}
        for channel in list(queue.consumers):
            channel.cancelled_by_broker()
        self.purge(queue)

    def purge(self, queue: Queue) -> None:
        """Lose what is ready in a queue, as a policy may do."""
        self.lost[queue.name] += len(queue.ready)
        for message in queue.ready:
            self.remove(message, "others")
        queue.ready.clear()

    def put(self, queue: Queue, body: bytes, properties: pika.BasicProperties) -> None:
        """Add a message to a queue."""
        self.copies[body] += 1
        self.moves[queue.name] += 1
        queue.ready.append(Message(body, properties, self.clock.monotonic()))

    def notify(self, exchange: str, key: str, body: bytes) -> bool:
        """Publish a notification; return whether a queue got it."""
        bound = [q for e, k, q in self.bindings if (e, k) == (exchange, key)]
        for name in bound if exchange in self.exchanges else ():
            self.put(self.queues[name], body, pika.BasicProperties(delivery_mode=2))
            return True
        return False

    def remove(self, message: Message, cause: str) -> None:
        """Forget a message.

        :param cause: "ack of <queue>", "others" for what nobody could help, or "client" for a
            client that gave up what it had been told it would not get again
        """
        self.copies[message.body] -= 1
        self._on_gone(message.body, not self.copies[message.body], cause)

    def unacked(self) -> int:
        """Count what is delivered and not acked."""
        return sum(len(each.unacked) for c in self.connections for each in c.channels)


class Connection:
    """Stands for pika.BlockingConnection."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.is_open = True
        self.is_cut = False  # by the broker, which the client has not seen yet
        self.is_woken = False
        self.channels: list[Channel] = []

    def cut(self) -> None:
        """Close it at the broker's end, as a broken line does."""
        self.is_cut = True
        for channel in list(self.channels):
            channel.end("others")
        self.broker.connections.remove(self)

    def io(self) -> None:
        """Begin a call of the client."""
        self.broker.meanwhile()
        if not self.is_open:
            raise amqp.ConnectionWrongStateError("closed")
        if self.is_cut:
            self.is_open = False
            raise amqp.StreamLostError("lost")

    def channel(self) -> Channel:
        self.io()
        return Channel(self)

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        if not self.is_open:
            raise amqp.ConnectionWrongStateError("closed")
        self.is_woken = True

    def process_data_events(self, time_limit: float) -> None:
        self.io()
        is_early = random.random() < 0.5  # what is sent now is dispatched now, or next time
        if is_early:
            self._send()
        waiting = [each for each in self.channels if each.events or each.is_cut]
        if not waiting and not self.is_woken:
            self.broker.clock.sleep(time_limit)
        self.is_woken = False
        for channel in waiting:
            channel.dispatch()
        self._send()

    def _send(self) -> None:
        for channel in self.channels:
            channel.send()

    def close(self) -> None:
        self.io()
        self.cut()
        self.is_open = False


class Channel:
    """Stands for pika's BlockingChannel, with at most one consumer."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.broker = connection.broker
        self._is_open = True
        self.is_cut = False  # by the broker, which the client has not seen yet
        self._closing_reason: Exception = amqp.ChannelClosedByBroker(406, "closed")
        self.queue: Queue | None = None  # that it consumes
        self.is_consuming = False
        self.knows_cancel = False
        self.is_given_up = False  # closed by the client
        self.unacked: dict[int, Message] = {}
        self.dispatched: set[int] = set()
        self.events: deque[Callable[[], None]] = deque()
        self._tags = 0
        self._prefetch = 0
        connection.channels.append(self)

    @property
    def is_open(self) -> bool:
        return self._is_open and self.connection.is_open

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_open:
            self.close()

    # The broker's end

    def end(self, orphans: str) -> None:
        """Give back what is not acked; `orphans` is the cause where its queue is gone."""
        self.is_cut = True
        if self in self.connection.channels:
            self.connection.channels.remove(self)
        self._end_consumer()
        for tag in reversed(self.unacked):
            self._give_back(self.unacked[tag], orphans)
        self.unacked.clear()

    def _give_back(self, message: Message, orphans: str) -> None:
        assert self.queue
        message.returns += 1
        self.broker.moves[self.queue.name] += 1
        if self.queue.is_deleted:
            self.broker.remove(message, orphans)
        elif message.returns > self.queue.limit:
            self.broker.lost[self.queue.name] += 1
            self.broker.remove(message, "others")
        else:
            self.queue.ready.appendleft(message)

    def _end_consumer(self) -> None:
        if self.is_consuming and self.queue:
            self.queue.consumers.remove(self)
        self.is_consuming = False

    def cut(self) -> None:
        """Close it at the broker's end, as RabbitMQ does after consumer_timeout."""
        self.end("others")
        self.connection.channels.append(self)  # to tell the client

    def cancelled_by_broker(self) -> None:
        """Send Basic.Cancel."""
        self._end_consumer()
        self.events.append(self._tell_of_cancel)

    def send(self) -> None:
        """Deliver what the prefetch allows."""
        while self.is_consuming and self.queue and self.queue.ready:
            if len(self.unacked) >= self._prefetch or self.queue.name in self.broker.leaderless:
                break
            self._tags += 1
            self.broker.moves[self.queue.name] += 1
            self.unacked[self._tags] = self.queue.ready.popleft()
            tag = self._tags
            self.events.append(lambda tag=tag: self._deliver(tag))  # type: ignore[misc]

    # The client's end

    def io(self) -> None:
        """Begin a call of the client."""
        self.connection.io()
        if not self._is_open:
            raise amqp.ChannelWrongStateError("closed")
        if self.is_cut:
            self._see_end()
            raise self._closing_reason

    def _see_end(self) -> None:
        self._is_open = False
        if self in self.connection.channels:
            self.connection.channels.remove(self)

    def _refuse(self, code: int, text: str) -> None:
        self.end("others")
        self._is_open = False
        raise amqp.ChannelClosedByBroker(code, text)

    def _need(self, right: str) -> None:
        if right in self.broker.denied:
            self._refuse(403, "ACCESS_REFUSED")

    def dispatch(self) -> None:
        """Call the client with what has come."""
        if self.is_cut:
            self._see_end()
        while self.events and self.is_open:
            self.events.popleft()()

    def _deliver(self, tag: int) -> None:
        if self.is_cut:
            return
        assert self.queue
        self.dispatched.add(tag)
        message = self.unacked[tag]
        properties = copy.copy(message.properties)
        if self.queue.kind == "quorum" and message.returns:
            properties.headers = {
                **(properties.headers or {}),
                "x-delivery-count": message.returns,
            }
        method = SimpleNamespace(delivery_tag=tag)
        self._on_message(self, method, properties, message.body)

    def _tell_of_cancel(self) -> None:
        self.knows_cancel = True
        self._on_cancel(None)

    def basic_qos(self, prefetch_count: int) -> None:
        self.io()
        self._prefetch = prefetch_count

    def add_on_cancel_callback(self, callback: Callable[[Any], None]) -> None:
        self._on_cancel = callback

    def basic_consume(self, queue: str, on_message_callback: Callable[..., None]) -> str:
        self.io()
        self._need("read")
        if queue not in self.broker.queues:
            self._refuse(404, "NOT_FOUND")
        self._on_message = on_message_callback
        self.queue = self.broker.queues[queue]
        self.queue.consumers.append(self)
        self.is_consuming = True
        return "tag"

    def _reject_undispatched(self) -> None:
        self.events.clear()
        for tag in [each for each in reversed(self.unacked) if each not in self.dispatched]:
            self._give_back(self.unacked.pop(tag), "others")

    def basic_cancel(self, consumer_tag: str) -> None:
        self.io()
        self._end_consumer()
        self._reject_undispatched()

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        self.broker.meanwhile()
        if not self.is_open:
            raise amqp.ChannelWrongStateError("closed")
        if (self.is_cut or self.connection.is_cut) and random.random() < 0.5:
            return  # it is on its way and will never be read
        self.io()
        assert self.queue
        if delivery_tag not in self.unacked:
            raise Violation(f"tag {delivery_tag} is acked twice, or unknown")
        tags = [tag for tag in self.unacked if tag <= delivery_tag] if multiple else [delivery_tag]
        for tag in tags:
            self.broker.on_ack(self, tag)
            self.broker.remove(self.unacked.pop(tag), f"ack of {self.queue.name}")

    def close(self) -> None:
        self.io()
        self._reject_undispatched()
        self.is_given_up = True
        self.end("client" if self.knows_cancel else "others")
        self._is_open = False

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> Any:
        self.io()
        found = self.broker.queues.get(queue)
        if passive and found is None:
            self._refuse(404, "NOT_FOUND")
        if not passive:
            self._need("configure")
            given = arguments or {}
            kind = given.get("x-queue-type", "classic")
            if found and found.kind != kind:
                self._refuse(406, "PRECONDITION_FAILED")
            found = self.broker.declare(queue, kind, given.get("x-delivery-limit", float("inf")))
        assert found
        counts = (len(found.ready), len(found.consumers))
        seen = (self.broker.lost[queue], self.broker.moves[queue], len(found.ready))
        self.broker.counted[queue] = seen
        if queue in self.broker.leaderless:
            counts = (0, 0)
        method = SimpleNamespace(message_count=counts[0], consumer_count=counts[1])
        return SimpleNamespace(method=method)

    def basic_get(self, queue: str) -> tuple[Any, Any, Any]:
        """Look whether there is a message; it is not taken, since the client soon closes."""
        self.io()
        if queue in self.broker.leaderless:
            self.connection.cut()
            self.connection.is_open = False
            raise amqp.ConnectionClosedByBroker(541, "INTERNAL_ERROR")
        if queue not in self.broker.queues:
            self._refuse(404, "NOT_FOUND")
        method = SimpleNamespace() if self.broker.queues[queue].ready else None
        return method, None, None

    def queue_bind(self, queue: str, exchange: str, routing_key: str) -> None:
        self.io()
        self._need("bind")
        if exchange not in self.broker.exchanges or queue not in self.broker.queues:
            self._refuse(404, "NOT_FOUND")
        self.broker.bindings.add((exchange, routing_key, queue))

    def confirm_delivery(self) -> None:
        self.io()

    def basic_publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
        mandatory: bool,
    ) -> None:
        """Publish to a queue and wait for the confirm."""
        self.io()
        fault = self.broker.publish_fault
        self._need("write")
        if fault == "alarm":
            raise amqp.ConnectionBlockedTimeout("alarm")
        if fault == "lost":
            self.connection.cut()
        self.connection.io()
        if routing_key not in self.broker.queues:
            raise amqp.UnroutableError([])
        if routing_key in self.broker.full:
            raise amqp.NackError([])
        self.broker.put(self.broker.queues[routing_key], body, properties)
        if fault == "confirm lost":
            self.connection.cut()
        self.connection.io()
