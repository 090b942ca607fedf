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
import contextlib
import json
import os
import platform
import re
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Callable, NamedTuple

import psutil

from lab import wait_until
from lab.broker import Broker, free_port
from lab.listener import PROGRAM, ListenerProcess, Sections
from lab.notifier import Notifier, port
from lab.role_api import RoleApi

PREDECESSOR = PROGRAM.parent / ".venv-predecessor" / "bin" / "python"
QUEUE, RETRY = "k2hr3_osnl", "k2hr3_osnl.retry"
#: Instance id in the template of a deletion, and what oslo.messaging knows a duplicate by.
TEMPLATE, UNIQUE = b"11111111-2222-4333-8444-555555555555", b"0" * 32
#: Seconds that anything but the measured may take.
PATIENCE = 120.0
Sample = dict[str, float]

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
    number = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        settings = Path(folder, "nginx.conf")
        settings.write_text(NGINX.format(folder=folder, port=number))
        process = subprocess.Popen([program, "-p", folder, "-c", str(settings)])
        try:
            wait_until(Path(folder, "pid").exists, what="nginx")  # it listens by then
            yield f"http://127.0.0.1:{number}/v1/role"
        finally:
            process.terminate()
            process.wait()


class Api(RoleApi):
    """A Role API that takes some time for any number of requests at once."""

    # epoll waits whole milliseconds, which is up to 5 % of 20
    selector = selectors.SelectSelector

    def __init__(self) -> None:
        super().__init__(one_at_a_time=False)
        self.first = 0

    def begin(self, delay: float = 0.0) -> None:
        """Forget what arrived, and take `delay` seconds from now on."""
        self.first, self.delay = len(self.requests), delay

    @property
    def arrived(self) -> int:
        return len(self.requests) - self.first

    def arrivals(self) -> dict[str | None, float]:
        """When the deletion of each instance arrived, monotonic."""
        return {request.cuk: request.begun for request in self.requests[self.first :]}


# What is measured


class Target(NamedTuple):
    """What ours is to be: so many times the figure of `of`, at least of a rate, else at most.

    An absolute figure where there is no `of`; `gate` is what --quick insists on.
    """

    metric: str
    of: str
    bound: float
    gate: float = 0.0


