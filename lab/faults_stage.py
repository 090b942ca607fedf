"""What `make faults` plays a row on: its parts, what it publishes, how it counts and judges.

A `Stage` has a Role API, queues and listeners of its own; broker and cluster are the `Lab`'s.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pika
from pika import exceptions as amqp

from lab import wait_until
from lab.broker import Broker, Depth, cluster
from lab.certificates import Certificates
from lab.listener import ListenerProcess, settings
from lab.notifier import Notifier, compute_instance, instance, noise, port
from lab.role_api import Fault, RoleApi

#: The settings of each row, seconds; the listener's own are 60 and 60.
TIMEOUT, INTERVAL = 2, 5

#: Stands in captured bodies for the instance and for oslo's `_unique_id`.
CUK, UNIQUE = "5f0b3c9e-7a41-4d26-8e1f-c0ffee00cafe", "0123456789abcdef0123456789abcdef"
ADDRESS = "10.0.0.5"
KEY = "notifications.info"


@dataclass(frozen=True)
class Row:
    """One fault: its name on the command line, what it is, and what provokes and repairs it."""

    name: str
    fault: str
    run: Callable[[Stage], None]
    parts: str = "shared"  # a broker beside other rows; "alone"; "cluster": that, alone
    durable: bool = True  # the exchange
    judged: bool = True  # not: for comparison only


class Lab:
    """What rows share: a broker, and what is made when it is first wanted: a cluster, certificates,
    and bodies as oslo.messaging sends them. All of it ends with `stack`."""

    def __init__(self, quick: bool, logs: Path) -> None:
        self.quick = quick
        self.logs = logs
        self.stack = ExitStack()
        made = tempfile.TemporaryDirectory(prefix="k2hr3_osnl.faults.")
        self.folder = Path(self.stack.enter_context(made))
        self.broker = self.stack.enter_context(Broker())

    @cached_property
    def nodes(self) -> list[Broker]:
        return self.stack.enter_context(cluster(3))

    @cached_property
    def certificates(self) -> Certificates:
        return Certificates(self.folder / "certificates")

    @cached_property
    def corpus(self) -> list[bytes]:
        """Real bodies, envelope 2.0 and 1.0: deletions of `CUK` first, of a port foremost."""
        events = [
            ("port.delete.end", port(CUK, [ADDRESS])),
            ("port.delete.end", port(CUK, ["2001:db8::5", ADDRESS])),
            ("port.delete.end", port(CUK, [ADDRESS], device_owner=...)),
            ("instance.delete.end", instance(CUK)),
            ("compute.instance.delete.end", compute_instance(CUK)),
            *noise(),
        ]
        found: list[bytes] = []
        for driver in ("messagingv2", "messaging"):
            exchange = f"corpus-{driver}"
            with Notifier(self.broker.url(), exchange, driver=driver) as service:
                service.notify_many(events)
                found += [message.body for message in self.broker.messages(KEY, take=True)]
                assert service.errors == []
                self.broker.delete_queue(KEY)
                self.broker.delete_exchange(exchange)
        assert len(found) == 2 * len(events)
        unique = re.compile(rb"(_unique_id\W+)[0-9a-f]{32}")
        return [unique.sub(rb"\g<1>" + UNIQUE.encode(), body) for body in found]

    def body(self, cuk: str) -> bytes:
        """The deletion of a port of this instance, with a `_unique_id` of its own."""
        body = self.corpus[0].replace(CUK.encode(), cuk.encode())
        return body.replace(UNIQUE.encode(), uuid.uuid4().hex.encode())


class Shortfall(AssertionError):
    """What a row must not do."""


class Tally(NamedTuple):
    """The figures that a row is judged by."""

    published: int
    deleted: int
    left: int  # in the retry queue
    dead_lettered: int
    told: int  # missing, and told of by an ERROR
    lost: int  # missing, and not told of
    twice: int  # deleted more than once


class Stage:
    """One row's Role API, listeners and queues; counts what happens to what it publishes."""

    def __init__(self, lab: Lab, row: Row) -> None:
        self.lab, self.row, self.quick = lab, row, lab.quick
        self.exchange, self.pool = f"exchange-{row.name}", f"pool-{row.name}"
        self.retry, self.dead = f"{self.pool}.retry", f"{self.pool}.dead_letter"
        self.stack = ExitStack()
        self.api = self.stack.enter_context(RoleApi())
        self.apis = [self.api]
        self.listeners: list[ListenerProcess] = []
        self.published: dict[str, float] = {}  # cuk -> monotonic time of its confirm
        self.seen: list[str] = []
        self.count = 200 if self.quick else 2000  # to be published
        self.dead_letters = 0  # expected
        self.tally: Tally | None = None
        self.down_requests: int | None = None
        self.repaired_at = 0.0
        self.empty_after: float | None = None
        self._down_since: int | None = None
        with contextlib.closing(self.broker.amqp()) as connection:
            connection.channel().exchange_declare(self.exchange, "topic", durable=row.durable)

    @property
    def broker(self) -> Broker:
        """The broker, or a node of the cluster that runs."""
        if self.row.parts != "cluster":
            return self.lab.broker
        return next(node for node in self.lab.nodes if node.running)

    def pick(self, quick: Any, full: Any) -> Any:
        """A figure of the quick and of the full form."""
        return quick if self.quick else full

    def declare(self, queue: str, **arguments: object) -> None:
        """Make a durable queue; arguments have "_" for "-"."""
        given: Any = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
        with contextlib.closing(self.broker.amqp()) as connection:
            connection.channel().queue_declare(queue, durable=True, arguments=given)

    def settings(
        self, api: RoleApi | None = None, url: str = "", **k2hr3: object
    ) -> dict[str, dict[str, object]]:
        of_cluster = self.row.parts == "cluster"
        hosts = [node.address for node in self.lab.nodes] if of_cluster else None
        given = {"timeout_seconds": TIMEOUT, "retry_interval_seconds": INTERVAL, **k2hr3}
        made = settings(url or self.broker.url(hosts=hosts), (api or self.api).url, **given)
        made["oslo_messaging_notifications"].update(exchange=self.exchange, pool=self.pool)
        made["oslo_messaging_rabbit"]["rabbit_quorum_queue"] = of_cluster
        return made

    def listen(self, sections: Any = None, change: str = "", **options: Any) -> ListenerProcess:
        """Start a listener and wait until its queue is bound.

        Args:
            sections: its settings; by default the stage's own.
            change: statements that change the module `k2hr3_osnl` before it runs.
        """
        if change:
            options["driver"] = f"import sys, k2hr3_osnl\n{change}\nsys.exit(k2hr3_osnl.main())"
        listener = self.stack.enter_context(ListenerProcess(sections or self.settings(), **options))
        self.listeners.append(listener)
        wait_until(lambda: self.broker.bindings(self.pool), 30, f"{self.pool} to be bound")
        return listener

    def publish(self, count: int = 0) -> None:
        """Publish so many deletions, by default what is left of the row's number."""
        Load(self, count or self.count - len(self.published)).run()

    @contextlib.contextmanager
    def load(self, seconds: float) -> Iterator[Load]:
        """Publish the row's number over about so many seconds, and what is left at the end."""
        count = self.count - len(self.published)
        load = Load(self, count, count / seconds)
        load.start()
        try:
            wait_until(lambda: self.done > count / 50, 20, "the first deletions")
            yield load
        finally:
            load.rate = None
            load.join()
        if load.error:
            raise load.error

    @property
    def told(self) -> int:
        """How many deletions the listeners have said to be missing from the retry queue."""
        logs = "".join(listener.log for listener in self.listeners)
        return sum(map(int, re.findall(r" ERROR (\d+) deletions left ", logs)))

    @property
    def deleted(self) -> set[str]:
        """What was published and deleted."""
        return {cuk for api in self.apis for cuk in api.deleted} & self.published.keys()

    @property
    def done(self) -> int:
        return len(self.deleted)

    def queues(self) -> dict[str, Depth]:
        return self.broker.queues()

    def depth(self, queue: str) -> Depth:
        return self.queues().get(queue, Depth(0, 0))

    # What happens

    def see(self, what: str, really: object = True) -> None:
        """Say how the fault was seen to be there; a row that did not see it falls short."""
        if not really:
            raise Shortfall(f"not provoked: {what}")
        self.seen.append(what)

    def must(self, what: str, really: object) -> None:
        """Say what a row has to be like, beside losing nothing."""
        if not really:
            raise Shortfall(f"not so: {what}")

    def down(self, fault: Fault | None = None) -> None:
        """The API is out of order from now on, by this fault of its own or by another."""
        if fault is not None:
            self.api.fault = fault
        self._down_since = len(self.api.requests)

    def repaired(self) -> None:
        """All is well again from now on."""
        self.api.fault = None
        if self._down_since is not None:
            self.down_requests = len(self.api.requests) - self._down_since
        self._down_since = None
        self.repaired_at = time.monotonic()

    def stop(self, listener: ListenerProcess) -> None:
        """SIGTERM; its deadline is `timeout_seconds` + 1 s, and a busy machine has 5 s more."""
        began = time.monotonic()
        code = listener.stop(30)
        took = time.monotonic() - began
        in_time = code == 0 and took < TIMEOUT + 6
        self.must(f"exit 0 in time, seen {code} after {took:.1f} s", in_time)

    def wait_until_deleted(self) -> None:
        wait_until(lambda: self.published.keys() <= self.deleted, self.patience, "all deletions")

    def wait_until_consumed(self) -> None:
        """Wait until the notification queue is empty, which may not depend on the Role API."""
        wait_until(lambda: self.depth(self.pool).total == 0, 40, "the empty queue")

    @property
    def patience(self) -> float:
        """Seconds after a repair in which everything has to be over."""
        return 2 * INTERVAL + 60 + len(self.published) / 20

    def settle(self) -> None:
        """Wait until all is deleted and the queues are empty."""
        self.repaired_at = self.repaired_at or time.monotonic()

        def settled() -> bool:
            depths = self.queues()
            return (
                len(self.published) - self.done - self.told <= depths[self.dead].total
                and depths[self.pool].total == depths[self.retry].total == 0
            )

        try:
            wait_until(settled, self.patience, "empty queues")
        except AssertionError as error:
            raise Shortfall(str(error)) from None
        self.empty_after = time.monotonic() - self.repaired_at

    def in_queues(self) -> set[str]:
        """The instances whose deletions are ready in a queue of ours."""
        queues = self.queues().keys() & {self.pool, self.retry, self.dead}
        bodies = [message.body for queue in queues for message in self.broker.messages(queue)]
        return {cuk for cuk in self.published if any(cuk.encode() in body for body in bodies)}

    def doubts(self, tally: Tally) -> int:
        """The dead letters about deletions that are done, beyond those that the row expects."""
        if tally.dead_lettered <= self.dead_letters:
            return 0
        headers = [message.properties.headers or {} for message in self.broker.messages(self.dead)]
        return sum(each.get("x-k2hr3-doubt") == "done" for each in headers)

    def judge(self) -> list[str]:
        """Return what falls short; called when the listeners have ended."""
        problems = [] if self.tally else self._count()
        if not self.seen:
            problems.append("nobody saw the fault")
        for listener in self.listeners:
            found = re.findall(r"Traceback.*|.*unexpected; connecting again.*", listener.log)
            problems += sorted(set(found))
        return problems

    def _count(self) -> list[str]:
        depths = self.queues()
        missing = self.published.keys() - self.deleted
        gone = len(missing - self.in_queues()) if missing else 0
        self.tally = tally = Tally(
            published=len(self.published),
            deleted=self.done,
            left=depths.get(self.retry, Depth(0, 0)).total,
            dead_lettered=depths.get(self.dead, Depth(0, 0)).total,
            told=self.told,
            lost=max(0, gone - self.told),
            twice=sum(sum(api.deletions[cuk] for api in self.apis) > 1 for cuk in self.published),
        )
        short = {
            f"{tally.lost} lost": tally.lost,
            f"{tally.told} told to be missing, but {gone} are": tally.told > gone,
            f"{tally.left} left in the retry queue": tally.left,
            f"{tally.dead_lettered} dead letters, not {self.dead_letters}": (
                tally.dead_lettered - self.doubts(tally) != self.dead_letters
            ),
            f"{tally.published} published, not {self.count}": tally.published < self.count,
        }
        return [text for text, is_so in short.items() if is_so and self.row.judged]

    def close(self) -> None:
        """End what is left of it, and remove its queues and its exchange."""
        self.stack.close()
        with contextlib.suppress(Exception):
            self.broker.delete_policies()
            for queue in self.queues().keys() & {self.pool, self.retry, self.dead}:
                self.broker.delete_queue(queue)
            self.broker.delete_exchange(self.exchange)


