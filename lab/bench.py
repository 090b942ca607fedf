"""`make bench`: how fast it is, beside its predecessor and beside what pika and urllib3 allow.

One run on one machine: a private RabbitMQ, nginx or a slow stand-in as the API, and in each round
every row for all three, in turns, so that whatever else the machine does meets all alike. Prints
one table (Markdown) of medians, with the lowest and highest, and of ratios paired by round.

A row's queue is filled before its listener starts. What counts is how fast it empties, acks
included, once it has warmed up; and the CPU (user and system) of the listener's process alone.

    python -m lab.bench [--quick] [--rounds 5] [--json] [--plot FILE] [--only ROWS]
    python -m lab.bench --before FILE        # instead of both: another copy of the module
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Callable, NamedTuple, cast

import psutil

from lab import wait_until
from lab.broker import Broker, free_port
from lab.listener import PROGRAM, ListenerProcess, Sections
from lab.notifier import Notifier, port
from lab.proxy import Server

PREDECESSOR = PROGRAM.parent / ".venv-predecessor" / "bin" / "python"
QUEUE = "k2hr3_osnl"
#: Instance id in the template of a deletion, and what oslo.messaging knows a duplicate by.
TEMPLATE, UNIQUE = b"11111111-2222-4333-8444-555555555555", b"0" * 32
#: Seconds that anything but the measured may take.
PATIENCE = 120.0
Sample = dict[str, float]
Measure = Callable[[], Sample]


# The other side: an API that takes its time, and one that is as fast as can be


class Api(Server):
    """Answers 204 after `delay` seconds to any number of requests at once, and notes them."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.port}/v1/role"
        self.delay = 0.0
        self.arrivals: dict[bytes, float] = {}  # instance id -> monotonic

    def start(self) -> None:
        # epoll waits whole milliseconds, which is up to 5 % of 20
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._run, args=(self._loop,), daemon=True)
        self._thread.start()
        self.accept()

    def begin(self, delay: float = 0.0) -> None:
        """Forget what arrived, and take `delay` seconds from now on."""
        self.arrivals, self.delay = {}, delay

    def _protocol(self) -> asyncio.BaseProtocol:
        return _Requests(self)


