"""Tests of metrics_file and of the alert rules: real Prometheus, node_exporter and RabbitMQ."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from k2hr3_osnl import __version__
from lab import wait_until
from lab.broker import Broker, free_port
from lab.listener import PROGRAM, ListenerProcess, Sections, settings, write_settings
from lab.notifier import port
from lab.proxy import Proxy
from lab.role_api import Fault, Hang, Kept, RoleApi, Status

CONTRIB = PROGRAM.parent / "contrib"
RULES = ("prometheus-alerts.yml", "prometheus-alerts-drain.yml")
POOL, RETRY, DEAD = "k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter"
#: The health check of a container.
HEALTH = 'find "$OS_DEFAULT__METRICS_FILE" -mmin -2 | grep -q .'
BUILD = f'build_info{{version="{__version__}"}}'
Alerts = set[tuple[str, str]]  # name without K2hr3Osnl, and job


@pytest.fixture
def broker(broker: Broker) -> Broker:
    """The emptied RabbitMQ, with Neutron's exchange."""
    add_exchange(broker)
    return broker


def add_exchange(broker: Broker) -> None:
    """Make Neutron's exchange."""
    with closing(broker.amqp()) as connection:
        connection.channel().exchange_declare("neutron", "topic", durable=True)


def with_file(file: Path, url: str, api: RoleApi, pool: str = POOL, **k2hr3: object) -> Sections:
    """Settings with a metrics_file."""
    sections = settings(url, api.url, **k2hr3)
    sections["DEFAULT"]["metrics_file"] = file
    sections["oslo_messaging_notifications"]["pool"] = pool
    return sections


def notification(cuk: str, event_type: str = "port.delete.end") -> bytes:
    """Neutron's notification about a port."""
    message = {"publisher_id": "network.host1", "event_type": event_type, "priority": "INFO"}
    return json.dumps({**message, "payload": port(cuk, ["10.0.0.5"])}).encode()


def cuks(count: int) -> list[str]:
    """Fresh instance ids."""
    return [str(uuid.uuid4()) for _ in range(count)]


def fill(broker: Broker, queue: str, instances: Iterable[str]) -> None:
    """Put the notification of a deleted port into a queue for each instance."""
    broker.publish_many(map(notification, instances), "", queue)


def samples(file: Path) -> dict[str, float]:
    """The samples of a metrics_file, without the prefix of their names."""
    found = re.findall(r"^k2hr3_osnl_(\S+) (\S+)$", file.read_text(), re.M)
    return {name: float(value) for name, value in found}