class Load(threading.Thread):
    """Publishes deletions, each confirmed by the broker, through every trouble it has.

    What is returned is published again. An instance whose confirm never came may or may not be in
    the queue: it does not count, another takes its place.

    Args:
        rate: a second, None for as fast as it goes; may be changed any time.
    """

    def __init__(self, stage: Stage, count: int, rate: float | None = None) -> None:
        super().__init__(daemon=True)
        self.stage, self.count, self.rate = stage, count, rate
        self.running = threading.Lock()  # hold it to have a break
        self.bodies: Callable[[str], Iterable[bytes]] = lambda cuk: [stage.lab.body(cuk)]
        self.properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, content_encoding="utf-8"
        )
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._publish()
        except BaseException as error:
            self.error = error
            if threading.current_thread() is not self:
                raise

    def _publish(self) -> None:
        connection: Any = None
        published, cuk, deadline = 0, str(uuid.uuid4()), time.monotonic() + 900
        due = time.monotonic()
        while published < self.count:
            if time.monotonic() > deadline:
                raise Shortfall(f"only {published} of {self.count} could be published")
            try:
                if connection is None:
                    connection = self.stage.broker.amqp()
                    channel = connection.channel()
                    channel.confirm_delivery()
                with self.running:
                    self.stage.api.register(cuk, ADDRESS)
                    for body in self.bodies(cuk):
                        channel.basic_publish(self.stage.exchange, KEY, body, self.properties, True)
                    self.stage.published[cuk] = time.monotonic()
                published, cuk = published + 1, str(uuid.uuid4())
            except (amqp.AMQPError, OSError, StopIteration) as error:
                # A channel of 3.10.8 can go on to refuse for a quorum queue that is well again.
                with contextlib.suppress(Exception):
                    connection.close()
                connection = None
                if not isinstance(error, amqp.UnroutableError):
                    cuk = str(uuid.uuid4())
                time.sleep(0.2)  # five times a second, be it the broker or the binding that is away
            due = max(due + 1 / self.rate, time.monotonic() - 0.1) if self.rate else 0.0
            if due > time.monotonic():
                time.sleep(max(0.0, due - time.monotonic()))  # the pace
        if connection:
            connection.close()