class _Requests(asyncio.Protocol):
    def __init__(self, api: Api) -> None:
        self.api, self.received = api, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.api._open.add(self.transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self.api._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            self.api.arrivals[self.received.partition(b"cuk=")[2][:36]] = time.monotonic()
            close = b"connection: close" in self.received.lower()
            self.received = b""
            asyncio.get_running_loop().call_later(self.api.delay, self.answer, close)

    def answer(self, close: bool) -> None:
        ending = b"Connection: close\r\n\r\n" if close else b"\r\n"
        self.transport.write(b"HTTP/1.1 204 No Content\r\n" + ending)
        if close:
            self.transport.close()


NGINX = """
daemon off; master_process off; error_log stderr crit; pid {folder}/pid;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {folder};
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; return 204; }}
}}
"""


@contextlib.contextmanager
def nginx() -> Iterator[str]:
    """An nginx of our own that answers 204 at once; gives its URL."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise RuntimeError("there is no nginx (make bench installs it)")
    folder, number = tempfile.mkdtemp(prefix="bench-nginx-"), free_port()
    settings = Path(folder, "nginx.conf")
    settings.write_text(NGINX.format(folder=folder, port=number))
    process = subprocess.Popen([program, "-p", folder, "-c", str(settings)])
    try:
        wait_until(partial(_answers, number), what="nginx")
        yield f"http://127.0.0.1:{number}/v1/role"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _answers(number: int) -> bool:
    socket.create_connection(("127.0.0.1", number), 1).close()
    return True


# What is measured


class Target(NamedTuple):
    """What issue 5 asks for: `ours` is at least (or `most`: at most) `bound` times `of`'s."""

    metric: str
    of: str  # "predecessor", "limit" or "" for an absolute figure
    bound: float
    most: bool = False
    gate: float = 0.0  # what --quick insists on


class Row(NamedTuple):
    name: str
    sides: dict[str, Measure]  # by "ours", "predecessor", "limit"
    targets: tuple[Target, ...] = ()


class Bench:
    """One run: the broker, both APIs, and what the rows are made of.

    Args:
        quick: fewer of everything.
        before: another copy of our program, to compare with it alone; or None.
        predecessor: an interpreter that has it.
    """

    def __init__(self, quick: bool, before: Path | None, predecessor: str) -> None:
        self.scale = 0.3 if quick else 1.0
        self.quick = quick
        self.before = before
        self.predecessor = predecessor
        #: What is measured beside ours.
        self.others = ("before",) if before else ("predecessor", "limit")

    @contextlib.contextmanager
    def running(self) -> Iterator[Bench]:
        with (
            Broker() as self.broker,
            Api() as self.api,
            nginx() as self.nginx_url,
            contextlib.closing(self.broker.amqp()) as self.connection,
        ):
            self.channel = self.connection.channel()
            self.prepare()
            yield self

    def prepare(self) -> None:
        """Declare our queues, and have oslo.messaging make the two bodies."""
        self.channel.exchange_declare("neutron", "topic")
        self.channel.queue_declare(QUEUE)  # as the predecessor does
        self.channel.queue_bind(QUEUE, "neutron", "notifications.info")
        self.channel.queue_declare(f"{QUEUE}.retry", durable=True)
        cuk = TEMPLATE.decode()
        with Notifier(self.broker.url()) as neutron:
            neutron.notify("port.update.end", port(cuk, ["10.0.0.5"]))
            neutron.notify("port.delete.end", port(cuk, ["10.0.0.5"]))
        messages = self.broker.messages(QUEUE, take=True)
        self.properties = messages[0].properties
        self.noise, self.deletion = (
            re.sub(rb"(_unique_id\W+)\w{32}", rb"\g<1>" + UNIQUE, message.body)
            for message in messages
        )

    def own_pace(self) -> str:
        """How well the API keeps its 20 ms, so that nobody takes its limit for ours."""
        self.api.begin(0.02)
        request = b"DELETE / HTTP/1.1\r\n\r\n"
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection((self.api.host, self.api.port)))
                for _ in range(64)
            ]
            began = time.monotonic()
            for _ in range(20):
                clients[0].sendall(request)
                clients[0].recv(1000)
            one = (time.monotonic() - began) / 20
            began = time.monotonic()
            for _ in range(20):
                for client in clients:
                    client.sendall(request)
                for client in clients:
                    client.recv(1000)
            rate = 20 * len(clients) / (time.monotonic() - began)
        return f"the API of 20 ms takes {one * 1e3:.1f} ms, and answers {rate:,.0f}/s at best"

    # Parts of rows

    def count(self, whole: int) -> int:
        return int(whole * self.scale)

    def start(self, side: str, api_url: str, **more: object) -> ListenerProcess:
        """A listener, to be started by its context; `more` are options of any section."""
        source: dict[str, object] = {"transport_url": self.broker.url()}
        k2hr3: dict[str, object] = {
            "api_url": api_url,
            "timeout_seconds": 10,
            "retry_interval_seconds": 5,
        }
        for name, value in more.items():
            (source if name in ("event_type", "publisher_id") else k2hr3)[name] = value
        sections: Sections = {"oslo_messaging_notifications": source, "k2hr3": k2hr3}
        if side == "before":
            assert self.before
            return ListenerProcess(sections, program=self.before)
        if side == "ours":
            return ListenerProcess(sections)
        k2hr3.pop("concurrency", None)  # it has none: 64 threads
        # PYTHONPATH would give it our module of the same name
        return ListenerProcess(
            sections,
            python=self.predecessor,
            environment={"PYTHONPATH": ""},
            driver="import k2hr3_osnl; k2hr3_osnl.main()",
        )

    def deletion_of(self, cuk: bytes) -> bytes:
        return self.deletion.replace(TEMPLATE, cuk)

    def deletions(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self.deletion_of(_cuk())

    def mixture(self, count: int) -> Iterator[bytes]:
        """One deletion to 49 others."""
        for _ in range(0, count, 50):
            yield from self.deletions(1)
            yield from repeat(self.noise, 49)

    def fill(self, bodies: Iterable[bytes]) -> int:
        """Put messages into the empty queue; returns how many."""
        for name in self.broker.queues():
            self.broker.purge(name)
        count = 0
        for count, body in enumerate(bodies, 1):  # noqa: B007
            self.publish(body)
        wait_until(lambda: self.ready(QUEUE) == count, PATIENCE, f"{count} messages")
        return count

    def publish(self, body: bytes) -> None:
        unique = body.replace(UNIQUE, uuid.uuid4().hex.encode())
        self.channel.basic_publish("", QUEUE, unique, self.properties)

    def ready(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def loop(
        self, loop: str, warm: int, count: int, api_url: str = "", queue: str = QUEUE
    ) -> Sample:
        """One of lab.bench_limits."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "lab.bench_limits",
                loop,
                self.amqp_url(),
                queue,
                str(warm),
                str(count),
                api_url,
            ],
            cwd=PROGRAM.parent,
            check=True,
            stdout=subprocess.PIPE,
        )
        found = json.loads(done.stdout)
        return {"rate": count / found["seconds"], "cpu": found["cpu"] / count * 1e6}

    def amqp_url(self) -> str:
        return f"amqp://guest:guest@{self.broker.address}/%2F"

    # Rows

    def throughput(
        self,
        side: str,
        bodies: Callable[[int], Iterable[bytes]],
        warm: int,
        count: int,
        loop: str,
        fast_api: bool,
        **options: object,
    ) -> Sample:
        """Notifications a second, and CPU microseconds each."""
        warm, count = self.count(warm), self.count(count)
        api_url = self.nginx_url if fast_api else self.api.url
        if side == "limit":
            self.fill(bodies(warm + count))
            return self.loop(loop, warm, count, api_url)
        self.fill(bodies(warm + count))
        seen: list[tuple[int, float, float]] = []  # messages left, monotonic, seconds of CPU
        with self.start(side, api_url, **options) as listener:
            process, end = psutil.Process(listener.process.pid), time.monotonic() + PATIENCE
            while not seen or seen[-1][0]:
                left, now, used = (
                    self.broker.depth(QUEUE).total,
                    time.monotonic(),
                    (process.cpu_times()),
                )
                seen.append((left, now, used.user + used.system))
                if now > end:
                    raise AssertionError(f"{left} messages left:\n{listener.log[-3000:]}")
                time.sleep(0.1)
        first = next(each for each in seen if each[0] <= count)
        # the last look came some time after the end
        last = seen[-2] if seen[-2][0] < first[0] else seen[-1]
        done = first[0] - last[0]
        return {"rate": done / (last[1] - first[1]), "cpu": (last[2] - first[2]) / done * 1e6}

    def steady(self, side: str, listeners: int, concurrency: int, count: int) -> Sample:
        """Deletions a second with an API that takes 20 ms, while none is short of work."""
        if side == "limit":
            return {"rate": listeners * concurrency / 0.02}
        count = self.count(count)
        self.fill(self.deletions(count))
        self.api.begin(0.02)
        with contextlib.ExitStack() as stack:
            for _ in range(listeners):
                stack.enter_context(self.start(side, self.api.url, concurrency=concurrency))
            wait_until(lambda: len(self.api.arrivals) >= 0.75 * count, PATIENCE, "deletions")
        times = sorted(self.api.arrivals.values())
        begin, end = int(0.15 * count), int(0.75 * count)
        return {"rate": (end - begin - 1) / (times[end - 1] - times[begin])}

    def latency(self, side: str) -> Sample:
        """Milliseconds from publishing a deletion to its DELETE, at 100 a second."""
        count = self.count(1500)
        sent: dict[bytes, float] = {}
        self.fill([])
        self.api.begin()
        with contextlib.ExitStack() as stack:
            if side == "limit":
                looping = threading.Thread(
                    target=self.loop, args=("delete", 0, count, self.api.url)
                )
                looping.start()
                stack.callback(looping.join)
            else:
                stack.enter_context(self.start(side, self.api.url))
            wait_until(lambda: self.consumers(), PATIENCE, "a consumer")
            began = time.monotonic()
            for number in range(count):
                time.sleep(max(0.0, began + number / 100 - time.monotonic()))
                cuk = _cuk()
                sent[cuk] = time.monotonic()
                self.publish(self.deletion_of(cuk))
            wait_until(lambda: len(self.api.arrivals) == count, PATIENCE, "deletions")
        waits = sorted(self.api.arrivals[cuk] - sent[cuk] for cuk in list(sent)[count // 10 :])
        return {f"p{part}": waits[len(waits) * part // 100] * 1e3 for part in (50, 99)}

    def consumers(self) -> int:
        return int(self.channel.queue_declare(QUEUE, passive=True).method.consumer_count)

    def start_up(self, side: str) -> Sample:
        """Seconds from starting the process to its first DELETE, and MB of it once idle."""
        self.fill(self.deletions(1))
        self.api.begin()
        began = time.monotonic()
        if side == "limit":
            command = [
                sys.executable,
                "-c",
                "import pika, urllib3; print(flush=True); import sys; sys.stdin.read()",
            ]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
                assert bare.stdout
                bare.stdout.readline()
                return {"seconds": time.monotonic() - began, "idle": _megabytes(bare.pid)}
        with self.start(side, self.api.url) as process:
            wait_until(lambda: self.api.arrivals, PATIENCE, "the first DELETE")
            time.sleep(1)  # what it does after the first one, too
            return {
                "seconds": next(iter(self.api.arrivals.values())) - began,
                "idle": _megabytes(process.process.pid),
            }

    def backlog(self, side: str) -> Sample:
        """The most MB resident in the first 20 s (quick: 6 s) of a long backlog."""
        count = self.count(200_000)
        self.fill(repeat(self.noise, count))
        most, end = 0.0, time.monotonic() + (6 if self.quick else 20)
        with self.start(side, self.api.url) as process:
            while time.monotonic() < end and self.broker.depth(QUEUE).total:
                most = max(most, _megabytes(process.process.pid))
                time.sleep(0.2)
        return {"most": most}

    def moving(self, side: str) -> Sample:
        """Deletions a second that move to the retry queue while the API refuses."""
        count = self.count(5000)
        to = f"{QUEUE}.retry"
        if side == "limit":
            return self.loop("publish", 0, count, queue=to)  # durable, as ours made it
        self.fill(self.deletions(count))
        seen: list[tuple[int, float]] = []
        with self.start(side, f"http://127.0.0.1:{free_port()}/"):
            while not seen or seen[-1][0] < 0.8 * count:
                seen.append((self.ready(to), time.monotonic()))
                time.sleep(0.02)
        (first, began), *_ = [each for each in seen if each[0] > 0.1 * count]
        last, ended = seen[-1]
        return {"rate": (last - first) / (ended - began)}

    def installed(self, side: str) -> Sample:
        """Packages and MB; of ours those it declares, which need no others."""
        wanted = "" if side == "predecessor" else "pika urllib3"
        done = subprocess.run(
            [
                self.predecessor if side == "predecessor" else sys.executable,
                "-c",
                INSTALLED,
                wanted,
            ],
            check=True,
            stdout=subprocess.PIPE,
        )
        found: Sample = json.loads(done.stdout)
        return found

    def rows(self) -> list[Row]:
        noise: Any = partial(repeat, self.noise)
        skip_decoded = {"event_type": ".*", "publisher_id": "^nobody$"}

        def throughput(
            bodies: Any, count: int, less: int, loop: str, fast_api: bool = True, **options: object
        ) -> dict[str, Measure]:
            def measure(side: str) -> Sample:
                most = less if side == "predecessor" else count
                return self.throughput(side, bodies, most // 10, most, loop, fast_api, **options)

            return sides(measure)

        def sides(measure: Callable[[str], Sample], without: str = "") -> dict[str, Measure]:
            return {
                side: partial(measure, side) for side in ("ours", *self.others) if side != without
            }

        def steady(listeners: int, concurrency: int, count: int) -> dict[str, Measure]:
            return sides(
                lambda side: self.steady(
                    side, listeners, concurrency, 3000 if side == "predecessor" else count
                )
            )

        deletes = (
            Target("rate", "predecessor", 2.5, gate=1.5),
            Target("cpu", "predecessor", 0.4, most=True),
            Target("rate", "limit", 0.55),
        )
        in_time = (Target("rate", "limit", 0.9),)
        return [
            Row(
                "skip",
                throughput(noise, 60_000, 8_000, "skip", False),
                (
                    Target("rate", "predecessor", 9, gate=5),
                    Target("cpu", "predecessor", 0.1, most=True),
                    Target("rate", "limit", 0.75),
                ),
            ),
            Row(
                "skip, all decoded",
                throughput(noise, 30_000, 8_000, "decode", False, **skip_decoded),
            ),
            *(
                Row(
                    f"delete, concurrency {concurrency}",
                    throughput(self.deletions, 8_000, 3_000, "delete", concurrency=concurrency),
                    deletes,
                )
                for concurrency in (1, 4)
            ),
            Row("mixed, 1 in 50", throughput(self.mixture, 40_000, 8_000, "mixed")),
            *(
                Row(f"API 20 ms, concurrency {concurrency}", steady(1, concurrency, count), in_time)
                for concurrency, count in ((1, 500), (4, 1500), (16, 4000))
            ),
            *(
                Row(f"API 20 ms, listeners {listeners}", steady(listeners, 4, 1500 * listeners))
                for listeners in (1, 2, 4)
            ),
            Row("latency", sides(self.latency), (Target("p99", "", 10, most=True),)),
            Row(
                "start to first DELETE",
                sides(self.start_up),
                (
                    Target("seconds", "predecessor", 0.5, most=True),
                    Target("idle", "", 38, most=True),
                ),
            ),
            Row(
                f"backlog of {self.count(200_000):,}",
                sides(self.backlog, without="limit"),
                (Target("most", "", 38, most=True),),
            ),
            Row("to the retry queue", sides(self.moving, without="predecessor")),
            *([] if self.before else [Row("installed", sides(self.installed, without="limit"))]),
        ]


INSTALLED = """
import importlib.metadata, json, os, sys
found = [each for each in importlib.metadata.distributions()
         if (each.name in sys.argv[1].split() if sys.argv[1] else
             each.name not in ("pip", "setuptools"))]
size = sum(os.path.getsize(file.locate()) for each in found for file in each.files or ()
           if os.path.exists(file.locate()))
print(json.dumps({"packages": len(found), "size": size / 1e6}))
"""


def _cuk() -> bytes:
    return str(uuid.uuid4()).encode()


def _megabytes(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


# What comes out

#: metric -> its unit, and digits after the point
UNITS = {
    "rate": ("/s", 0),
    "cpu": ("µs", 0),
    "p50": ("ms p50", 1),
    "p99": ("ms p99", 1),
    "seconds": ("s", 2),
    "idle": ("MB idle", 1),
    "most": ("MB", 1),
    "packages": ("packages", 0),
    "size": ("MB", 1),
}
#: What the table calls the others.
NAMES = {"predecessor": "k2hr3-osnl 1.0.8"}
#: row -> side -> metric -> its value in each round
Results = dict[str, dict[str, dict[str, list[float]]]]


def ratio(sides: dict[str, dict[str, list[float]]], target: Target) -> float:
    """Ours to the other's, the median of what each round gives; ours itself without another."""
    ours = sides["ours"][target.metric]
    others = sides[target.of][target.metric] if target.of else [1.0] * len(ours)
    return statistics.median(a / b for a, b in zip(ours, others))


def met(value: float, target: Target) -> bool:
    return value <= target.bound if target.most else value >= target.bound


def cell(metrics: dict[str, list[float]]) -> str:
    parts = []
    for metric, values in metrics.items():
        unit, digits = UNITS[metric]
        low, middle, high = (
            f"{value:,.{digits}f}"
            for value in (min(values), statistics.median(values), max(values))
        )
        parts.append(f"{middle} {unit}" + (f" ({low} to {high})" if low != high else ""))
    return ", ".join(parts)


def table(rows: list[Row], results: Results, others: Sequence[str]) -> str:
    names = [NAMES.get(side, side) for side in others]
    heads = ["", "ours", *names, *(f"ours / {name}" for name in names), "target"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        sides = results[row.name]
        cells = [cell(sides.get(side, {})) for side in ("ours", *others)]
        for of in others:
            cells.append(
                ", ".join(
                    f"{ratio(sides, Target(metric, of, 0)):.2f} {UNITS[metric][0]}"
                    for metric in sides["ours"]
                    if metric in sides.get(of, {})
                )
            )
        targets = [*row.targets] if "before" not in others else []
        if "before" in others:
            for metric in sides["ours"]:
                most = metric != "rate"
                targets.append(Target(metric, "before", 1.05 if most else 0.95, most))
        cells.append(
            "; ".join(
                f"{UNITS[target.metric][0]} {'at most' if target.most else 'at least'} "
                f"{target.bound:g}{' of ' + target.of if target.of else ''}: "
                f"{'met' if met(ratio(sides, target), target) else 'NOT met'}"
                for target in targets
            )
        )
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return "\n".join(lines)


def scaling(results: Results) -> str:
    one, four = (results[f"API 20 ms, listeners {count}"]["ours"]["rate"] for count in (1, 4))
    factor = statistics.median(b / a for a, b in zip(one, four))
    return (
        f"Four listeners are {factor:.2f} times one (target at least 3.6: "
        f"{'met' if factor >= 3.6 else 'NOT met'})."
    )


def plot(results: Results, file: str) -> None:
    """Rate against concurrency and against number of listeners, with the spread."""
    import matplotlib  # type: ignore  # of the lab's environment, for this only

    matplotlib.use("svg" if file.endswith("svg") else "agg")
    from matplotlib import pyplot  # type: ignore

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, what, counts in (
        (axes[0], "concurrency", (1, 4, 16)),
        (axes[1], "listeners", (1, 2, 4)),
    ):
        for side, label, style in (
            ("limit", "concurrency / 20 ms", "k:"),
            ("ours", "k2hr3_osnl", "o-"),
        ):
            values = [results[f"API 20 ms, {what} {count}"][side]["rate"] for count in counts]
            middle = [statistics.median(each) for each in values]
            spread = [
                [m - min(v) for m, v in zip(middle, values)],
                [max(v) - m for m, v in zip(middle, values)],
            ]
            axis.errorbar(counts, middle, spread, fmt=style, label=label, capsize=3)
        axis.set(
            xlabel=what + (" (each with concurrency 4)" if what == "listeners" else ""),
            ylabel="deletions/s, API taking 20 ms",
            xticks=counts,
            ylim=0,
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def machine(busy: list[float]) -> str:
    """What it ran on, and how much of it others used."""
    return (
        f"{psutil.cpu_count()} cores of {platform.machine()}, Python "
        f"{platform.python_version()}, {min(busy):.0f} to {max(busy):.0f} % of them used by "
        "others before each round"
    )


def measure(rows: list[Row], rounds: int, quick: bool, busy: list[float]) -> Results:
    """All rows in each round; `busy` takes the CPU that others use before it, percent.

    With `quick` only the rows that can fail it have more than one round.
    """
    results: Results = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number in range(rounds):
        busy.append(psutil.cpu_percent(2.0))
        for row in rows:
            compared = "before" in row.sides
            if quick and number and not (compared or any(each.gate for each in row.targets)):
                continue
            # The first of two copies must not always meet the machine as the row before left it.
            sides = list(row.sides.items())
            for side, measured in reversed(sides) if compared and number % 2 else sides:
                began = time.monotonic()
                for metric, value in measured().items():
                    results[row.name][side][metric].append(value)
                print(
                    f"round {number + 1}/{rounds}, {time.monotonic() - began:3.0f} s  {row.name}"
                    f", {side}: "
                    + cell(
                        {metric: values[-1:] for metric, values in results[row.name][side].items()}
                    ),
                    file=sys.stderr,
                    flush=True,
                )
    return results


def too_slow(rows: list[Row], results: Results) -> list[str]:
    """What falls under the least that --quick insists on."""
    return [
        f"{row.name}: {ratio(results[row.name], target):.1f} times the {target.of}, "
        f"at least {target.gate:g} wanted"
        for row in rows
        for target in row.targets
        if target.gate and ratio(results[row.name], target) < target.gate
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a third of everything, one round, "
        "three of skip and delete; exit code 1 only where those are far too slow",
    )
    parser.add_argument("--rounds", type=int, default=0, help="5, or 3 with --quick")
    parser.add_argument("--json", action="store_true", help="every value instead of the table")
    parser.add_argument("--plot", metavar="FILE", help="draw rates, a PNG or SVG")
    parser.add_argument("--only", default="", help="rows by a regular expression")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="another copy of ours, to compare with alone"
    )
    parser.add_argument("--predecessor", default=str(PREDECESSOR), help="its interpreter")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # what was started is ended
    busy: list[float] = []
    before = arguments.before and arguments.before.resolve(strict=True)
    bench = Bench(arguments.quick, before, arguments.predecessor)
    with bench.running():
        pace = bench.own_pace()
        rows = [row for row in bench.rows() if re.search(arguments.only, row.name)]
        results = measure(
            rows, arguments.rounds or (3 if arguments.quick else 5), arguments.quick, busy
        )
    where = f"{machine(busy)}; {pace}"
    if arguments.json:
        print(json.dumps({"machine": where, "rows": results}, indent=1))
    else:
        print(f"{where}\n\n{table(rows, results, bench.others)}\n")
    if not arguments.only and not before:
        print(scaling(results), file=sys.stderr if arguments.json else sys.stdout)
        if arguments.plot:
            plot(results, arguments.plot)
    problems = too_slow(rows, results) if arguments.quick and not before else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