def drain(file: Path, broker: Broker, api: RoleApi, pool: str = POOL) -> int:
    """Run the command drain; return its exit code."""
    ini = write_settings(file.parent / "ini", with_file(file, broker.url(), api, pool))
    command = [sys.executable, str(PROGRAM), "-c", str(ini), "drain"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode


# The file


def test_metrics_file_says_what_the_log_says_to_everybody(
    broker: Broker, api: RoleApi, tmp_path: Path
) -> None:
    file = tmp_path / "k2hr3_osnl.prom"
    good, refused = cuks(2)
    api.refused_cuks = {refused}
    umask = os.umask(0o077)
    with ListenerProcess(with_file(file, broker.url(), api)) as listener:
        os.umask(umask)
        # Given a file that is there at once, all zero
        first = wait_until(lambda: samples(file), what="the file")
        assert {name for name, value in first.items() if value} == {BUILD}
        # When something of each kind happens, and it stops
        broker.wait_for_depth(POOL, 0)
        fill(broker, POOL, [good, refused])
        broker.publish_many([b"{", notification(good, "port.create.end")], "", POOL)
        listener.wait_for_log("not deleted ")
        broker.wait_for_depth(DEAD, 1)
        broker.wait_for_depth(POOL, 0)
        assert listener.stop() == 0
        log = dict(re.findall(r"(\w+)=(\d+)", listener.log.partition("stopped: ")[2]))
    # Then the last file is that of the stop
    last = samples(file)
    assert abs(last["last_success_timestamp_seconds"] - file.stat().st_mtime) < 60
    assert last[f'queue_ready_messages{{queue="{RETRY}"}}'] == 0  # at the last look
    assert last.pop("vanished_retries_total") == float(log.pop("vanished"))
    counted = {name: value for name, value in last.items() if "_total" in name}
    assert {name.split('"')[1]: f"{value:.0f}" for name, value in counted.items()} == log
    assert [log[name] for name in ("deleted", "succeeded", "ignored", "dead_letters")] == ["1"] * 4
    assert int(log["retried"]) > 0 < int(log["failed"])
    assert file.stat().st_mode & 0o777 == 0o644
    assert [*file.parent.iterdir()] == [file]
    promtool = ["promtool", "check", "metrics"]
    done = subprocess.run(promtool, input=file.read_bytes(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_metrics_file_that_cannot_be_written_is_one_warning_and_its_age_is_the_health(
    broker: Broker, api: RoleApi, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "k2hr3_osnl.prom"

    def is_healthy() -> bool:
        environment = {**os.environ, "OS_DEFAULT__METRICS_FILE": str(file)}
        return subprocess.run(["/bin/sh", "-c", HEALTH], env=environment).returncode == 0

    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(broker.port))
        sections = with_file(file, broker.url(hosts=[f"127.0.0.1:{proxy.port}"]), api)
        listener = stack.enter_context(ListenerProcess(sections))
        # Given a folder that is missing: the listener does its work
        listener.wait_for_log("WARNING metrics_file .*No such file or directory")
        broker.wait_for_depth(POOL, 0)
        fill(broker, POOL, instances := cuks(3))
        wait_until(lambda: api.deleted == {*instances})
        assert not is_healthy()
        # When it can be written, also while the broker is away, then it is
        proxy.stop()
        listener.wait_for_log("connecting again")
        file.parent.mkdir()
        listener.wait_for_log("INFO metrics_file .* is written again", 25)
        assert listener.log.count(" WARNING metrics_file ") == 1
        assert samples(file)['deliveries_total{verdict="deleted"}'] == 3
        # And when the process is stuck, then the file gets old, until it goes on
        listener.process.send_signal(signal.SIGSTOP)
        now = file.stat().st_mtime
        for age, expected in ((0, True), (100, True), (125, False)):  # seconds
            os.utime(file, (now, now - age))
            assert is_healthy() is expected
        listener.process.send_signal(signal.SIGCONT)
        wait_until(is_healthy, 25)


def test_a_drain_that_took_all_writes_the_file(
    broker: Broker, api: RoleApi, tmp_path: Path
) -> None:
    file = tmp_path / "k2hr3_osnl.prom"
    broker.delete_exchange("neutron")
    assert drain(file, broker, api) == os.EX_TEMPFAIL
    assert not file.exists()
    add_exchange(broker)
    fill(broker, POOL, cuks(2))
    assert drain(file, broker, api) == 0
    assert samples(file)['deliveries_total{verdict="deleted"}'] == 2


# The alert rules


@pytest.mark.parametrize(
    "arguments", [("check", "rules", *RULES), ("test", "rules", "prometheus-alerts-test.yml")]
)
def test_promtool_is_content_with_the_alerts(arguments: Iterable[str]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=CONTRIB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def scaled(rules: str) -> str:
    """Rules in which all that lasts minutes lasts seconds; the age of a listener's file: 30."""
    rules = re.sub(r"\b(\d+)m\b", r"\1s", rules).replace("[1h]", "[1m]").replace("> 120", "> 30")
    return rules.replace("> 900", "> 15").replace("> 1800", "> 30")


@contextmanager
def started(*command: object, folder: Path) -> Iterator[None]:
    """A process that runs meanwhile."""
    process = subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def prometheus(folder: Path, *jobs: dict[str, Any]) -> Iterator[Callable[[], Alerts]]:
    """A Prometheus with our rules, scaled; returns what fires, when asked."""
    for rules in RULES:
        (folder / rules).write_text(scaled((CONTRIB / rules).read_text()))
    pace = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": pace, "rule_files": RULES, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")

    def firing() -> Alerts:
        with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
            connection.request("GET", "/api/v1/rules")
            groups = json.loads(connection.getresponse().read())["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        found = [(rule, alert) for rule in rules for alert in rule["alerts"]]
        return {
            (rule["name"][len("K2hr3Osnl") :], alert["labels"].get("job", "absent"))
            for rule, alert in found
            if alert["state"] == "firing"
        }

    with started("prometheus", *options, f"--web.listen-address={address}", folder=folder):
        wait_until(firing, 60, "an alert on figures that are missing")
        yield firing


def target(name: str, port: int, path: str = "/metrics", **options: Any) -> dict[str, Any]:
    """A job that scrapes one port."""
    there = [{"targets": [f"127.0.0.1:{port}"]}]
    return {"job_name": name, "static_configs": there, "metrics_path": path, **options}


#: What is wrong with K2HR3, and the alerts that follow, by the pool of a listener.
LISTENERS: dict[str, tuple[Fault | None, set[str]]] = {
    "well": (None, set()),
    "stopped": (None, {"Stuck"}),
    "hanging": (Hang(), {"Waits"}),
    "down": (Status(503), {"BreakerOpen", "NoSuccess", "Vanished"}),
    "refusing": (None, {"NoSuccess"}),
    "doubtful": (Kept(403), {"Letters"}),
}
#: The alerts by the pool of a drain: one that runs again and again, and one that ran once.
DRAINS = {"often": set[str](), "once": {"DrainLate", "DrainRetries", "DrainLetters"}}
#: The alerts by two ways to have the broker's figures.
BROKERS = {way: {"NoConsumer", "QueueGrows", "Retries", "DeadLetters"} for way in ("all", "few")}
EXPECTED = {**{name: alerts for name, (_, alerts) in LISTENERS.items()}, **DRAINS, **BROKERS}


@pytest.mark.timeout(300)
def test_each_alert_is_raised_by_its_trouble_only(broker: Broker, tmp_path: Path) -> None:
    families = {"family": ["queue_coarse_metrics", "queue_consumer_count"]}
    jobs = [
        target("all", broker.prometheus_port, "/metrics/per-object"),
        target("few", broker.prometheus_port, "/metrics/detailed", params=families),
    ]
    files = {name: tmp_path / name / "log/k2hr3_osnl.prom" for name in (*LISTENERS, *DRAINS)}
    seen: dict[str, set[str]] = {name: set() for name in EXPECTED}
    with ExitStack() as stack:
        # Given all that is needed, and a queue that is consumed
        channel = stack.enter_context(closing(broker.amqp())).channel()
        for queue in (POOL, RETRY, DEAD):
            channel.queue_declare(queue, durable=True)
        tag = channel.basic_consume(POOL, lambda *_: None)
        apis = {name: stack.enter_context(RoleApi()) for name in files}
        for name, file in files.items():
            file.parent.mkdir(parents=True)
            collected = file.parents[1]  # our user may not write there, so it has a link
            (collected / file.name).symlink_to(file)
            jobs.append(target(name, at := free_port()))
            exporter = ("prometheus-node-exporter", "--collector.disable-defaults")
            textfile = ("--collector.textfile", "--collector.textfile.directory=.")
            address = f"--web.listen-address=127.0.0.1:{at}"
            stack.enter_context(started(*exporter, *textfile, address, folder=collected))
        firing = stack.enter_context(prometheus(tmp_path, *jobs))
        listeners = {}
        for name in LISTENERS:
            sections = with_file(files[name], broker.url(), apis[name], name, timeout_seconds=300)
            listeners[name] = stack.enter_context(ListenerProcess(sections))
        for name in listeners:
            broker.wait_for_depth(name, 0, timeout=60)
        wait_until(lambda: {job for _, job in firing()} <= {"absent"}, 30)
        # When each listener meets with its trouble
        for name, (fault, _) in LISTENERS.items():
            instances = cuks(3)
            apis[name].fault = fault
            apis[name].register(instances[0], "10.0.0.5")
            apis[name].refused_cuks = set(instances) if name == "refusing" else set()
            fill(broker, name, instances)
        listeners["stopped"].process.send_signal(signal.SIGSTOP)
        listeners["down"].wait_for_log("K2HR3 is in trouble", 30)
        broker.wait_for_depth("down.retry", 3, timeout=30)
        broker.purge("down.retry")
        # and a drain, and the queues
        drain(files["once"], broker, apis["once"], "once")  # makes its queues
        apis["once"].refused_cuks = set(instances)
        channel.basic_cancel(tag)
        for queue in ("once", "once.dead_letter", RETRY, DEAD):
            fill(broker, queue, instances)
        drain(files["once"], broker, apis["once"], "once")

        def has_seen_all() -> bool:
            fill(broker, POOL, instances)
            drain(files["often"], broker, apis["often"], "often")
            for alert, job in firing():
                if job in seen and alert.startswith("Drain") == (job in DRAINS):
                    seen[job].add(alert)
            return all(seen[name] >= EXPECTED[name] for name in seen)

        # Then each alert is raised, and no other
        with suppress(AssertionError):  # the next line tells more
            wait_until(has_seen_all, 120)
        assert seen == EXPECTED