def publish_fast(stage: Stage, bodies: Iterable[bytes]) -> int:
    """Publish at the broker's pace: 500 are under way before their confirms; returns how many."""
    under_way: set[int] = set()
    returned: list[Any] = []
    count = 0

    def confirmed(frame: Any) -> None:
        tag = frame.method.delivery_tag
        assert type(frame.method).__name__ == "Ack"
        if frame.method.multiple:
            under_way.difference_update({each for each in under_way if each <= tag})
        else:
            under_way.discard(tag)

    with contextlib.closing(stage.broker.amqp()) as connection:
        channel: Any = connection.channel()
        ready: list[Any] = []
        channel._impl.confirm_delivery(confirmed, ready.append)  # pika's own waits for each
        channel.add_on_return_callback(lambda *message: returned.append(message))
        while not ready:
            connection.process_data_events(1)
        for body in bodies:
            count += 1
            under_way.add(count)
            channel.basic_publish(
                stage.exchange, KEY, body, pika.BasicProperties(delivery_mode=2), True
            )
            while len(under_way) > 500:
                connection.process_data_events(1)
        while under_way:
            connection.process_data_events(1)
    assert not returned
    return count


def pause(seconds: float) -> None:
    """Let a fault last; the only wait here that waits for nothing else."""
    time.sleep(seconds)


