"""`make storm`: overlapping faults on real parts, by a seed, and a verdict over the whole history.

A broker or a cluster of three, one to three listeners on Neutron's and Nova's exchanges, the lab's
Role API. Machines come, and most are deleted, while the faults of `lab.storm_faults` overlap. Then
everything is repaired and gets a bounded time to become quiet. What happened is written as JSON
lines, which `lab.storm_check` judges; they are kept, with the listeners' logs, if it finds a fault.

    python -m lab.storm [--seed N …] [--minutes M] [--quick]     # exit 1 if a promise was broken
    python -m lab.storm --check HISTORY                          # judge a history again
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pika
import psutil
from pika import exceptions as amqp

from k2hr3_osnl import LenientConnection
from lab import wait_until
from lab.broker import Broker, cluster
from lab.listener import PROGRAM, ListenerProcess, settings, write_settings
from lab.notifier import CONTEXT, instance, noise, port
from lab.odd import ODD_HEADERS
from lab.proxy import Proxy
from lab.role_api import Request, RoleApi
from lab.storm_check import COLUMNS, Report, check
from lab.storm_faults import (
    BY_NAME,
    DEAD,
    GRAVE,
    POOL,
    RETRY,
    Planned,
    clash,
    parts,
    schedule,
    target,
)

#: The listeners' settings, seconds.
TIMEOUT, INTERVAL = 2, 5

#: Machines a second.
RATE = 6.0

#: Seconds of `make storm QUICK=1`, and its seeds; one more is random.
QUICK_MINUTES, QUICK_SEEDS = 0.5, (1, 4, 6)

#: Seconds after the repair in which all has to be quiet, and one more for so many deletions.
PATIENCE, PER_SECOND = 90, 10

EXCHANGES = {"neutron": "notifications.info", "nova": "versioned_notifications.info"}

#: A listener whose clock can be stepped. (libfaketime does not do: with it Python's time.sleep
#: fails with EINVAL when the clock is stepped.)
CLOCK = """
import sys, time, k2hr3_osnl
real_time = time.time
time.time = lambda: real_time() + float(open("{}").read())
sys.exit(k2hr3_osnl.main())
"""

#: What a machine's life ends with, and how often. The checker has to know what each leads to.
LIVES = {
    "port": 30,
    "instance": 20,
    "both": 25,
    "forced": 3,
    "odd headers": 4,
    "malformed": 4,
    "detached": 5,
    "alive": 7,
    "noise": 2,
}


class History:
    """The events of a storm, as JSON lines; `t` is in seconds since its begin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._file = path.open("w")

    def now(self, monotonic: float | None = None) -> float:
        """Seconds since the storm's begin."""
        return round((monotonic or time.monotonic()) - self.began, 3)

    def note(self, kind: str, **values: object) -> None:
        """Write one event."""
        with self._lock:
            self._file.write(json.dumps({"kind": kind, "t": self.now(), **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class SecondApi(RoleApi):
    """Another API process of the same K2HR3: its store is that of the first one."""

    def __init__(self, first: RoleApi) -> None:
        super().__init__()
        self.delay = first.delay
        self._members = first._members
        self._members_lock = first._members_lock
        self._unindexed = first._unindexed


class Storm:
    """The parts of one storm, and what faults do with them."""

    def __init__(self, seed: int, minutes: float, folder: Path, stack: ExitStack) -> None:
        self.seed, self.minutes, self.folder, self.stack = seed, minutes, folder, stack
        self.parts = parts(seed)
        self.plan = schedule(seed, minutes)
        self.history = History(folder / "history.jsonl")
        self.nodes: list[Broker] = (
            [stack.enter_context(Broker())]
            if self.parts.nodes == 1
            else stack.enter_context(cluster(self.parts.nodes))
        )
        self.first_api = RoleApi()
        self.first_api.delay = 0.005
        count = len(self.parts.concurrency)
        # one for each listener, which tells their requests apart, and one for the commands
        self.apis = [self.first_api, *(SecondApi(self.first_api) for _ in range(count))]
        for api in self.apis:
            stack.enter_context(api)
        self.proxies = [
            [stack.enter_context(Proxy(node.port)) for node in self.nodes] for _ in range(count)
        ]
        self.listeners: list[ListenerProcess] = []
        self.started: dict[int, float] = {}  # listener that is to run -> when it was started
        self.locks = [threading.Lock() for _ in range(count)]
        self.active: list[Planned] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        (folder / "commands.log").touch()
        self.command_settings = write_settings(
            folder / "commands.ini",
            self.sections(self.apis[-1], [node.address for node in self.nodes], 1),
        )

    # Parts

    @property
    def broker(self) -> Broker:
        """A node that runs."""
        return next(node for node in self.nodes if node.running)

    def sections(self, api: RoleApi, hosts: list[str], concurrency: int) -> Any:
        """The settings of a listener."""
        made = settings(
            self.nodes[0].url(hosts=hosts),
            api.url,
            timeout_seconds=TIMEOUT,
            retry_interval_seconds=INTERVAL,
            concurrency=concurrency,
        )
        made["oslo_messaging_notifications:neutron"] = {}
        made["oslo_messaging_notifications:nova"] = {}
        made["oslo_messaging_rabbit"] = {
            "rabbit_quorum_queue": self.parts.quorum,
            "heartbeat_timeout_threshold": 6,
            "rabbit_retry_backoff": 1,
            "rabbit_interval_max": 5,
        }
        return made

    def set_up(self) -> None:
        """Declare what the services and the checker need, and start the listeners."""
        with contextlib.closing(self.broker.amqp()) as connection:
            channel = connection.channel()
            for exchange in EXCHANGES:
                channel.exchange_declare(exchange, "topic", durable=True)
            channel.exchange_declare(GRAVE, "fanout", durable=True)
            kind = "quorum" if self.parts.nodes > 1 else "classic"
            channel.queue_declare(GRAVE, durable=True, arguments={"x-queue-type": kind})
            channel.queue_bind(GRAVE, GRAVE)
        stepped = {
            target(each, len(self.proxies)) for each in self.plan if each.fault == "clock stepped"
        }
        for number, concurrency in enumerate(self.parts.concurrency):
            hosts = [f"127.0.0.1:{proxy.port}" for proxy in self.proxies[number]]
            sections = self.sections(self.apis[number], hosts, concurrency)
            self.set_clock(number, 0)
            driver = CLOCK.format(self.folder / f"clock.{number}") if number in stepped else ""
            self.listeners.append(ListenerProcess(sections, driver=driver))
            self.start(number)
        wait_until(lambda: len(self.broker.bindings(POOL)) == 2, 60, "the pool to be bound")

    # What faults do

    def set_clock(self, number: int, seconds: int) -> None:
        """Step a listener's clock to so many seconds beside the real time."""
        made = self.folder / f"clock.{number}.new"
        made.write_text(f"{seconds:+d}\n")
        made.replace(self.folder / f"clock.{number}")

    def start_node(self, which: int) -> None:
        """Start a node, and wait until the queues of a cluster have all their members."""
        self.nodes[which % len(self.nodes)].start()
        if len(self.nodes) > 1:
            wait_until(
                lambda: all(
                    len(self.broker.queue(queue)["online"]) == len(self.nodes)
                    for queue in (POOL, RETRY, DEAD)
                ),
                60,
                "all members of the queues",
            )

    def start(self, number: int) -> None:
        """Start a listener, unless it runs."""
        with self.locks[number]:
            if number not in self.started:
                self.started[number] = self.history.now()
                self.listeners[number].start()

    def kill(self, number: int) -> None:
        """End a listener at once."""
        with self.locks[number]:
            if number in self.started:
                code = self.listeners[number].process.poll()
                self.listeners[number].kill()
                self.ended(
                    str(number), self.started.pop(number), "died" if code else "killed", code
                )

    def stop(self, number: int) -> None:
        """SIGTERM to a listener."""
        with self.locks[number]:
            if number not in self.started:
                return
            began = self.history.now()
            code: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.listeners[number].stop(TIMEOUT + 30)
            seconds = self.history.now() - began
            self.listeners[number].kill()
            self.ended(str(number), self.started.pop(number), "stopped", code, seconds)

    def ended(self, who: str, began: float, how: str, code: int | None, seconds: float = 0) -> None:
        self.history.note("process", who=who, begun=began, how=how, code=code, seconds=seconds)

    def command(self, name: str, *arguments: str) -> None:
        """Run a command beside the listeners."""
        began, lines, machines = self.history.now(), "", []
        if name == "delete":
            machines = [self.register("queued", ["10.0.0.1"]) for _ in range(3)]
            lines = "".join(f"{cuk}\n" for cuk in machines)
        with (self.folder / "commands.log").open("ab") as log:
            done = subprocess.run(
                [sys.executable, str(PROGRAM), "-c", str(self.command_settings), name, *arguments],
                input=lines.encode(),
                stdout=subprocess.PIPE,
                stderr=log,
                check=False,
                timeout=150,
            )
            log.write(done.stdout)
        for cuk in machines:
            failed = done.returncode and (cuk.encode() in done.stdout or not done.stdout)
            self.published("", cuk, None, "delete", "unknown" if failed else "confirmed", began)
        self.ended(name, began, "command", done.returncode)

    def take(self, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
        """Take all that is ready in a queue, also what pika can't read the headers of."""
        found: list[tuple[bytes, dict[str, Any]]] = []
        parameters = pika.ConnectionParameters(
            port=self.broker.port,
            host="127.0.0.1",
            credentials=pika.PlainCredentials("lab", self.broker.site.password),
        )
        implementation: Any = LenientConnection
        with contextlib.closing(pika.BlockingConnection(parameters, implementation)) as connection:
            channel = connection.channel()
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None or properties is None or body is None:
                    return found
                found.append((body, dict(properties.headers or {})))

    def note_found(self, where: str, queue: str) -> None:
        """Take what is in a queue, and write it down."""
        for body, headers in self.take(queue):
            text = body.decode(errors="replace")
            deaths = headers.get("x-death") or [{"queue": queue}]
            self.history.note(
                "found",
                where=where,
                queue=str(deaths[0].get("queue")),
                ids=sorted(set(re.findall(r"_unique_id\W+([0-9a-f]{32})", text))),
                cuks=sorted(set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))),
                reason=str(headers.get("x-k2hr3-reason", "")),
                doubt=str(headers.get("x-k2hr3-doubt", "")),
            )

    def delete_queue(self, queue: str) -> None:
        """Write down what a queue holds, and delete it; some can come between these two."""
        begun = self.history.now()
        self.note_found("taken", queue)
        with contextlib.closing(self.broker.amqp()) as connection:
            unacked = self.broker.depth(queue).unacked
            left = connection.channel().queue_delete(queue).method.message_count
        self.history.note("deleted", queue=queue, begun=begun, left=left, unacked=unacked)

    # Machines and notifications

    def register(self, life: str, addresses: list[str], living: Sequence[str] = ()) -> str:
        """Make a machine, a member with these addresses, of which some are to stay."""
        cuk = str(uuid.uuid4())
        self.first_api.register(cuk, *addresses)
        self.history.note(
            "machine", cuk=cuk, life=life, addresses=addresses, living=list(living)
        )  # fmt: skip
        return cuk

    def published(
        self, unique: str, cuk: str, ips: list[str] | None, expect: str, outcome: str, begun: float
    ) -> None:
        self.history.note(
            "publish", id=unique, cuk=cuk, ips=ips, expect=expect, outcome=outcome, begun=begun
        )

    def publish(self) -> None:
        """Machines come, and notifications of them, until the storm is over."""
        load = Load(self)
        while not self.over.is_set():
            load.machine()
            self.over.wait(load.chance.expovariate(RATE))
        load.close()

    # The run

    def run(self) -> None:
        """Play the schedule, repair everything, wait for quiet, and write down what is left."""
        self.history.note(
            "storm",
            seed=self.seed,
            minutes=self.minutes,
            timeout=TIMEOUT,
            interval=INTERVAL,
            **self.parts._asdict(),
        )
        self.set_up()
        threads = [threading.Thread(target=each) for each in (self.publish, self.look)]
        for each in threads:
            each.start()
        begin = self.history.now()
        with ThreadPoolExecutor(len(self.plan) or 1) as pool:
            list(pool.map(lambda entry: self.play(entry, begin), self.plan))
        self.wait(begin + 60 * self.minutes)
        self.repair()
        self.over.set()
        for each in threads:
            each.join()
        self.become_quiet()
        for number in range(len(self.listeners)):
            self.stop(number)
        self.write_down()

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - self.history.now()))

    def play(self, entry: Planned, begin: float) -> None:
        """Start a fault when it is due, and end it when that is due."""
        fault = BY_NAME[entry.fault]
        problems = []
        self.wait(begin + entry.begin)
        with self.lock:  # one before it can last longer than planned, say until a broker is up
            if any(clash(entry, each, len(self.listeners)) for each in self.active):
                return
            self.active.append(entry)
        began = self.history.now()
        for action, until in ((fault.start, entry.end), (fault.end, 0.0)):
            try:
                action(self, entry.which)
            except Exception as error:  # the part may be away, by another fault
                problems.append(f"{type(error).__name__}: {str(error)[:200]}")
            self.wait(begin + until)
        self.history.note(
            "fault",
            name=fault.name,
            touches=fault.touches,
            target=target(entry, len(self.listeners)),
            begun=began,
            problems=problems,
        )
        with self.lock:
            self.active.remove(entry)

    def repair(self) -> None:
        """Undo all faults, whether they are there or not, and publish some more."""
        for node in self.nodes:
            node.start()
            node.evaluate("rabbit_disk_monitor:set_disk_free_limit(1000000)")
            node.alarm(False)
        self.broker.delete_policies()
        self.broker.set_permissions("guest")
        for api in self.apis:
            api.fault = None
            api.accept()
        for proxies in self.proxies:
            for proxy in proxies:
                proxy.resume()
                proxy.accept()
        for number, listener in enumerate(self.listeners):
            if listener.process.poll() is not None:
                self.kill(number)  # it died
            else:
                listener.process.send_signal(signal.SIGCONT)
            self.start(number)
        self.history.note("repaired")
        time.sleep(5)  # deletions come a little longer

    def look(self) -> None:
        """Write down once a second how the queues are filled, and the listeners' size."""
        while not self.over.wait(1):
            with contextlib.suppress(Exception):
                depths = self.broker.queues()
                totals = {name: sum(depths[name]) for name in (POOL, RETRY, DEAD) if name in depths}
                self.history.note("depth", depths=totals)
            for number, listener in enumerate(self.listeners):
                with contextlib.suppress(psutil.Error):
                    self.history.note("memory", who=str(number), bytes=listener.rss())

    def become_quiet(self) -> None:
        """Wait until the queues are empty, twice in a row."""
        began, last = time.monotonic(), False
        published = sum('"publish"' in line for line in self.history.path.open())

        def quiet() -> bool:
            nonlocal last
            depths = self.broker.queues()
            before, last = last, POOL in depths and not sum((*depths[POOL], *depths[RETRY]))
            return before and last

        try:
            wait_until(quiet, PATIENCE + published / PER_SECOND, "empty queues", 0.5)
            problem = ""
        except AssertionError as error:
            problem = str(error)
        self.history.note("quiet", seconds=round(time.monotonic() - began + 5, 1), problem=problem)

    def write_down(self) -> None:
        """Write down what is in the queues and in K2HR3, its requests, and what the logs tell."""
        for queue in (POOL, RETRY, DEAD):
            self.note_found("left", queue)
        self.note_found("grave", GRAVE)
        members = {cuk: sorted(ips) for cuk, ips in self.first_api.members().items()}
        self.history.note("store", members=members, kept=sorted(self.first_api.kept()))
        for number, api in enumerate(self.apis):
            for request in list(api.requests):
                self.note_request(number, request)
        for number, listener in enumerate(self.listeners):
            (self.folder / f"listener.{number}.log").write_text(listener.log)
            self.note_log(str(number), listener.log)
        self.note_log("commands", (self.folder / "commands.log").read_text(errors="replace"))
        for number, node in enumerate(self.nodes):
            (self.folder / f"node.{number}.log").write_text(node.log())

    def note_request(self, number: int, request: Request) -> None:
        self.history.note(
            "request",
            api=number,
            begun=self.history.now(request.begun),
            ended=request.ended and self.history.now(request.ended),
            cuk=request.cuk,
            ips=request.host,
            status=request.status,
            gone=request.client_gone,
        )

    def note_log(self, who: str, log: str) -> None:
        """Write down what a log says of losses and of errors that nobody expects."""
        queues = re.findall(r" ERROR queue (\S+) was deleted", log)
        missing = sum(map(int, re.findall(r" ERROR (\d+) deletions left ", log)))
        odd = re.findall(r"Traceback.*|.*unexpected.*", log)
        self.history.note("log", who=who, deleted=queues, missing=missing, odd=odd[:5])