class Row(NamedTuple):
    name: str
    measure: Callable[[str], Sample]  # of a side: "ours", "before", "predecessor", "limit"
    targets: tuple[Target, ...] = ()
    without: str = ""  # the side that has no such figure


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
    def running(self) -> Iterator[None]:
        with (
            Broker() as self.broker,
            Api() as self.api,
            nginx() as self.nginx_url,
            contextlib.closing(self.broker.amqp()) as connection,
        ):
            self.channel = connection.channel()
            self.prepare()
            yield

    def prepare(self) -> None:
        """Declare our queues, and have oslo.messaging make the two bodies."""
        self.channel.exchange_declare("neutron", "topic")
        self.channel.queue_declare(QUEUE)  # as the predecessor does
        self.channel.queue_bind(QUEUE, "neutron", "notifications.info")
        self.channel.queue_declare(RETRY, durable=True)
        payload = port(TEMPLATE.decode(), ["10.0.0.5"])
        with Notifier(self.broker.url()) as neutron:
            neutron.notify_many([("port.update.end", payload), ("port.delete.end", payload)])
        messages = self.broker.messages(QUEUE, take=True)
        self.properties = messages[0].properties
        self.noise, self.deletion = (
            re.sub(rb"(_unique_id\W+)\w{32}", rb"\g<1>" + UNIQUE, message.body)
            for message in messages
        )

    # Parts of rows

    def count(self, whole: int) -> int:
        return int(whole * self.scale)

    def start(self, side: str, api_url: str, **more: object) -> ListenerProcess:
        """A listener, to be started by its context; `more` are options of any section."""
        source: dict[str, object] = {"transport_url": self.broker.url()}
        k2hr3: dict[str, object] = {"api_url": api_url, "timeout_seconds": 10}
        k2hr3["retry_interval_seconds"] = 5
        for name, value in more.items():
            (source if name in ("event_type", "publisher_id") else k2hr3)[name] = value
        sections: Sections = {"oslo_messaging_notifications": source, "k2hr3": k2hr3}
        if side != "predecessor":
            copy = self.before if side == "before" else None
            return ListenerProcess(sections, program=copy or PROGRAM)
        k2hr3.pop("concurrency", None)  # it has none: 64 threads
        # PYTHONPATH would give it our module of the same name
        return ListenerProcess(
            sections,
            python=self.predecessor,
            environment={"PYTHONPATH": ""},
            driver="import k2hr3_osnl; k2hr3_osnl.main()",
        )

    def deletions(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self.deletion.replace(TEMPLATE, str(uuid.uuid4()).encode())

    def mixture(self, count: int) -> Iterator[bytes]:
        """One deletion to 49 others."""
        for _ in range(0, count, 50):
            yield from self.deletions(1)
            yield from repeat(self.noise, 49)

    def fill(self, bodies: Iterable[bytes]) -> None:
        """Put messages into the empty queue."""
        for name in self.broker.queues():
            self.broker.purge(name)
        count = sum(map(self.publish, bodies))
        wait_until(lambda: self.ready(QUEUE) == count, PATIENCE, f"{count} messages")

    def publish(self, body: bytes) -> int:
        unique = body.replace(UNIQUE, uuid.uuid4().hex.encode())
        self.channel.basic_publish("", QUEUE, unique, self.properties)
        return 1

    def ready(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def loop(
        self, loop: str, warm: int, count: int, api_url: str = "", queue: str = QUEUE
    ) -> Sample:
        """One of lab.bench_limits."""
        url = f"amqp://guest:guest@{self.broker.address}/%2F"
        command = [sys.executable, "-m", "lab.bench_limits", loop, url, queue]
        command += [str(warm), str(count), api_url]
        found = json.loads(subprocess.check_output(command, cwd=PROGRAM.parent))
        return {"rate": count / found["seconds"], "cpu": found["cpu"] / count * 1e6}

    # Rows

    def throughput(
        self,
        side: str,
        bodies: Callable[[int], Iterable[bytes]],
        most: tuple[int, int],  # the predecessor's is the second
        loop: str,
        fast_api: bool = True,
        **options: object,
    ) -> Sample:
        """Notifications a second, and CPU microseconds each."""
        count = self.count(most[side == "predecessor"])
        warm = count // 10
        api_url = self.nginx_url if fast_api else self.api.url
        self.fill(bodies(warm + count))
        if side == "limit":
            return self.loop(loop, warm, count, api_url)
        seen: list[tuple[int, float, float]] = []  # messages left, monotonic, seconds of CPU
        with self.start(side, api_url, **options) as listener:
            process, end = psutil.Process(listener.process.pid), time.monotonic() + PATIENCE
            while not seen or seen[-1][0]:
                left, now = self.broker.depth(QUEUE).total, time.monotonic()
                used = process.cpu_times()
                seen.append((left, now, used.user + used.system))
                if now > end:
                    raise AssertionError(f"{left} messages left:\n{listener.log[-3000:]}")
                time.sleep(0.1)
        first = next(each for each in seen if each[0] <= count)
        # the last look came some time after the end
        last = seen[-2] if seen[-2][0] < first[0] else seen[-1]
        done = first[0] - last[0]
        return {"rate": done / (last[1] - first[1]), "cpu": (last[2] - first[2]) / done * 1e6}

    def steady(self, listeners: int, concurrency: int, count: int, side: str) -> Sample:
        """Deletions a second with an API that takes 20 ms, while none is short of work."""
        if side == "limit":
            return {"rate": listeners * concurrency / 0.02}
        count = self.count(3000 if side == "predecessor" else count)
        self.fill(self.deletions(count))
        self.api.begin(0.02)
        with contextlib.ExitStack() as stack:
            for _ in range(listeners):
                stack.enter_context(self.start(side, self.api.url, concurrency=concurrency))
            wait_until(lambda: self.api.arrived >= 0.75 * count, PATIENCE, "deletions")
        times = sorted(self.api.arrivals().values())
        begin, end = int(0.15 * count), int(0.75 * count)
        return {"rate": (end - begin - 1) / (times[end - 1] - times[begin])}

    def latency(self, side: str) -> Sample:
        """Milliseconds from publishing a deletion to its DELETE, at 100 a second."""
        count = self.count(1500)
        sent: dict[str, float] = {}
        self.fill([])
        self.api.begin()
        with contextlib.ExitStack() as stack:
            if side == "limit":
                arguments = ("delete", 0, count, self.api.url)
                looping = threading.Thread(target=self.loop, args=arguments)
                looping.start()
                stack.callback(looping.join)
            else:
                stack.enter_context(self.start(side, self.api.url))
            declare = partial(self.channel.queue_declare, QUEUE, passive=True)
            wait_until(lambda: declare().method.consumer_count, PATIENCE, "a consumer")
            began = time.monotonic()
            for number in range(count):
                time.sleep(max(0.0, began + number / 100 - time.monotonic()))
                cuk = str(uuid.uuid4())
                sent[cuk] = time.monotonic()
                self.publish(self.deletion.replace(TEMPLATE, cuk.encode()))
            wait_until(lambda: self.api.arrived == count, PATIENCE, "deletions")
        arrivals = self.api.arrivals()
        waits = sorted(arrivals[cuk] - sent[cuk] for cuk in list(sent)[count // 10 :])
        return {f"p{part}": waits[len(waits) * part // 100] * 1e3 for part in (50, 99)}

    def start_up(self, side: str) -> Sample:
        """Seconds from starting the process to its first DELETE, and MB of it once idle."""
        self.fill(self.deletions(1))
        self.api.begin()
        began = time.monotonic()
        if side == "limit":
            bare = "import pika, urllib3; print(flush=True); import sys; sys.stdin.read()"
            command = [sys.executable, "-c", bare]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
                assert idle.stdout
                idle.stdout.readline()
                megabytes = psutil.Process(idle.pid).memory_info().rss / 1e6
                return {"seconds": time.monotonic() - began, "idle": megabytes}
        with self.start(side, self.api.url) as process:
            wait_until(lambda: self.api.arrived, PATIENCE, "the first DELETE")
            time.sleep(1)  # what it does after the first one, too
            first = min(self.api.arrivals().values())
            return {"seconds": first - began, "idle": process.rss() / 1e6}

    def backlog(self, side: str) -> Sample:
        """The most MB resident in the first 20 s (quick: 6 s) of a long backlog."""
        self.fill(repeat(self.noise, self.count(200_000)))
        most, end = 0.0, time.monotonic() + (6 if self.quick else 20)
        with self.start(side, self.api.url) as process:
            while time.monotonic() < end and self.broker.depth(QUEUE).total:
                most = max(most, process.rss() / 1e6)
                time.sleep(0.2)
        return {"most": most}

    def moving(self, side: str) -> Sample:
        """Deletions a second that move to the retry queue while the API refuses."""
        count = self.count(5000)
        if side == "limit":
            return self.loop("publish", 0, count, queue=RETRY)
        self.fill(self.deletions(count))
        seen: list[tuple[int, float]] = []
        with self.start(side, f"http://127.0.0.1:{free_port()}/"):
            while not seen or seen[-1][0] < 0.8 * count:
                seen.append((self.ready(RETRY), time.monotonic()))
                time.sleep(0.02)
        (first, began), *_ = [each for each in seen if each[0] > 0.1 * count]
        last, ended = seen[-1]
        return {"rate": (last - first) / (ended - began)}

    def installed(self, side: str) -> Sample:
        """Packages and MB; of ours those it declares, which need no others."""
        python = self.predecessor if side == "predecessor" else sys.executable
        wanted = "" if side == "predecessor" else "pika urllib3"
        found: Sample = json.loads(subprocess.check_output([python, "-c", INSTALLED, wanted]))
        return found

    def rows(self) -> list[Row]:
        """The rows, with what issue 5 asks for."""

        def throughput(bodies: Any, ours: int, predecessor: int, loop: str, **options: Any) -> Any:
            most = (ours, predecessor)
            return partial(self.throughput, bodies=bodies, most=most, loop=loop, **options)

        old, limit = "predecessor", "limit"
        noise = partial(repeat, self.noise)
        all_decoded = {"event_type": ".*", "publisher_id": "^nobody$"}
        skip = throughput(noise, 60_000, 8_000, "skip", fast_api=False)
        decode = throughput(noise, 30_000, 8_000, "decode", fast_api=False, **all_decoded)
        skip_targets = (
            Target("rate", old, 9, 5),
            Target("cpu", old, 0.1),
            Target("rate", limit, 0.75),
        )
        deletes = (
            Target("rate", old, 2.5, 1.5),
            Target("cpu", old, 0.4),
            Target("rate", limit, 0.55),
        )
        rows = [Row("skip", skip, skip_targets), Row("skip, all decoded", decode)]
        for number in (1, 4):
            measure = throughput(self.deletions, 8_000, 3_000, "delete", concurrency=number)
            rows.append(Row(f"delete, concurrency {number}", measure, deletes))
        rows.append(Row("mixed, 1 in 50", throughput(self.mixture, 40_000, 8_000, "mixed")))
        for number, count in ((1, 500), (4, 1500), (16, 4000)):
            name, measure = (
                f"API 20 ms, concurrency {number}",
                partial(self.steady, 1, number, count),
            )
            rows.append(Row(name, measure, (Target("rate", limit, 0.9),)))
        for number in (1, 2, 4):
            measure = partial(self.steady, number, 4, 1500 * number)
            rows.append(Row(f"API 20 ms, listeners {number}", measure))
        start_up = Target("seconds", old, 0.5), Target("idle", "", 38)
        backlog = f"backlog of {self.count(200_000):,}"
        return [
            *rows,
            Row("latency", self.latency, (Target("p99", "", 10),)),
            Row("start to first DELETE", self.start_up, start_up),
            Row(backlog, self.backlog, (Target("most", "", 38),), without=limit),
            Row("to the retry queue", self.moving, without=old),
            *([] if self.before else [Row("installed", self.installed, without=limit)]),
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
Sides = Mapping[str, Mapping[str, list[float]]]
#: row -> side -> metric -> its value in each round
Results = Mapping[str, Sides]


def ratio(sides: Sides, metric: str, of: str) -> float:
    """Ours to the other's, the median of what each round gives; ours itself without another."""
    ours = sides["ours"][metric]
    others = sides[of][metric] if of else [1.0] * len(ours)
    return statistics.median(a / b for a, b in zip(ours, others))


def verdict(sides: Sides, target: Target) -> str:
    """What a target says, and whether it is met."""
    value = ratio(sides, target.metric, target.of)
    at_least = target.metric == "rate"
    is_met = value >= target.bound if at_least else value <= target.bound
    of = f" of {target.of}" if target.of else ""
    wanted = f"{'at least' if at_least else 'at most'} {target.bound:g}{of}"
    return f"{UNITS[target.metric][0]} {wanted}: {'met' if is_met else 'NOT met'}"


def cell(metrics: Mapping[str, list[float]]) -> str:
    """Medians, with the lowest and the highest."""
    parts = []
    for metric, values in metrics.items():
        unit, digits = UNITS[metric]
        figures = (min(values), statistics.median(values), max(values))
        low, middle, high = (f"{value:,.{digits}f}" for value in figures)
        parts.append(f"{middle} {unit}" + (f" ({low} to {high})" if low != high else ""))
    return ", ".join(parts)


def table(rows: list[Row], results: Results, others: Sequence[str]) -> str:
    names = [NAMES.get(side, side) for side in others]
    heads = ["", "ours", *names, *(f"ours / {name}" for name in names), "target"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        sides = results[row.name]
        cells = [row.name, *(cell(sides.get(side, {})) for side in ("ours", *others))]
        for of in others:
            shared = [metric for metric in sides["ours"] if metric in sides.get(of, {})]
            ratios = [f"{ratio(sides, each, of):.2f} {UNITS[each][0]}" for each in shared]
            cells.append(", ".join(ratios))
        targets = row.targets
        if "before" in others:  # nothing may be slower by more than 5 %
            bounds = {metric: 0.95 if metric == "rate" else 1.05 for metric in sides["ours"]}
            targets = tuple(Target(metric, "before", each) for metric, each in bounds.items())
        cells.append("; ".join(verdict(sides, target) for target in targets))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling(results: Results) -> str:
    one, four = (results[f"API 20 ms, listeners {count}"]["ours"]["rate"] for count in (1, 4))
    factor = statistics.median(b / a for a, b in zip(one, four))
    is_met = "met" if factor >= 3.6 else "NOT met"
    return f"Four listeners are {factor:.2f} times one (target at least 3.6: {is_met})."


def plot(results: Results, file: str) -> None:
    """Rate against concurrency and against number of listeners, with the spread."""
    import matplotlib  # type: ignore  # of the lab's environment, for this only

    matplotlib.use("svg" if file.endswith("svg") else "agg")
    from matplotlib import pyplot  # type: ignore

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    lines = (("limit", "concurrency / 20 ms", "k:"), ("ours", "k2hr3_osnl", "o-"))
    for axis, what, counts in zip(axes, ("concurrency", "listeners"), ((1, 4, 16), (1, 2, 4))):
        for side, label, style in lines:
            values = [results[f"API 20 ms, {what} {count}"][side]["rate"] for count in counts]
            middle = [statistics.median(each) for each in values]
            below = [m - min(v) for m, v in zip(middle, values)]
            above = [max(v) - m for m, v in zip(middle, values)]
            axis.errorbar(counts, middle, [below, above], fmt=style, label=label, capsize=3)
        xlabel = what + (" (each with concurrency 4)" if what == "listeners" else "")
        axis.set(xlabel=xlabel, ylabel="deletions/s, API taking 20 ms", xticks=counts, ylim=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def measure(bench: Bench, rows: list[Row], rounds: int, busy: list[float]) -> Results:
    """All rows in each round; `busy` takes the CPU that others use before it, percent.

    In a quick comparison with others only the rows that can fail it have more than one round.
    """
    results: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number in range(rounds):
        busy.append(psutil.cpu_percent(2.0))
        for row in rows:
            gated = bench.before or any(target.gate for target in row.targets)
            if bench.quick and number and not gated:
                continue
            sides = [side for side in ("ours", *bench.others) if side != row.without]
            if bench.before and number % 2:
                sides.reverse()  # none of two copies meets what the row before left each time
            for side in sides:
                began = time.monotonic()
                sample = row.measure(side)
                for metric, value in sample.items():
                    results[row.name][side][metric].append(value)
                figures = cell({metric: [value] for metric, value in sample.items()})
                took = f"round {number + 1}/{rounds}, {time.monotonic() - began:3.0f} s"
                print(f"{took}  {row.name}, {side}: {figures}", file=sys.stderr, flush=True)
    return results  # type: ignore[no-any-return]


def too_slow(rows: list[Row], results: Results) -> list[str]:
    """What falls under the least that --quick insists on."""
    found = []
    for row in rows:
        for target in row.targets:
            value = ratio(results[row.name], target.metric, target.of) if target.gate else 0
            if value < target.gate:
                found.append(f"{row.name}: {value:.1f} times the {target.of}, not {target.gate:g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab.bench", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a third of everything; can fail; see .ci/run")
    add("--rounds", type=int, default=0, help="5, or 3 with --quick")
    add("--json", action="store_true", help="every value instead of the table")
    add("--plot", metavar="FILE", help="draw rates, a PNG or SVG")
    add("--only", metavar="ROWS", default="", help="rows by a regular expression")
    add("--before", type=Path, metavar="FILE", help="another copy of ours, to compare with alone")
    add("--predecessor", default=str(PREDECESSOR), help="its interpreter")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # what was started is ended
    before = options.before and options.before.resolve(strict=True)
    bench = Bench(options.quick, before, options.predecessor)
    busy: list[float] = []
    with bench.running():
        rows = [row for row in bench.rows() if re.search(options.only, row.name)]
        rounds = options.rounds or (3 if options.quick else 5)
        results = measure(bench, rows, rounds, busy)
    where = (
        f"{psutil.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, "
        f"{min(busy):.0f} to {max(busy):.0f} % of them used by others before each round"
    )
    if options.json:
        print(json.dumps({"machine": where, "rows": results}, indent=1))
    else:
        print(f"{where}\n\n{table(rows, results, bench.others)}\n")
    if not options.only and not before:
        print(scaling(results), file=sys.stderr if options.json else sys.stdout)
        if options.plot:
            plot(results, options.plot)
    problems = too_slow(rows, results) if options.quick and not before else []
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