@dataclass(frozen=True)
class Result:
    """What became of a row: its line of the table, and what falls short."""

    cells: tuple[str, ...]
    problems: tuple[str, ...]


def play(lab: Lab, row: Row) -> Result:
    """Run one row from its empty queues to its judgement; whatever it raises is a problem of it."""
    began = time.monotonic()
    try:
        stage = Stage(lab, row)
    except Exception as error:
        return report(None, lab, row, [in_short(error)], time.monotonic() - began)
    problems: list[str] = []

    def run() -> None:
        row.run(stage)
        if row.judged and stage.empty_after is None:
            stage.settle()
        for listener in stage.listeners:
            if listener.process.poll() is None and row.judged:
                stage.stop(listener)

    def judge() -> None:
        for number, listener in enumerate(stage.listeners):
            if listener.process.poll() is None:
                listener.kill()
            (lab.logs / f"{row.name}.{number}").write_text(listener.log)
        problems.extend(stage.judge())

    for part in (run, judge, stage.close):
        try:
            part()
        except Exception as error:
            problems.append(in_short(error))
    return report(stage, lab, row, problems, time.monotonic() - began)


def in_short(error: Exception) -> str:
    """One line about an exception; where it came from is printed, unless a row expects such."""
    if not isinstance(error, AssertionError):
        traceback.print_exc()
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def report(stage: Stage | None, lab: Lab, row: Row, problems: list[str], seconds: float) -> Result:
    """Say on stderr how a row ended, and return its line of the table."""
    print(
        f"{'SHORT' if problems else 'ok   '} {row.name}, {seconds:.0f} s",
        *problems,
        *([f"its log: {lab.logs}/{row.name}.*"] if problems else []),
        sep="\n      ",
        file=sys.stderr,
        flush=True,
    )
    figures, down, seconds_after, seen = ["–"] * len(Tally._fields), "–", "–", []
    if stage:
        seen = stage.seen
        tally = stage.tally or Tally(len(stage.published), stage.done, 0, 0, 0, 0, 0)
        figures = [str(figure) for figure in tally]
        down = down if stage.down_requests is None else str(stage.down_requests)
        after = stage.empty_after
        seconds_after = seconds_after if after is None else f"{after:.1f}"
    how = "; ".join((*seen, *(f"**{problem}**" for problem in problems)))
    return Result((row.fault, *figures, down, seconds_after, how), tuple(problems))
