"""`make storm`: overlapping faults on real parts, by a seed, and a verdict over the whole history.

A broker or a cluster of three, one to three listeners on Neutron's and Nova's exchanges, the lab's
Role API. Machines come, and most are deleted, while the faults of `lab.storm_faults` overlap. Then
everything is repaired and gets a bounded time to become quiet. What happened is written as JSON
lines, which `lab.storm_check` judges; they are kept, with all logs, if a promise was broken.

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
from lab import storm_faults, wait_until
from lab.broker import Broker, cluster
from lab.listener import PROGRAM, ListenerProcess, settings, write_settings
from lab.notifier import CONTEXT, instance, noise, port
from lab.odd import ODD_HEADERS
from lab.proxy import Proxy
from lab.role_api import RoleApi
from lab.storm_check import COLUMNS, Report, check
from lab.storm_faults import BY_NAME, DEAD, GRAVE, POOL, RETRY, target

#: The listeners' settings, seconds.
TIMEOUT, INTERVAL = 2, 5

#: Machines a second.
RATE = 6.0

#: Minutes of `make storm QUICK=1`, and its seeds; one more is random.
QUICK_MINUTES, QUICK_SEEDS = 0.5, (1, 4, 6)

#: Seconds after the repair in which all has to be quiet; one more for so many notifications.
PATIENCE, PER_SECOND = 90, 10

KEYS = {"neutron": "notifications.info", "nova": "versioned_notifications.info"}

#: A listener whose clock can be stepped. (libfaketime does not do: with it Python's time.sleep
#: fails with EINVAL when the clock is stepped.)
CLOCK = """
import sys, time, k2hr3_osnl
real_time = time.time
time.time = lambda: real_time() + float(open("{}").read())
sys.exit(k2hr3_osnl.main())
"""

#: What becomes of a machine, and how often.
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


class SecondApi(RoleApi):
    """Another API process of the same K2HR3: its store is that of the first one."""

    def __init__(self, first: RoleApi) -> None:
        super().__init__(delay=first.delay)
        self._members = first._members
        self._members_lock = first._members_lock
        self._unindexed = first._unindexed


class Storm:
    """The parts of one storm, what faults do with them, and the history."""

    def __init__(self, seed: int, minutes: float, folder: Path, stack: ExitStack) -> None:
        self.seed, self.minutes, self.folder = seed, minutes, folder
        self.parts = storm_faults.parts(seed)
        self.plan = storm_faults.schedule(seed, minutes)
        self.path = folder / "history.jsonl"
        self.file = stack.enter_context(self.path.open("w"))
        self.began = time.monotonic()
        self.lock = threading.RLock()  # of the history, and of what faults share
        self.over = threading.Event()
        self.active: list[Any] = []  # faults
        self.nodes: list[Broker] = []
        if self.parts.nodes == 1:
            self.nodes.append(stack.enter_context(Broker()))
        else:
            self.nodes += stack.enter_context(cluster(self.parts.nodes))
        count = len(self.parts.concurrency)
        self.proxies = [
            [stack.enter_context(Proxy(node.port)) for node in self.nodes] for _ in range(count)
        ]
        # one for each listener, which tells their requests apart, and the last for commands
        self.apis = [stack.enter_context(RoleApi(delay=0.005))]
        self.apis += [stack.enter_context(SecondApi(self.apis[0])) for _ in range(count)]
        self.listeners: list[ListenerProcess] = []
        self.started: dict[int, float] = {}  # listener that is to run -> when it was started

    @property
    def broker(self) -> Broker:
        """A node that runs, and is not about to start: Erlang evaluated in one would block it.

        Raises:
            LookupError: there is none.
        """
        with self.lock:
            away = [each for each in self.active if BY_NAME[each.fault].touches == "node"]
        for number, node in enumerate(self.nodes):
            if node.running and not any(each.which % len(self.nodes) == number for each in away):
                return node
        raise LookupError("no node runs")

    def now(self, monotonic: float | None = None) -> float:
        """Seconds since the storm's begin."""
        return round((monotonic or time.monotonic()) - self.began, 3)

    def note(self, kind: str, **values: object) -> None:
        """Write one event into the history."""
        with self.lock:
            self.file.write(json.dumps({"kind": kind, "t": self.now(), **values}) + "\n")
            self.file.flush()

    # Set-up

    def sections(self, number: int, hosts: list[str], concurrency: int) -> Any:
        """The settings of a listener that has this one of the Role APIs."""
        made = settings(
            self.nodes[0].url(hosts=hosts),
            self.apis[number].url,
            timeout_seconds=TIMEOUT,
            retry_interval_seconds=INTERVAL,
            concurrency=concurrency,
        )
        made.update({f"oslo_messaging_notifications:{name}": {} for name in KEYS})
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
            for exchange in KEYS:
                channel.exchange_declare(exchange, "topic", durable=True)
            channel.exchange_declare(GRAVE, "fanout", durable=True)
            kind = "quorum" if self.parts.nodes > 1 else "classic"
            channel.queue_declare(GRAVE, durable=True, arguments={"x-queue-type": kind})
            channel.queue_bind(GRAVE, GRAVE)
        storm_faults.no_policy(self, 0)
        nodes = [node.address for node in self.nodes]
        write_settings(self.folder / "commands.ini", self.sections(-1, nodes, 1))
        (self.folder / "commands.log").touch()
        for number, concurrency in enumerate(self.parts.concurrency):
            hosts = [f"127.0.0.1:{proxy.port}" for proxy in self.proxies[number]]
            self.set_clock(number, 0)
            driver = CLOCK.format(self.folder / f"clock.{number}")
            steps = [each for each in self.plan if each.fault == "clock stepped"]
            is_stepped = any(target(each, len(self.proxies)) == number for each in steps)
            sections = self.sections(number, hosts, concurrency)
            self.listeners.append(ListenerProcess(sections, driver=driver if is_stepped else ""))
            self.start(number)
        wait_until(lambda: len(self.broker.bindings(POOL)) == 2, 60, "the pool to be bound")

    # What faults do

    def set_clock(self, number: int, seconds: int) -> None:
        """Step a listener's clock to so many seconds beside the real time."""
        made = self.folder / "clock.new"
        made.write_text(f"{seconds}\n")
        made.replace(self.folder / f"clock.{number}")

    def start(self, number: int) -> None:
        """Start a listener, unless it runs."""
        if number not in self.started:
            self.started[number] = self.now()
            self.listeners[number].start()

    def end(self, number: int, kill: bool) -> None:
        """SIGTERM to a listener, or the end at once."""
        began, code = self.now(), self.listeners[number].process.poll()
        how = "killed" if kill else "stopped"
        if code is not None:
            how = "died"
        elif not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.listeners[number].stop(TIMEOUT + 30)
        seconds = self.now() - began
        self.listeners[number].kill()
        self.note_process(str(number), self.started.pop(number), how, code, seconds)

    def note_process(
        self, who: str, begun: float, how: str, code: int | None, seconds: float = 0
    ) -> None:
        self.note("process", who=who, begun=begun, how=how, code=code, seconds=seconds)

    def command(self, name: str, *arguments: str) -> None:
        """Run a command beside the listeners."""
        begun, cuks = self.now(), []
        if name == "delete":
            cuks = [self.register("queued", ["10.0.0.1"], []) for _ in range(3)]
        program = [sys.executable, str(PROGRAM), "-c", str(self.folder / "commands.ini")]
        with (self.folder / "commands.log").open("ab") as log:
            done = subprocess.run(
                [*program, name, *arguments],
                input="\n".join(cuks).encode(),
                stdout=subprocess.PIPE,
                stderr=log,
                check=False,
                timeout=150,
            )
            log.write(done.stdout)
        for cuk in cuks:  # it prints those that failed
            failed = done.returncode and (cuk.encode() in done.stdout or not done.stdout)
            outcome = "unknown" if failed else "confirmed"
            self.note_publish("", cuk, None, "delete", outcome, begun)
        self.note_process(name, begun, "command", done.returncode)

    def delete_queue(self, queue: str) -> None:
        """Write down what a queue holds, and delete it; some can come between these two."""
        self.note_found("taken", queue)
        begun = self.now()
        with contextlib.closing(self.broker.amqp()) as connection:
            unacked = self.broker.depth(queue).unacked
            left = connection.channel().queue_delete(queue).method.message_count
        self.note("deleted", queue=queue, begun=begun, left=left, unacked=unacked)

    # Machines

    def register(self, life: str, addresses: list[str], living: list[str]) -> str:
        """Make a machine, a member with these addresses, of which some are to stay."""
        cuk = str(uuid.uuid4())
        self.apis[0].register(cuk, *addresses)
        self.note("machine", cuk=cuk, life=life, addresses=addresses, living=living)
        return cuk

    def note_publish(self, *values: object) -> None:
        names = ("id", "cuk", "ips", "expect", "outcome", "begun")
        self.note("publish", **dict(zip(names, values)))

    def publish(self) -> None:
        """Machines come, and notifications of them, until the storm is over."""
        chance, channel, number = random.Random(f"load {self.seed}"), None, 0
        while not self.over.wait(chance.expovariate(RATE)):
            number += 1
            life = chance.choices(list(LIVES), list(LIVES.values()))[0]
            ips = [f"10.{number // 250}.{number % 250}.{host}" for host in (1, 2)]
            is_alive = life in ("alive", "malformed", "noise")
            living = ips if is_alive else ips[1:] if life == "detached" else []
            cuk = self.register(life, ips, living)
            for exchange, event, payload, gone in events(life, cuk, ips, chance):
                unique = secrets.token_hex(16)
                body, properties, expect = message(life, unique, exchange, event, payload, chance)
                begun = self.now()
                outcome, channel = self.deliver(channel, exchange, body, properties)
                expect = "nothing" if gone == [] else expect
                if outcome:
                    self.note_publish(unique, cuk, gone, expect, outcome, begun)

    def deliver(self, channel: Any, exchange: str, *message: Any) -> tuple[str, Any]:
        """Publish; returns what came of it, "" if it was not sent, and the channel if it works."""
        try:
            if channel is None:
                channel = self.broker.amqp().channel()
                channel.confirm_delivery()
        except Exception:
            return "", None
        try:
            channel.basic_publish(exchange, KEYS[exchange], *message, mandatory=True)
            return "confirmed", channel
        except (amqp.UnroutableError, amqp.NackError):
            return "returned", channel
        except (amqp.AMQPError, OSError):
            return "unknown", None

    # The run

    def run(self) -> None:
        """Play the schedule, repair everything, wait for quiet, and write down what is left."""
        self.note("storm", seed=self.seed, timeout=TIMEOUT, **self.parts._asdict())
        self.set_up()
        threads = [threading.Thread(target=each) for each in (self.publish, self.look)]
        for each in threads:
            each.start()
        begin = self.now()
        with ThreadPoolExecutor(len(self.plan)) as pool:
            list(pool.map(partial(self.play, begin), self.plan))
        self.wait(begin + 60 * self.minutes)
        self.repair()
        self.wait(self.now() + 5)  # deletions come a little longer
        self.over.set()
        for each in threads:
            each.join()
        self.become_quiet()
        for number in range(len(self.listeners)):
            self.end(number, kill=False)
        self.write_down()

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - self.now()))

    def play(self, begin: float, entry: Any) -> None:
        """Start a fault when it is due, and end it when that is due."""
        fault, problems = BY_NAME[entry.fault], []
        self.wait(begin + entry.begin)
        with self.lock:  # one before it can last longer than planned, say until a broker is up
            if any(storm_faults.clash(entry, each, len(self.listeners)) for each in self.active):
                return
            self.active.append(entry)
        begun = self.now()
        for action, until in ((fault.start, begin + entry.end), (fault.end, 0.0)):
            try:
                action(self, entry.which)
            except Exception as error:  # the part may be away, by another fault
                problems.append(f"{type(error).__name__}: {str(error)[:200]}")
            self.wait(until)
        hit = {"touches": fault.touches, "target": target(entry, len(self.listeners))}
        self.note("fault", name=fault.name, **hit, begun=begun, problems=problems)
        with self.lock:
            self.active.remove(entry)

    def repair(self) -> None:
        """Undo all faults, whether they are there or not."""
        for node in self.nodes:
            try:
                node.start()
            except RuntimeError:  # RabbitMQ can hang while it starts
                node.kill()
                node.start()
            node.evaluate("rabbit_disk_monitor:set_disk_free_limit(1000000)")
            node.alarm(False)
        storm_faults.no_policy(self, 0)
        self.broker.set_permissions("guest")
        for api in self.apis:
            api.fault = None
            api.accept()
        for proxies in self.proxies:
            for proxy in proxies:
                proxy.resume()
                proxy.accept()
        for number, listener in enumerate(self.listeners):
            listener.process.send_signal(signal.SIGCONT)
            if number in self.started and listener.process.poll() is not None:
                self.end(number, kill=False)  # it died
            self.start(number)

    def look(self) -> None:
        """Write down once a second how the queues are filled, and the listeners' size."""
        while not self.over.wait(1):
            with contextlib.suppress(Exception):
                depths = self.broker.queues()
                self.note("depth", depths={name: depth.total for name, depth in depths.items()})
            for number, listener in enumerate(self.listeners):
                with contextlib.suppress(psutil.Error):
                    self.note("memory", who=str(number), bytes=listener.rss())

    def become_quiet(self) -> None:
        """Wait until the queues are empty, twice in a row."""
        began, last, problem = self.now(), False, ""

        def is_quiet() -> bool:
            nonlocal last
            depths = self.broker.queues()
            before, last = last, not sum((*depths[POOL], *depths[RETRY]))
            return before and last

        published = sum('"publish"' in line for line in self.path.open())
        try:
            wait_until(is_quiet, PATIENCE + published / PER_SECOND, "empty queues", 0.5)
        except AssertionError as error:
            problem = str(error)
        self.note("quiet", seconds=round(self.now() - began, 1), problem=problem)

    # What is left

    def write_down(self) -> None:
        """Write down what is in the queues and in K2HR3, its requests, and what the logs tell."""
        for queue in (POOL, RETRY, DEAD):
            self.note_found("left", queue)
        storm_faults.no_policy(self, 0)
        members = {cuk: sorted(ips) for cuk, ips in self.apis[0].members().items()}
        self.note("store", members=members, kept=sorted(self.apis[0].kept()))
        for number, api in enumerate(self.apis):
            for each in api.requests:
                times = {
                    "begun": self.now(each.begun),
                    "ended": each.ended and self.now(each.ended),
                }
                made = {"api": number, "cuk": each.cuk, "ips": each.host, "status": each.status}
                self.note("request", **made, **times)
        logs = {str(number): each.log for number, each in enumerate(self.listeners)}
        logs["commands"] = (self.folder / "commands.log").read_text(errors="replace")
        for who, log in logs.items():
            (self.folder / f"{who}.log").write_text(log)
            deleted = re.findall(r" ERROR queue (\S+) was deleted", log)
            missing = sum(map(int, re.findall(r" ERROR (\d+) deletions left ", log)))
            odd = re.findall(r"Traceback.*|.*unexpected.*", log)
            self.note("log", who=who, deleted=deleted, missing=missing, odd=odd[:5])
        for number, node in enumerate(self.nodes):
            (self.folder / f"node.{number}.log").write_text(node.log())

    def note_found(self, where: str, queue: str) -> None:
        """Take what is in a queue, and write it down."""
        for body, headers in self.take(queue):
            text = body.decode(errors="replace")
            deaths = headers.get("x-death") or [{"queue": queue}]
            self.note(
                "found",
                where=where,
                queue=str(deaths[0].get("queue")),
                ids=sorted(set(re.findall(r"_unique_id\W+([0-9a-f]{32})", text))),
                cuks=sorted(set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))),
                reason=str(headers.get("x-k2hr3-reason", "")),
                doubt=str(headers.get("x-k2hr3-doubt", "")),
            )

    def take(self, queue: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Take all that is ready in a queue, also what pika can't read the headers of."""
        login = pika.PlainCredentials("lab", self.broker.site.password)
        there = pika.ConnectionParameters("127.0.0.1", self.broker.port, credentials=login)
        lenient: Any = LenientConnection
        with contextlib.closing(pika.BlockingConnection(there, lenient)) as connection:
            channel: Any = connection.channel()
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return
                yield body, properties.headers or {}


# Notifications


def events(life: str, cuk: str, ips: list[str], chance: random.Random) -> Iterator[Any]:
    """Exchange, event, payload, and the addresses that are to go: None for all, [] for none."""
    gone = instance(cuk)
    if life in ("instance", "forced"):
        yield "nova", "instance.update" if life == "forced" else "instance.delete.end", gone, None
    elif life == "alive":
        gone["nova_object.data"]["state"] = chance.choice(("active", "error", "soft-delete"))
        yield "nova", chance.choice(("instance.delete.end", "instance.update")), gone, []
        yield "neutron", "port.update.end", port(cuk, ips), []
        yield "neutron", "port.delete.end", port(cuk, ips, device_owner="network:dhcp"), []
    elif life == "noise":
        yield (chance.choice(list(KEYS)), *chance.choice(noise()), [])
    elif life in ("port", "malformed"):
        yield "neutron", "port.delete.end", port(cuk, ips), ips
    else:
        for ip in ips[:1] if life == "detached" else ips:
            yield "neutron", "port.delete.end", port(cuk, [ip]), [ip]
        if life == "both":
            yield "nova", "instance.delete.end", gone, None


def message(
    life: str, unique: str, exchange: str, event: str, payload: Any, chance: random.Random
) -> tuple[bytes, pika.BasicProperties, str]:
    """Body and properties as oslo.messaging publishes them, or odd, and what it is to lead to."""
    text = json.dumps(
        {
            "message_id": str(uuid.uuid4()),
            "publisher_id": "network.host1" if exchange == "neutron" else "nova-compute:host1",
            "event_type": event,
            "priority": "INFO",
            "payload": payload,
            "timestamp": "2026-03-02 08:15:07.000000",
            "_unique_id": unique,
            **{f"_context_{name}": value for name, value in CONTEXT.items()},
        }
    )
    if chance.random() < 0.8:
        text = json.dumps({"oslo.version": "2.0", "oslo.message": text})
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    if life == "odd headers":
        names = [name for name in ODD_HEADERS if name != "130 kB"]
        properties = ODD_HEADERS[chance.choice(names)]
    if life != "malformed":
        return text.encode(), properties, "delete"
    wrong = chance.choice((text[:-20], text.replace("10.", "no.")))
    return wrong.encode(), properties, "letter"


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
            for listener in storm.listeners:
                listener.__exit__()
    report = judge(storm.path)
    if report.problems or keep:
        print(f"history: {storm.path}", flush=True)
    else:
        shutil.rmtree(folder)
    return report


def judge(path: Path) -> Report:
    """Judge a history, and print its line of the table."""
    with path.open() as lines:
        report = check(map(json.loads, lines))
    print("| " + " | ".join(report.row()) + " |", flush=True)
    for problem in report.problems:
        print(f"BROKEN, seed {report.figures['seed']}: {problem}")
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # ends what it started
    random_seed = secrets.randbelow(10**6)
    seeds = options.seed or ([*QUICK_SEEDS, random_seed] if options.quick else [random_seed])
    minutes = QUICK_MINUTES if options.quick else options.minutes
    if not options.check:
        print(f"seeds: {' '.join(map(str, seeds))}", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " ---: |" * len(COLUMNS), flush=True)
    runs = [partial(play, seed, minutes, options.keep) for seed in seeds]
    if options.check:
        runs = [partial(judge, options.check)]
    reports = [run() for run in runs]
    broken = [report.figures["seed"] for report in reports if report.problems]
    said = f"BROKEN by seeds {broken}" if broken else f"{len(runs)} storms, no promise broken"
    print(f"verdict: {said}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