class Load:
    """Publishes the notifications of machines, each confirmed or written down as it came out."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.chance = random.Random(f"load {storm.seed}")
        self._connection: Any = None
        self._channel: Any = None
        self._number = 0

    def machine(self) -> None:
        """A machine comes and, mostly, goes."""
        life = self.chance.choices(list(LIVES), list(LIVES.values()))[0]
        self._number += 1
        ips = [f"10.{self._number // 250}.{self._number % 250}.{host}" for host in (1, 2)]
        is_alive = life in ("alive", "malformed", "noise")
        living = ips if is_alive else ips[1:] if life == "detached" else []
        if life == "port":
            ips = ips[:1]
        cuk = self.storm.register(life, ips, living)
        for exchange, event, payload, expect in self.events(life, cuk, ips):
            self.send(life, cuk, exchange, event, payload, expect)

    def events(self, life: str, cuk: str, ips: list[str]) -> Iterator[tuple[str, str, Any, Any]]:
        """Exchange, event type, payload, and the addresses to be deleted, None for all; or a
        text: "letter" or "nothing"."""
        gone = instance(cuk)
        data = gone["nova_object.data"]
        if life == "instance":
            yield "nova", "instance.delete.end", gone, None
        elif life == "forced":
            yield "nova", "instance.update", gone, None
        elif life == "alive":
            data["state"] = self.chance.choice(("active", "error", "soft-delete"))
            yield "nova", self.chance.choice(("instance.delete.end", "instance.update")), gone, ()
            yield "neutron", "port.update.end", port(cuk, ips), ()
            yield "neutron", "port.delete.end", port(cuk, ips, device_owner="network:dhcp"), ()
        elif life == "noise":
            event, payload = self.chance.choice(noise())
            yield self.chance.choice(list(EXCHANGES)), event, payload, ()
        else:
            for addresses in [[ip] for ip in ips] if life == "both" else [ips[:1], ips[1:]]:
                if addresses and not (life == "detached" and addresses == ips[1:]):
                    yield "neutron", "port.delete.end", port(cuk, addresses), addresses
            if life == "both":
                yield "nova", "instance.delete.end", gone, None

    def send(self, life: str, cuk: str, exchange: str, event: str, payload: Any, ips: Any) -> None:
        unique = secrets.token_hex(16)
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        body = envelope(unique, exchange, event, payload, self.chance.random() < 0.8)
        expect = "delete" if ips or ips is None else "nothing"
        if life == "malformed":
            expect = "letter"
            body = self.chance.choice(
                (body[:-20], body.replace(cuk.encode(), b"no-" + cuk.encode()))
            )
        if life == "odd headers":
            names = [name for name in ODD_HEADERS if name != "130 kB"]
            properties = ODD_HEADERS[self.chance.choice(names)]
        begun = self.storm.history.now()
        outcome = self.deliver(exchange, body, properties)
        if outcome:
            self.storm.published(unique, cuk, ips, expect, outcome, begun)

    def deliver(self, exchange: str, body: bytes, properties: pika.BasicProperties) -> str:
        """Publish; returns "confirmed", "returned", "unknown", or "" if nothing was sent."""
        try:
            if self._channel is None:
                self._connect()
        except Exception:
            return ""
        try:
            self._channel.basic_publish(exchange, EXCHANGES[exchange], body, properties, True)
            return "confirmed"
        except (amqp.UnroutableError, amqp.NackError):
            return "returned"
        except (amqp.AMQPError, OSError):
            self.close()
            return "unknown"

    def _connect(self) -> None:
        broker = self.storm.broker
        self._connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                broker.port,
                credentials=pika.PlainCredentials("lab", broker.site.password),
                heartbeat=10,
                blocked_connection_timeout=2,
                socket_timeout=2,
                stack_timeout=4,
            )
        )
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()
        self._channel = None


def envelope(unique: str, exchange: str, event: str, payload: Any, enveloped: bool) -> bytes:
    """A body as oslo.messaging publishes it."""
    publisher = "network.host1" if exchange == "neutron" else "nova-compute:host1"
    message = {
        "message_id": str(uuid.uuid4()),
        "publisher_id": publisher,
        "event_type": event,
        "priority": "INFO",
        "payload": payload,
        "timestamp": "2026-03-02 08:15:07.000000",
        "_unique_id": unique,
        **{f"_context_{name}": value for name, value in CONTEXT.items()},
    }
    text = json.dumps(message)
    wrapped = {"oslo.version": "2.0", "oslo.message": text}
    return json.dumps(wrapped).encode() if enveloped else text.encode()


# The command


def play(seed: int, minutes: float, keep: bool) -> Report:
    """Run one storm and judge it; its history is kept on wish, or if a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix=f"k2hr3_osnl.storm.{seed}."))
    with ExitStack() as stack:
        storm = Storm(seed, minutes, folder, stack)
        try:
            storm.run()
        finally:
            storm.over.set()
            storm.history.close()
            for listener in storm.listeners:
                listener.__exit__()
    report = judge(storm.history.path)
    if report.problems or keep:
        print(f"history: {storm.history.path}", flush=True)
    else:
        shutil.rmtree(folder)
    return report


def judge(path: Path) -> Report:
    """Judge a history, and print its line of the table."""
    with path.open() as lines:
        report = check(map(json.loads, lines))
    print("| " + " | ".join(report.row()) + " |")
    print(*(f"BROKEN, seed {report.seed}: {problem}" for problem in report.problems), sep="\n")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown, and last a verdict; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make storm", description=main.__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="default: a random one")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--quick", action="store_true", help="three fixed seeds and a random one")
    parser.add_argument("--keep", action="store_true", help="keep the history in any case")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="only judge this one")
    options = parser.parse_args(arguments)
    random_seed = secrets.randbelow(10**6)
    seeds = options.seed or ([*QUICK_SEEDS, random_seed] if options.quick else [random_seed])
    minutes = QUICK_MINUTES if options.quick else options.minutes
    print("| " + " | ".join(COLUMNS) + " |\n|" + " ---: |" * len(COLUMNS), flush=True)
    runs = [partial(play, seed, minutes, options.keep) for seed in seeds]
    if options.check:
        runs = [partial(judge, options.check)]
    broken = [report.seed for report in (run() for run in runs) if report.problems]
    said = f"BROKEN by seeds {broken}" if broken else f"{len(runs)} storms, no promise broken"
    print(f"verdict: {said}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
