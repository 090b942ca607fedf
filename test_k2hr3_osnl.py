"""Tests of k2hr3_osnl.py, as a page of what it does; the broker and the publishers are real."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import email.utils
import importlib
import itertools
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.parse
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import fields, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import oslo_log._options
import oslo_messaging
import oslo_messaging.opts
import pika
import psutil
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from oslo_config import cfg
from oslo_messaging._drivers import amqp as oslo_amqp
from oslo_messaging._drivers import impl_rabbit
from oslo_messaging._drivers.common import ConfigOptsProxy
from pika.exceptions import ChannelClosedByBroker

import k2hr3_osnl
from k2hr3_osnl import (
    OPTIONS,
    Attempted,
    Breaker,
    Config,
    ConfigError,
    Deletion,
    Endpoint,
    MalformedNotification,
    Notification,
    RoleApiError,
    Source,
    accepts,
    decode,
    parse_transport_url,
    quick_event_type,
)
from lab import wait_until
from lab.broker import Broker, Depth, Message, free_port
from lab.certificates import Certificates, Pair
from lab.listener import PROGRAM, ListenerProcess, NotifySocket, settings, write_settings
from lab.notifier import (
    Notifier,
    compute_instance,
    enveloped,
    instance,
    noise,
    notification,
    notified,
    port,
)
from lab.odd import ODD_HEADERS
from lab.proxy import Proxy
from lab.role_api import (
    CloseKeptAlive,
    Drip,
    Fault,
    Hang,
    Interim,
    Kept,
    Odd,
    Request,
    Reset,
    RoleApi,
    Slow,
    Status,
)
from lab.spelling import JSON_VALUES, RULES, OsloEndpoint, bodies, dispatch, nearly, thorough

# --- Real parts --------------------------------------------------------------------------------

POOL, RETRY, DEAD = QUEUES = ("k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter")
NOTIFICATIONS, RABBIT = "oslo_messaging_notifications", "oslo_messaging_rabbit"
CUK = "0f8e6f1c-7a4b-4d6e-9c1d-2a3b4c5d6e7f"
ADDRESS = "10.0.0.5"
#: A broker that is not there.
NOBODY = "rabbit://a:b@127.0.0.1:1/"
#: Arguments of a quorum queue of ours: by default RabbitMQ 4 drops what came back 20 times.
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000}
#: Seconds that a busy machine may add to a deadline of the contract.
SLACK = 1.0


@pytest.fixture
def neutron(broker: Broker) -> Callable[..., None]:
    """Publishes what Neutron says when a port of each of these instances is deleted; the exchange
    and the pool are there."""
    declare_neutron(broker)
    return partial(delete_ports, broker)


def cuks(count: int) -> list[str]:
    """Fresh instance ids."""
    return [str(uuid.uuid4()) for _ in range(count)]


# The program


Sections = dict[str, dict[str, object]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """Runs the program to its end, with the exit code expected and without a traceback."""

    def run(
        sections: Sections | None,
        *arguments: object,
        code: int = 0,
        given: str | bytes = "",
        environment: Mapping[str, str] | None = None,
        debug: bool = False,
        before: Sequence[object] = (sys.executable, PROGRAM),
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run it with these settings, if any, in a file; `before` begins the command line."""
        file = tmp_path / "k2hr3_osnl.ini"
        with_file = [] if sections is None else ["-c", write_settings(file, sections)]
        usual: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(
            [str(word) for word in (*before, *with_file, *arguments)],
            input=given.encode() if isinstance(given, str) else given,
            env={**os.environ, **(environment or {})},
            **{"cwd": tmp_path, "timeout": 60, **usual, **options},
        )
        output, errors = (
            (text or b"").decode(errors="replace") for text in (done.stdout, done.stderr)
        )
        if not debug:  # where pika logs them
            assert "Traceback" not in output + errors, errors
        assert done.returncode == code, output + errors
        return subprocess.CompletedProcess(done.args, done.returncode, output, errors)

    return run


def quick(url: str, api: RoleApi, **k2hr3: object) -> dict[str, dict[str, object]]:
    """The usual set-up, which tries to connect each second."""
    sections = settings(url, api.url, **k2hr3)
    sections[RABBIT]["rabbit_interval_max"] = 1
    return sections


def listening(
    sections: Mapping[str, Mapping[str, object]], change: str = "", **options: Any
) -> ListenerProcess:
    """The listener, with a change of the module before it starts, say a shorter pause."""
    program = f"import os, sys, k2hr3_osnl\n{change}\nsys.exit(k2hr3_osnl.main(sys.argv[1:]))"
    return ListenerProcess(sections, driver=program if change else "", **options)


#: The listener's own clock runs ten times as fast, so that 30 s are 3 s.
HURRIED = """
import functools, time, types
clock = types.SimpleNamespace(time=time.time, sleep=time.sleep)
clock.monotonic = lambda: 10 * time.monotonic()
k2hr3_osnl.Listener = functools.partial(k2hr3_osnl.Listener, clock=clock)
k2hr3_osnl.Drain = functools.partial(k2hr3_osnl.Drain, clock=clock)
"""


@contextlib.contextmanager
def embedded(
    folder: Path, sections: Sections, endpoint: Endpoint, seconds: float = 10
) -> Iterator[k2hr3_osnl.Listener]:
    """A listener as a library, in a thread; it stops at the end, within so many seconds."""
    config = Config.load(str(write_settings(folder / "ini", sections)), environ={})
    listener = k2hr3_osnl.Listener(config, endpoint)
    thread = threading.Thread(target=listener.run, daemon=True)
    thread.start()
    yield listener
    listener.stop()
    thread.join(seconds)
    assert not thread.is_alive()


def troubles(log: str) -> list[str]:
    """The lines of a log that report a trouble, whoever logged them; no traceback is allowed."""
    assert "Traceback" not in log, log
    return re.findall(r"^.* (?:WARNING|ERROR|CRITICAL) .*$", log, re.M)


# Messages


def publish(
    broker: Broker, *bodies: bytes, exchange: str = "neutron", key: str = "notifications.info"
) -> None:
    """Publish as a service does, as soon as a queue takes it."""

    def published() -> bool:
        broker.publish_many(bodies, exchange, key)
        return True

    wait_until(published, 20, f"a queue bound to {exchange}")


def delete_ports(broker: Broker, *instances: str) -> None:
    """Publish what Neutron says when a port of each of these instances is deleted."""
    publish(broker, *map(notified, instances))


def fill(broker: Broker, into: str, instances: Iterable[str], **headers: Any) -> None:
    """Put a deletion for each instance into a queue, with our headers `x-k2hr3-…`."""
    named: Any = {f"x-k2hr3-{name.replace('_', '-')}": value for name, value in headers.items()}
    broker.publish_many(
        [notified(cuk) for cuk in instances],
        "",
        into,
        pika.BasicProperties(delivery_mode=2, headers=named),
    )


def headers(message: Message) -> dict[str, Any]:
    """The headers of a message that was read."""
    return dict(message.properties.headers or {})


# Queues and requests


def declare(
    broker: Broker,
    queue: str,
    arguments: dict[str, Any] | None = None,
    bound_to: tuple[str, str] | None = None,
) -> None:
    """Make a durable queue, as an operator or an earlier run did."""
    with closing(broker.amqp()) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments=arguments)
        if bound_to:
            channel.queue_bind(queue, *bound_to)


def declare_neutron(broker: Broker, queue_type: str = "classic") -> None:
    """Make what services and an earlier listener leave: the exchange, and the pool bound to it."""
    with closing(broker.amqp()) as connection:
        connection.channel().exchange_declare("neutron", "topic", durable=True)
    declare(broker, POOL, {"x-queue-type": queue_type}, ("neutron", "notifications.info"))


def wait_for_binding(broker: Broker, pool: str) -> None:
    """Wait until a listener has bound its pool queue."""
    wait_until(lambda: broker.bindings(pool), 20, f"{pool} to be bound")


def total(broker: Broker, *queues: str) -> int:
    """Messages in some queues, held ones included."""
    found = broker.queues()
    return sum(found[queue].total for queue in queues if queue in found)


def instances_in(broker: Broker, *queues: str) -> list[str]:
    """The instances whose deletions are ready in some queues, in their order."""
    there = broker.queues()
    found = [
        re.search(rb"device_id\W+([0-9a-f-]{36})", message.body)
        for queue in queues
        if queue in there
        for message in broker.messages(queue)
    ]
    return [match[1].decode() for match in found if match]


def consumed(broker: Broker, queue: str = POOL) -> bool:
    """Whether a queue has a consumer, asked by AMQP: the management API takes seconds to know."""
    with closing(broker.amqp()) as connection:
        return connection.channel().queue_declare(queue, passive=True).method.consumer_count > 0


def asked(api: RoleApi, instances: Iterable[str]) -> list[str]:
    """The instances of the requests so far, each as often as it was asked for, without probes."""
    wanted = set(instances)
    return sorted(request.cuk for request in api.requests if request.cuk in wanted)


def query(request: Request) -> dict[str, Any]:
    """The query of a DELETE, each parameter of which is there once; `host` is read as JSON."""
    assert request.method == "DELETE"
    pairs = parse_qsl(urlsplit(request.target).query, keep_blank_values=True, strict_parsing=True)
    found: dict[str, Any] = dict(pairs)
    assert len(found) == len(pairs)
    if "host" in found:
        found["host"] = json.loads(found["host"])
    return found


def all_done(broker: Broker, api: RoleApi, expected: Iterable[str], timeout: float = 30) -> None:
    """Wait until all instances are deleted, and nothing is left in any queue."""
    wait_until(lambda: set(expected) <= api.deleted, timeout, "all deletions")
    wait_until(lambda: total(broker, *QUEUES) == 0, 15, "empty queues")


# --- Settings ----------------------------------------------------------------------------------

SECRET = "s3cret"
LEVEL = partial(cfg.StrOpt, choices=["debug", "info", "warn", "error", "notset"])
NUMBERS = ("timeout_seconds", "max_retries", "retry_interval_seconds")
#: The predecessor's options, as it registers them with oslo.config.
PREDECESSOR: dict[str, dict[str, Any]] = {
    "DEFAULT": {"log_file": cfg.StrOpt, "debug_level": LEVEL, "libs_debug_level": LEVEL},
    NOTIFICATIONS: {
        **dict.fromkeys(("event_type", "publisher_id", "transport_url"), cfg.StrOpt),
        **dict.fromkeys(("topic", "exchange", "executor", "pool"), cfg.StrOpt),
        **dict.fromkeys(("context", "metadata", "payload"), cfg.DictOpt),
        "allow_requeue": cfg.BoolOpt,
    },
    "k2hr3": {
        "api_url": cfg.StrOpt,
        **dict.fromkeys(NUMBERS, cfg.IntOpt),
        "allow_self_signed_cert": cfg.BoolOpt,
        "requeue_on_error": cfg.BoolOpt,
    },
}
#: A settings file of the predecessor with all its options, for each service that it can hear.
SAMPLES = [
    rf"""
[DEFAULT]
log_file = sys.stderr
debug_level = error
libs_debug_level = warn

[oslo_messaging_notifications]
event_type = {event_type}
publisher_id = {publisher_id}
transport_url = rabbit://guest:guest@127.0.0.1:5672/
topic = {topic}
exchange = {exchange}
executor = threading
pool = k2hr3_osnl
allow_requeue = True

[k2hr3]
api_url = https://localhost/v1/role
timeout_seconds = 30
max_retries = 3
retry_interval_seconds = 60
allow_self_signed_cert = False
requeue_on_error = False
"""
    for exchange, topic, publisher_id, event_type in (
        ("neutron", "notifications", "^network.*$", r"^port\.delete\.end$"),
        ("nova", "versioned_notifications", "^nova-compute:.*$", r"^instance\.delete\.end$"),
        ("nova", "notifications", "^compute.*$", r"^compute\.instance\.delete\.end$"),
    )
]
#: Section -> lines; also how the predecessor's own tests write their settings.
SAME = {
    "DEFAULT": [
        "log_file = a\nlog_file = b",
        "log_file: colon",
        "log_file  :no spaces after it",
        "log_file  =   spaces around   ",
        'log_file = "double"',
        "log_file = 'single'",
        "log_file = \"mixed'",
        'log_file = " in "',
        "log_file = '",
        "log_file = 50%",
        "log_file = %(topic)s",
        "log_file = a$$b",
        r"log_file = a\$b",
        r"log_file = $\$$\$$$",
        "log_file = a # b",
        "log_file = a ; b",
        "# log_file = a\nlog_file = b\n; log_file = c",
        "log_file = a=b:c",
        "log_file = bücher",
        "log_file = a\n  b\n\nlibs_debug_level = error",
        "log_file = a\n\t= b\n# c = d\n;\nlibs_debug_level = error",
        "topic = of another section\nconcurrency = 2\nssl = true",
    ],
    NOTIFICATIONS: [
        "payload = tenant_id:^a$",
        "payload = tenant_id:^a$,roles:private",
        "context = tenant_id : ^a$ , roles : b",
        "metadata =",
        "payload = url:http://x",
        "payload = a:,b:",
        "context = user_id:^1$\nmetadata = timestamp:^2018\npayload = port:.*\nallow_requeue = no",
        "publisher_id =",
        r"event_type = ^port\.delete\.end\$",
        "executor = eventlet\npool =",
    ],
    "OSLO_messaging_Notifications": ["topic = mixed\nexchange = case", "context = a:b\ncontext ="],
    f"{NOTIFICATIONS.upper()}]\ncontext = \n[{NOTIFICATIONS}": [
        f"context = a:b\n[{NOTIFICATIONS.upper()}]\ncontext = ",
    ],
    "k2hr3": [
        "timeout_seconds = +7\nmax_retries = 0\nretry_interval_seconds = 1_0",
        "allow_self_signed_cert = On\nrequeue_on_error = 1",
        "api_url = http://127.0.0.1:18080/v1/role",
    ],
    "K2HR3": ["max_retries = 1"],
    "k2hr3]\nmax_retries = 1\n[K2HR3": ["max_retries = 2"],
}
#: What is meant to be read in another way: section, line, our value or error, and why.
OTHERWISE = [
    ("default", "log_file = a", "a", "[DEFAULT] without regard to case, too"),
    ("DEFAULT", "Log_File = a", "a", "option names as well"),
    ("DEFAULT", "  log_file = a", "a", "white space before an option"),
    ("DEFAULT", "log_file = $debug_level", "$debug_level", "it took the other option's value"),
    ("DEFAULT", "log_file = a$b", "a$b", "it did not start"),
    ("DEFAULT", "log_file = /no/such/folder", ConfigError, "it did not start, a little later"),
    ("DEFAULT", "debug_level = critical", "critical", "as on its command line"),
    (NOTIFICATIONS, "event_type = (", ConfigError, "it failed at each message"),
    (NOTIFICATIONS, "topic =", ConfigError, "it heard nothing"),
    (NOTIFICATIONS, "payload = a:b,", {"a": "b"}, "a comma at the end does no harm"),
    (NOTIFICATIONS, "payload = x,a:b", ConfigError, "its key was 'x,a', which nothing has"),
    (NOTIFICATIONS, "transport_url =", Source.transport_url, "it used oslo.messaging's default"),
    ("k2hr3", "timeout_seconds = 0", 1, "the nearest usable"),
    ("k2hr3", "timeout_seconds = 601", 600, "the nearest usable"),
    ("k2hr3", "retry_interval_seconds = -5", 1, "the nearest usable"),
    ("k2hr3", "max_retries = -1", 0, "the nearest usable"),
    ("k2hr3", "timeout_seconds =", ConfigError, "it waited for ever"),
    ("k2hr3", "api_url = https//localhost/v1/role", ConfigError, "it made no deletion"),
]
#: Files that both refuse.
REFUSED = [
    "log_file = a",
    "[DEFAULT]\nlog_file",
    "[DEFAULT]\ndebug_level = loud",
    f"[{NOTIFICATIONS}]\npayload = a",
    f"[{NOTIFICATIONS}]\npayload = a:b,a:c",
    f"[{NOTIFICATIONS}]\npayload = a:b,c",
    f"[{NOTIFICATIONS}]\npayload = :b",
    "[k2hr3]\ntimeout_seconds = 1e2",
    "[k2hr3]\nallow_self_signed_cert = Falsch",
]


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    """The settings that a file with this text, and these environment variables, lead to."""
    file = tmp_path / "k2hr3_osnl.ini"
    file.touch(mode=0o600)
    file.write_text(text)
    return Config.load(str(file), environ=environ)


def one_line(text: str) -> str:
    """What was printed, which must be one line."""
    line, rest = text.split("\n", 1)
    assert rest == ""
    return line


def ours(config: Config) -> dict[tuple[str, str], Any]:
    """The predecessor's options as we read them: expressions as texts, rules as a dictionary."""
    sections: dict[str, Any] = {"DEFAULT": config.default, "k2hr3": config.k2hr3}
    sections[NOTIFICATIONS] = config.sources[0]
    found = {}
    for section, options in sections.items():
        for name in PREDECESSOR[section].keys() & {field.name for field in fields(options)}:
            value = getattr(options, name)
            if isinstance(value, tuple):
                value = {key: regex.pattern for key, regex in value}
            if isinstance(value, re.Pattern):
                value = value.pattern
            found[section, name] = "" if value is None else value
    return found


def theirs(file: Path) -> dict[tuple[str, str], Any]:
    """The same as oslo.config reads them for the predecessor, on top of our defaults.

    Raises: cfg.Error or ValueError: it refuses the file.
    """
    conf = cfg.ConfigOpts()
    for section, options in PREDECESSOR.items():
        for name, make in options.items():
            conf.register_opt(make(name), None if section == "DEFAULT" else section)
    conf([], project="test", default_config_files=[str(file)])
    found = ours(Config())
    for section, name in found:
        value = conf[name] if section == "DEFAULT" else conf[section][name]
        if value is not None:  # None: the file does not give it
            found[section, name] = value
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        *SAMPLES,
        *(
            f"[{section}]\n{lines}\n[other]\nlog_file = x\n"
            for section, texts in SAME.items()
            for lines in texts
        ),
    ],
)
def test_a_file_of_the_predecessor_works_unchanged(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    assert ours(config) == theirs(tmp_path / "k2hr3_osnl.ini")
    assert [line for line in config.warnings if "allow_self_signed_cert" not in line] == []


PARTS = st.sampled_from([(section, text) for section, texts in SAME.items() for text in texts])


@pytest.mark.slow
@thorough(30)
@given(parts=st.lists(PARTS, min_size=2, max_size=6))
def test_parts_of_such_files_in_any_order_are_read_as_oslo_config_reads_them(
    tmp_path: Path, parts: list[tuple[str, str]]
) -> None:
    config = load(tmp_path, "".join(f"[{section}]\n{text}\n" for section, text in parts))
    assert ours(config) == theirs(tmp_path / "k2hr3_osnl.ini")


@pytest.mark.parametrize(("section", "line", "value", "why"), OTHERWISE)
def test_what_is_read_unlike_the_predecessor_has_a_reason(
    tmp_path: Path, section: str, line: str, value: object, why: str
) -> None:
    key = (section.replace("default", "DEFAULT"), line.partition("=")[0].strip().lower())

    def read(by: Callable[[], Mapping[tuple[str, str], object]]) -> object:
        try:
            return by()[key]
        except (ConfigError, cfg.Error, ValueError):
            return ConfigError

    mine = read(lambda: ours(load(tmp_path, f"[{section}]\n{line}\n")))
    assert mine == value, why
    assert mine != read(lambda: theirs(tmp_path / "k2hr3_osnl.ini"))


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_that_the_predecessor_refused_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, text)
    with pytest.raises((cfg.Error, ValueError)):
        theirs(tmp_path / "k2hr3_osnl.ini")


def test_later_files_win_and_the_environment_wins_over_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ini", tmp_path / "second.ini"
    first.write_text("[k2hr3]\nconcurrency = 2\ntimeout_seconds = 2\nmax_retries = 2\n")
    second.write_text("[K2HR3]\ntimeout_seconds = 3\nretries = 3\n")
    k2hr3 = Config.load(str(first), str(second), environ={"OS_K2HR3__MAX_RETRIES": "4"}).k2hr3
    assert (k2hr3.concurrency, k2hr3.timeout_seconds, k2hr3.max_retries) == (2, 3, 4)


def test_the_environment_reaches_every_section(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"[{NOTIFICATIONS}:own]\n",
        OS_DEFAULT__DEBUG_LEVEL="error",
        OS_OSLO_MESSAGING_RABBIT__HEARTBEAT_TIMEOUT_THRESHOLD="7",
        OS_OSLO_MESSAGING_NOTIFICATIONS__EXCHANGE="other",
        **{"OS_OSLO_MESSAGING_NOTIFICATIONS:OWN__TOPIC": "versioned_notifications"},
    )
    assert config.default.debug_level == "error"
    assert config.rabbit.heartbeat_timeout_threshold == 7
    assert [(source.exchange, source.topic) for source in config.sources] == [
        ("other", "versioned_notifications")
    ]


#: Service -> exchange, topic, events that its preset accepts, ones that it does not, a publisher.
SERVICES = {
    "neutron": (
        "neutron",
        "notifications",
        ["port.delete.end"],
        ["port.update.end", "Xport"],
        "network.host1",
    ),
    "nova": (
        "nova",
        "versioned_notifications",
        ["instance.delete.end", "instance.update"],
        ["instance.soft_delete.end", "instance.update.x"],
        "nova-conductor:host1",
    ),
    "compute": (
        "nova",
        "notifications",
        ["compute.instance.delete.end", "compute.instance.force_delete.end"],
        ["compute.instance.soft_delete.end", "compute.instance.update"],
        "api.host1",
    ),
}


@pytest.mark.parametrize("service", SERVICES)
def test_the_name_of_a_service_brings_its_settings(tmp_path: Path, service: str) -> None:
    exchange, topic, accepted, refused, publisher = SERVICES[service]
    config = load(
        tmp_path, f"[{NOTIFICATIONS.upper()}:{service.title()}]\n[{NOTIFICATIONS}]\npool = ours\n"
    )
    (source,) = config.sources
    assert (source.exchange, source.topic, source.pool) == (exchange, topic, "ours")
    assert (config.warnings, config.queue) == ((), "ours")
    for event_type in accepted + refused:
        notification = Notification({}, publisher, event_type, "info", {}, {})
        assert accepts(source, notification) == (event_type in accepted), event_type


def test_named_sections_are_the_sources_and_override_what_their_names_bring(
    tmp_path: Path,
) -> None:
    url = "rabbit://a:b@broker/"
    config = load(
        tmp_path,
        f"[{NOTIFICATIONS}:neutron]\n"
        f"[{NOTIFICATIONS}]\ntransport_url = {url}\n"
        f"[{NOTIFICATIONS}:nova]\nexchange = openstack\ntopic = k2hr3\n"
        "event_type = ^instance\npublisher_id = ^nova-compute:\n",
    )
    neutron = replace(Source(), name=f"{NOTIFICATIONS}:neutron", transport_url=url)
    nova = replace(
        neutron,
        name=f"{NOTIFICATIONS}:nova",
        exchange="openstack",
        topic="k2hr3",
        event_type=re.compile("^instance"),
        publisher_id=re.compile("^nova-compute:"),
    )
    assert config.sources == (neutron, nova)


def test_what_a_services_name_overrules_above_it_is_warned_about(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"[{NOTIFICATIONS}]\nexchange = mine\ntopic = notifications\n"
        f"[{NOTIFICATIONS}:neutron]\n"
        f"[{NOTIFICATIONS}:nova]\nexchange = other\n",
    )
    assert [source.exchange for source in config.sources] == ["neutron", "other"]
    assert sorted(
        re.findall(rf"\[{NOTIFICATIONS}\] (\w+): not used by \[(.*?)\]", "\n".join(config.warnings))
    ) == [("exchange", f"{NOTIFICATIONS}:neutron"), ("topic", f"{NOTIFICATIONS}:nova")]
    assert all(f"{tmp_path}/k2hr3_osnl.ini: " in warning for warning in config.warnings)


#: Section, option, a wrong value, and what is said to be expected.
WRONG_VALUES = [
    ("DEFAULT", "log_file", "/no-such-folder/log", "sys.stderr, sys.stdout or a file"),
    ("DEFAULT", "log_file", "a\0b", "a file that can be written"),
    ("DEFAULT", "debug_level", "loud", "one of debug, info, .*critical"),
    ("DEFAULT", "libs_debug_level", "10", "one of debug"),
    ("DEFAULT", "metrics_file", "/", "a file, or nothing"),
    ("DEFAULT", "transport_url", "http", "rabbit://user:password@host"),
    (NOTIFICATIONS, "transport_url", f"amqps://u:{SECRET}@h/", "for TLS set ssl in .*rabbit"),
    (NOTIFICATIONS, "topic", "", "1 to 200 printable ASCII"),
    (NOTIFICATIONS, "exchange", "x" * 201, "1 to 200 printable ASCII"),
    (NOTIFICATIONS, "event_type", "(port", "a regular expression"),
    (NOTIFICATIONS, "publisher_id", "*network", "a regular expression"),
    (NOTIFICATIONS, "context", "tenant_id", "key:regex,key:regex"),
    (NOTIFICATIONS, "metadata", "timestamp:(2026", "key:regex,key:regex"),
    (NOTIFICATIONS, "payload", "a:b,a:c", "key:regex,key:regex"),
    (NOTIFICATIONS, "pool", "x" * 201, "up to 200 printable ASCII"),
    (NOTIFICATIONS, "pool", "notifications.info", "another name, or nothing"),
    (f"{NOTIFICATIONS}:nova", "event_type", "*", "a regular expression"),
    (f"{NOTIFICATIONS}:x", "transport_url", f"rabbit://a:{SECRET}@b/", "run a second listener"),
    (RABBIT, "ssl", "maybe", "true or false"),
    (RABBIT, "ssl_ca_file", "/no/such/file", "a file that can be read"),
    (RABBIT, "ssl_cert_file", "/no/such/file", "a file that can be read"),
    (RABBIT, "ssl_key_file", "/", "a file that can be read"),
    (RABBIT, "ssl_enforce_hostname_verification", "2", "true or false"),
    (RABBIT, "rabbit_login_method", "KERBEROS", "one of AMQPLAIN, PLAIN, EXTERNAL"),
    (RABBIT, "rabbit_quorum_queue", "?", "true or false"),
    (RABBIT, "rabbit_qos_prefetch_count", "many", "a whole number from 0 to 65535"),
    (RABBIT, "heartbeat_timeout_threshold", "soon", "a whole number from 0 to 3600"),
    (RABBIT, "rabbit_retry_interval", "1s", "a whole number from 1 to 3600"),
    (RABBIT, "rabbit_retry_backoff", "-", "a whole number from 0 to 3600"),
    (RABBIT, "rabbit_interval_max", "1.5", "a whole number from 1 to 3600"),
    ("k2hr3", "api_url", "https//localhost/v1/role", r"http\[s\]://host"),
    ("k2hr3", "api_url", "ftp://localhost/v1/role", r"http\[s\]://host"),
    ("k2hr3", "api_url", "http://localhost:0/", r"http\[s\]://host"),
    ("k2hr3", "api_url", "http://localhost:99999/", r"http\[s\]://host"),
    ("k2hr3", "api_url", "http://[::1/", r"http\[s\]://host"),
    ("k2hr3", "api_url", "http://local host/", r"http\[s\]://host"),
    ("k2hr3", "api_url", "http://localhost/?a=b", "without user or query"),
    ("k2hr3", "api_url", f"https://user:{SECRET}@host/v1/role", "without user or query"),
    ("k2hr3", "api_url", f"user:{SECRET}@host/v1/role", "without user or query"),
    ("k2hr3", "timeout_seconds", "", "a whole number from 1 to 600"),
    ("k2hr3", "timeout_seconds", "1\n  concurrency = 2", "a whole number from 1 to 600"),
    ("k2hr3", "retry_interval_seconds", "1e2", "a whole number from 1 to 600"),
    ("k2hr3", "max_retries", "many", "a whole number from 0 to 1000"),
    ("k2hr3", "retries", "many", "a whole number from 0 to 1000"),
    ("k2hr3", "allow_self_signed_cert", "Falsch", "true or false"),
    ("k2hr3", "ca_file", "/no/such/file", "a file that can be read"),
    ("k2hr3", "cert_file", "NO PEM", "PEM files without a pass phrase"),
    ("k2hr3", "key_file", "/no/such/file", "a file that can be read"),
    ("k2hr3", "concurrency", "0", "a whole number from 1 to 256"),
    ("k2hr3", "dead_letter_after_seconds", "-1", "a whole number from 0 to 1000000000"),
]


@pytest.mark.parametrize("place", ["file", "environment"])
@pytest.mark.parametrize(("section", "option", "value", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_one_line_that_says_where_and_what_to_change(
    tmp_path: Path, section: str, option: str, value: str, expected: str, place: str
) -> None:
    (tmp_path / "pem").write_text("no certificate")
    value = value.replace("NO PEM", str(tmp_path / "pem"))
    text = f"[{NOTIFICATIONS}]\npool = other\n[{section}]\n"
    variable = f"OS_{section}__{option}".upper()
    more = f"{option} = {value}\n" if place == "file" else ""
    environ = {variable: value} if place == "environment" else {}
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text + more, **environ)
    line = one_line(f"{error.value}\n")
    origin = f"{tmp_path}/k2hr3_osnl.ini" if place == "file" else f"environment variable {variable}"
    assert line.startswith(f"{origin}: [{section}] ")
    assert option.replace("retries", "max_retries").replace("max_max", "max") in line
    assert re.search(f"expected .*{expected}", line)
    assert SECRET not in line
    assert value in line or "@" in value or not value.isprintable() or "transport_url" in option


def test_every_option_has_its_wrong_value_above() -> None:
    options = {
        (section, field.name)
        for section, table in OPTIONS.items()
        for field in fields(table)
        if field.metadata
    }
    assert options <= {(section, option) for section, option, *_ in WRONG_VALUES}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["x", "(", "9", "\0", "\x1b[2J", "[:", f"{SECRET}@", "a:b,"])
def test_a_long_or_odd_value_is_one_bounded_line(tmp_path: Path, value: str) -> None:
    said = []
    for section, table in OPTIONS.items():
        for field in fields(table):
            try:
                load(tmp_path, f"[{section}]\n{field.name} = {value * 30_000}\n")
            except ConfigError as error:
                said.append(str(error))
    assert len(said) > 10
    assert all(len(line) < 1000 and line.isprintable() for line in said)
    assert SECRET not in "".join(said)


#: What is wrong with a whole file: its text, and what the line on stderr says.
WRONG_FILES = [
    (
        f"[{NOTIFICATIONS}]\ntransport_url = rabbit://h/?heartbeat_timeout_threshold=x\n",
        "query of transport_url: .*heartbeat_timeout_threshold = x: expected a whole number",
    ),
    (
        f"[{NOTIFICATIONS}]\ntransport_url = rabbit://h/?sssl=1\n",
        "query of transport_url: unknown option; the nearest known is ssl$",
    ),
    (f"[{RABBIT}]\nssl = 1\nssl_ca_file = FOLDER/b.pem\n", r"ssl_ca_file.*/b\.pem.*expected PEM"),
    ("concurrency = 1\n", r"line 1 .*expected .*\[section\]"),
    (f"[DEFAULT]\n\ntransport_url {SECRET}\n", "line 3 .*expected .*option = value"),
    ("[k2hr3]\nca_file = \xff\n", "utf-8.*expected a text file"),
    ("[DEFAULT]\nlog_file = " + "x" * 100_000, r"log_file = x+\.\.\.: .*expected"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_the_program_ends_with_78_and_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    right, file = tmp_path / "right.ini", tmp_path / "a.ini"
    right.write_text("[k2hr3]\nconcurrency = 2\n")
    file.touch(mode=0o600)
    file.write_text(text.replace("FOLDER", str(tmp_path)), encoding="latin-1")
    (tmp_path / "b.pem").write_text("no certificate")
    assert k2hr3_osnl.main(["-c", str(right), "--config-file", str(file)]) == 78
    line = one_line(capsys.readouterr().err)
    assert re.search(expected, line)
    assert str(file) in line or "log_file" in line  # which -f overrides
    assert len(line) < 1000
    assert SECRET not in line


def test_a_settings_file_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "line 12.ini"
    with pytest.raises(ConfigError, match=f"^{file}: No such file or directory: expected a text"):
        Config.load(str(file))


#: What a file says, and one expression for each warning. FILE is the certificate of a CA.
WARNINGS = [
    ("[k2hr3]\napi_uri = s3cret", [r"ini: \[k2hr3\] api_uri: .*nearest known is api_url$"]),
    ("[k2hr3]\nretry_interval_second = s3cret", ["nearest known is retry_interval_seconds$"]),
    (f"[{NOTIFICATIONS}]\ntransport_ur = s3cret", ["nearest known is transport_url$"]),
    (f"[{NOTIFICATIONS}:nova]\nevent_typ = s3cret", [r":nova\] event_typ: .*is event_type$"]),
    (f"[{RABBIT}]\nsssl = true", [r"_rabbit\] sssl: unknown; the nearest known is ssl$"]),
    (f"[{RABBIT}]\nuse_ssl = true", ["use_ssl: unknown; the nearest known is ssl"]),
    ("[DEFAULT]\nlog_fil = s3cret", [r"\[DEFAULT\] log_fil: .*nearest known is log_file$"]),
    ("[k2hr]\napi_url = s3cret", [r"\[k2hr\]: .*the nearest known is \[k2hr3\]$"]),
    ("[k2hr3:x]\napi_url = s3cret", [r"\[k2hr3:x\]: unknown; the nearest known is \[k2hr3\]$"]),
    ("[oslo_messaging_rabbitmq]", [rf"\[oslo_messaging_rabbitmq\]: .*is \[{RABBIT}\]$"]),
    ("[oslo_messaging_notification:nova]", [rf"_notification:nova\]: .*is \[{NOTIFICATIONS}\]$"]),
    ("[k2hr3]\ntimeout_seconds = 0", [r"\[k2hr3\] timeout_seconds = 0: expected .*; 1 is used$"]),
    ("[k2hr3]\nmax_retries = -1", ["max_retries = -1: expected .* from 0 to 1000; 0 is used$"]),
    (f"[{RABBIT}]\nheartbeat_timeout_threshold = 99999", ["= 99999: .*; 3600 is used$"]),
    (f"[{RABBIT}]\nssl = true", ["ssl without ssl_ca_file: unverified, any broker is trusted"]),
    (f"[{RABBIT}]\nssl_ca_file = FILE", ["ssl_ca_file, .*: not used, since TLS is off"]),
    (
        f"[{RABBIT}]\nssl = 1\nssl_ca_file = FILE\nssl_key_file = FILE",
        [r"_rabbit\] ssl_ca_file, .*: the key is not used, since its certificate is missing"],
    ),
    ("[k2hr3]\nallow_self_signed_cert = 1", ["allow_self_signed_cert: any server is trusted"]),
    ("[k2hr3]\nkey_file = FILE", [r"\[k2hr3\] ca_file, .*key is not used"]),
    ("[k2hr3]\napi_url = http://h/\nca_file = FILE", [r"\[k2hr3\] ca_file, .*TLS is off"]),
    *(
        (f"[{NOTIFICATIONS}]\nevent_type = ^{event_type}$", [f"accepts {event_type}: living inst"])
        for event_type in ("port.create.end", "port.update.end")
    ),
]


@pytest.mark.parametrize(("text", "expected"), WARNINGS)
def test_what_is_likely_a_mistake_or_a_risk_is_warned_about(
    tmp_path: Path, certificates: Certificates, text: str, expected: list[str]
) -> None:
    config = load(tmp_path, text.replace("FILE", str(certificates.ca_file)) + "\n")
    assert len(config.warnings) == len(expected), config.warnings
    for warning, pattern in zip(config.warnings, expected):
        assert re.search(pattern, warning)
        assert SECRET not in warning


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)])
def test_a_settings_file_that_others_can_read_is_warned_about(
    tmp_path: Path, mode: int, warned: int
) -> None:
    file = tmp_path / "k2hr3_osnl.ini"
    file.touch()
    file.chmod(mode)
    warnings = Config.load(str(file), environ={}).warnings
    assert [f"{file}: everyone can read it" in warning for warning in warnings] == [True] * warned


def test_other_options_of_openstack_are_accepted_silently(tmp_path: Path) -> None:
    # Given all options of oslo.messaging and oslo.log, and sections of other libraries
    known = {field.name for table in OPTIONS.values() for field in fields(table)}
    lines = ["[database]\nconnection = %s$$\n[oslo_messaging_amqp]\n[oslo_messaging_kafka]"]
    for section, options in [*oslo_messaging.opts.list_opts(), *oslo_log._options.list_opts()]:
        lines.append(f"[{section or 'DEFAULT'}]")
        lines += [f"{name} = x" for name in {option.dest for option in options} - known]
    config = load(tmp_path, "\n".join(lines))
    assert config.warnings == ()
    assert replace(config, files=()) == Config()


def test_the_settings_file_documents_every_option_and_its_default(tmp_path: Path) -> None:
    def shown(default: Any) -> str:
        if isinstance(default, re.Pattern):
            return str(default.pattern)
        return "" if default == () else str(default)

    # Given a line on each option, and its default on the next
    text = PROGRAM.with_suffix(".ini").read_text()
    found, section = [], ""
    for name, meaning, option, default in re.findall(
        r"^\[(.*)\]$|^# (.*)\n# (\w+) =(?: (.*))?$", text, re.M
    ):
        section = name or section
        if option:
            found.append((section, option, default, meaning))
    meanings = re.findall(r"^    # (.*)\n    \w+: .* = option\(", PROGRAM.read_text(), re.M)
    options = [
        (section, field.name, shown(field.default))
        for section, table in OPTIONS.items()
        for field in fields(table)
        if field.metadata
    ]
    assert found == [
        (*option, meaning) for option, meaning in itertools.zip_longest(options, meanings)
    ]
    # Put into force, they change nothing
    in_force = load(tmp_path, re.sub(r"^# (\w+ =)", r"\1", text, flags=re.M))
    assert replace(in_force, files=()) == Config()


# --- Transport ---------------------------------------------------------------------------------

Hosts = list[tuple[Any, ...]]


def our_hosts(url: str) -> Hosts | None:
    """Host, port, user, password and virtual host for each host of a URL; None: it is refused."""
    try:
        hosts: list[Any] = list(parse_transport_url(url))
    except ConfigError:
        return None
    logins = [(host.credentials.username, host.credentials.password) for host in hosts]
    return [(host.host, host.port, *login, host.virtual_host) for host, login in zip(hosts, logins)]


def their_hosts(url: str) -> Hosts | None:
    """The same as oslo.messaging and its driver for RabbitMQ read them."""
    try:
        oslo = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    except (ValueError, oslo_messaging.InvalidTransportURL):
        return None
    if oslo.transport not in ("rabbit", "kombu"):
        return None
    return [
        (
            host.hostname,
            host.port or 5672,
            host.username or "guest",
            host.password or "guest",
            oslo.virtual_host or "/",
        )
        for host in oslo.hosts or [oslo_messaging.TransportHost("localhost")]
    ]


URLS = """
    rabbit://u:p@h:1/v kombu://u:p@h/v RABBIT://u:p@h/v rabbit://u:p@h rabbit://u:p@h/
    rabbit://u:p@h// rabbit://u:p@h/%2F rabbit://u:p@h//v rabbit://u:p@h/a%20b rabbit://u:p@h/v/w
    rabbit://u:p@h/v?ssl=1 rabbit://u:p@h?ssl=1 rabbit://u:p@h/v#fragment
    rabbit://u:p@h/?ssl=1#fragment rabbit:// rabbit:///v rabbit://h rabbit://h:05 rabbit://u@h/
    rabbit://:p@h/ rabbit://u@x:p@h/ rabbit://u%40x:p%2Fw%3A%25%2C@h/ rabbit://u:p:w@h/
    rabbit://u:p@w@h/ rabbit://u:p+w@h/ rabbit://u:p@[::1]:1/ rabbit://u:p@[2001:db8::1]/v
    rabbit://u:p@[fe80::1%eth0]:1/ rabbit://u:p@2001:db8::1/ rabbit://u:p@my-host.example.com/
    rabbit://u:p@h_1.bücher/ rabbit://h1,,h2/ rabbit://a:b@h1:1,c:d@h2,/v ,rabbit://h/ http://h/
    amqps://h/ rabbit+ssl://h/ u:p@h:5672 rabbit://u:p@h:port/ rabbit://u:p#w@h/ rabbit://u:p,w@h/
    rabbit://u:p?w@h/ rabbit://u:p/w@h/ rabbit://u:p@[::1/ rabbit://h1,h2:x/
"""


@pytest.mark.parametrize("url", URLS.split())
def test_a_transport_url_is_read_as_oslo_messaging_reads_it(url: str) -> None:
    assert our_hosts(url) == their_hosts(url)


@pytest.mark.parametrize(
    ("url", "hosts", "why"),
    [
        ("amqp://h/", ["h"], "it is RabbitMQ's own scheme; oslo.messaging's was AMQP 1.0"),
        ("rabbit://a:b@h1,c:d@[::1]:2", ["h1", "::1"], "newer Pythons refuse to read it"),
        ("", None, "not given"),
        ("rabbit://h:0/", None, "there is no such port, and 5672 is a guess"),
        ("rabbit://h:65536/", None, "there is no such port"),
        ("rabbit://h: 1/", None, "white space"),
        ("rabbit://u:p@/", None, "a user, but no host"),
        ("rabbit://h1, h2/", None, "white space between hosts"),
        ("rabbit://a:b@h1, c:d@h2/", None, "white space between hosts"),
        ("rabbit://a:b@h1,\n  c:d@h2/", None, "white space between hosts"),
        ("rabbit://h 1/", None, "white space"),
        ("rabbit:u:p@h/", None, "the slashes are missing; it asked localhost"),
        ("rabbit://x:y:z/", None, "not an IPv6 address"),
        ("rabbit://h\0/", None, "no host is called so"),
    ],
)
def test_a_transport_url_is_read_otherwise_for_a_reason(
    url: str, hosts: list[str] | None, why: str
) -> None:
    read = our_hosts(url)
    assert (None if read is None else [host for host, *_ in read]) == hosts, why
    if "[" not in url:  # not so on every Python
        assert their_hosts(url) != read


DRIVERS_OPTIONS = """
    ssl=True ssl=1 ssl_ca_file=FILE ssl_cert_file=FILE ssl_key_file=FILE
    ssl_enforce_hostname_verification=no rabbit_login_method=PLAIN rabbit_login_method=EXTERNAL
    rabbit_quorum_queue=yes rabbit_qos_prefetch_count=30 heartbeat_timeout_threshold=0
    rabbit_retry_interval=3 rabbit_retry_backoff=0 rabbit_interval_max=60
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["section", "query"])
@pytest.mark.parametrize("given", DRIVERS_OPTIONS.split())
def test_the_drivers_options_are_read_as_oslo_messaging_reads_them(
    tmp_path: Path, given: str, place: str
) -> None:
    file = tmp_path / "k2hr3_osnl.ini"
    option, text = given.replace("FILE", str(file)).split("=")
    query = f"?{option}={text}&amqp_durable_queues=1" if place == "query" else ""
    beside = "ssl_version" if place == "query" else option  # the query wins
    config = load(
        tmp_path,
        f"[DEFAULT]\ntransport_url = rabbit://h/{query}\n"
        f"[{RABBIT}]\n{beside} = {text}\nrabbit_interval_max = 60\n",
    )
    conf = cfg.ConfigOpts()
    conf([], project="test", default_config_files=[str(file)])
    conf.register_opts([*impl_rabbit.rabbit_opts, *oslo_amqp.amqp_opts], RABBIT)
    oslo = ConfigOptsProxy(conf, oslo_messaging.TransportURL.parse(conf), RABBIT)
    assert getattr(config.rabbit, option) == oslo[RABBIT][option]
    assert [warning for warning in config.warnings if "unknown" in warning] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rabbit_use_ssl", "ssl"),
        ("kombu_ssl_ca_certs", "ssl_ca_file"),
        ("kombu_ssl_certfile", "ssl_cert_file"),
        ("kombu_ssl_keyfile", "ssl_key_file"),
    ],
)
def test_the_drivers_older_names_are_known_in_section_and_query(
    tmp_path: Path, old: str, new: str
) -> None:
    value = "True" if new == "ssl" else str(tmp_path / "k2hr3_osnl.ini")
    for text in (
        f"[{RABBIT}]\n{old} = {value}",
        f"[DEFAULT]\ntransport_url=rabbit://?{old}={value}",
    ):
        assert str(getattr(load(tmp_path, text).rabbit, new)) == value


@pytest.mark.parametrize(
    ("default", "notifications", "used"),
    [
        ("", "", "rabbit://guest:guest@127.0.0.1:5672/"),
        ("", "transport_url =", "rabbit://guest:guest@127.0.0.1:5672/"),
        ("transport_url = rabbit://d:d@d/", "", "rabbit://d:d@d/"),
        ("transport_url = rabbit://d:d@d/", "transport_url =", "rabbit://d:d@d/"),
        ("transport_url = rabbit://d:d@d/", "transport_url = rabbit://n:n@n/", "rabbit://n:n@n/"),
        ("", "transport_url = rabbit://u:%25%28x%29s$$@h/", "rabbit://u:%25%28x%29s$@h/"),
    ],
)
def test_the_transport_url_of_default_is_used_where_the_sources_have_none(
    tmp_path: Path, default: str, notifications: str, used: str
) -> None:
    config = load(tmp_path, f"[DEFAULT]\n{default}\n[{NOTIFICATIONS}]\n{notifications}\n")
    assert [source.transport_url for source in config.sources] == [used]


# --- Notification ------------------------------------------------------------------------------

MAX_BYTES = 8 * 1024 * 1024
GZIP, BZ2 = "application/x-gzip", "application/x-bz2"
GOOD = notified(CUK)
GOOD_INSIDE = notification(port(CUK, [ADDRESS]), version=None)
DEEP = b"[" * 100_000
compressions = pytest.mark.parametrize(
    ("compress", "compression"),
    [(bytes, None), (zlib.compress, GZIP), (bz2.compress, BZ2)],
    ids=["plain", "gzip", "bz2"],
)


def properties(compression: Any = None) -> pika.BasicProperties:
    """Of a delivery, with a kombu compression header or without."""
    return pika.BasicProperties(
        headers=None if compression is None else {"compression": compression}
    )


@pytest.mark.parametrize("version", [None, "2.0", "2.1", "2.17", " 2.0", "02.0"])
@compressions
def test_notifications_are_read_from_every_envelope_and_compression(
    version: str | None, compress: Any, compression: str | None
) -> None:
    payload = port(CUK, ["::1"])
    body = notification(payload, version=version, message_id="1", timestamp="2026-03-02")
    assert decode(compress(body), properties(compression)) == Notification(
        {"user": "neutron", "roles": ["a"]},
        "network.host1",
        "port.delete.end",
        "info",
        payload,
        {"message_id": "1", "timestamp": "2026-03-02"},
    )


@pytest.mark.parametrize(
    ("body", "reason", "compression"),
    [
        (b"", "not JSON", None),
        (b"hello", "not JSON", None),
        (GOOD[:-20], "not JSON", None),
        (GOOD + GOOD, "not JSON", None),
        (b"\xff\xfe{\x00", "not UTF-8", None),
        ("é".encode("latin-1"), "not UTF-8", None),
        (GOOD_INSIDE.decode().encode("utf-16"), "not UTF-8", None),
        (GOOD_INSIDE.decode().encode("utf-16-le"), "not JSON", None),
        (b"[" + GOOD_INSIDE + b"]", "not an object", None),
        (b"null", "not an object", None),
        (b"17", "not an object", None),
        (b'"x"', "an object", None),
        (DEEP, "nested too deeply", None),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply", None),
        (enveloped(DEEP.decode()), "nested too deeply", None),
        (b"{}", "publisher_id is missing", None),
        *(
            (enveloped("{}", version), f"version {version!r} is not 2.x", None)
            for version in ("1.0", "3.0", "2", "2.x", "20.0", "", 2.0, None)
        ),
        (enveloped('"text"'), "not an object", None),
        (enveloped({}), "oslo.message is not a string", None),
        (enveloped("{"), "not JSON", None),
        (notification({}, ...), "event_type is missing", None),
        (notification({}, 1), "event_type is .*not a string", None),
        (notification({}, None), "event_type is .*not a string", None),
        (notification({}, publisher_id=["x"]), "publisher_id is .*not a string", None),
        (notification({}, priority=None), "priority is .*not a string", None),
        (notification({}, priority=20), "priority is .*not a string", None),
        (GOOD, "body is not 'application/x-gzip'", GZIP),
        (GOOD, "body is not 'application/x-bz2'", BZ2),
        (b"", "cut off", GZIP),
        (b"", "cut off", BZ2),
        (zlib.compress(GOOD)[:-9], "cut off", GZIP),
        (bz2.compress(GOOD)[:-9], "cut off", BZ2),
        (GOOD, "compression 'application/zstd' is not known", "application/zstd"),
        (GOOD, "compression 17 is not known", 17),
        (GOOD, r"compression \['x'\] is not known", ["x"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bad_bodies_are_malformed_with_a_reason_a_person_understands(
    body: bytes | str, reason: str, compression: Any
) -> None:
    with pytest.raises(MalformedNotification, match=reason) as error:
        decode(body if isinstance(body, bytes) else body.encode(), properties(compression))
    assert "\n" not in str(error.value)


@compressions
def test_a_body_of_exactly_8_mib_is_read_and_one_byte_more_is_not(
    compress: Any, compression: str | None
) -> None:
    largest = GOOD.ljust(MAX_BYTES)
    assert decode(compress(largest), properties(compression)).event_type == "port.delete.end"
    with pytest.raises(MalformedNotification, match="larger than 8388608 bytes"):
        decode(compress(largest + b" "), properties(compression))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compressor", "compression"),
    [(zlib.compressobj(), GZIP), (bz2.BZ2Compressor(), BZ2)],
    ids=["gzip", "bz2"],
)
def test_a_bomb_is_refused_before_it_is_unpacked(compressor: Any, compression: str) -> None:
    mib = bytes(1024 * 1024)
    bomb = b"".join(compressor.compress(mib) for _ in range(100)) + compressor.flush()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedNotification, match="larger"):
            decode(bomb, properties(compression))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


@pytest.mark.parametrize("event", noise(), ids=lambda event: event[0])
def test_everyday_events_are_recognised_without_decoding(event: tuple[str, dict[str, Any]]) -> None:
    event_type, payload = event
    for version in (None, "2.0"):
        body = notification(payload, event_type, version)
        assert quick_event_type(body, properties()) == event_type.encode()
        assert quick_event_type(zlib.compress(body), properties(GZIP)) is None


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("\\u0065vent_type", "event_type"),
        ("event\\u005ftype", "event_type"),
        ("event_type", "event_typ\\u0065"),
        ("event_type", "old_event_type"),
        ("event_type", "event_type"),
        ("\\u0065vent_type", "_event_type"),
    ],
)
@pytest.mark.parametrize("is_enveloped", [False, True])
def test_a_key_in_disguise_does_not_deceive_the_quick_look(
    key: str, other: str, is_enveloped: bool
) -> None:
    members = [
        f'"{key}": "port.delete.end"',
        f'"payload": {{"{other}": "port.update.end"}}',
        '"publisher_id": "network.h"',
        '"priority": "INFO"',
    ]
    for order in (members, members[::-1]):
        text = "{" + ", ".join(order) + "}"
        body = (enveloped(text) if is_enveloped else text).encode()
        assert decode(body, properties()).event_type == "port.delete.end"
        assert quick_event_type(body, properties()) in (None, b"port.delete.end")


# Notifications of every spelling, by hypothesis

BODIES = bodies(None, "2.0", "2.3")
OSLO_BODIES = bodies(None, "2.0")  # what oslo.messaging sends; it refuses a later minor version


@pytest.mark.slow
@thorough(300)
@given(body=BODIES)
def test_the_quick_look_never_differs_from_the_full_decode(body: bytes) -> None:
    quick = quick_event_type(body, properties())
    assert quick is None or quick.decode() == decode(body, properties()).event_type


@pytest.mark.slow
@thorough(150)
@given(body=OSLO_BODIES)
def test_notifications_are_read_as_oslo_messaging_reads_them(body: bytes) -> None:
    oslo = OsloEndpoint()
    dispatch(body, oslo)
    found = decode(body, properties())
    assert oslo.called == (
        found.context,
        found.publisher_id,
        found.event_type,
        found.payload,
        found.metadata,
    )


def source_with(**rules: str) -> Source:
    """The source that these options of the section of notifications make."""
    section = NOTIFICATIONS.upper()
    options = {f"OS_{section}__{name.upper()}": rule for name, rule in rules.items()}
    # without TLS to the Role API, for which certificates would be read
    (source,) = Config.load(environ={"OS_K2HR3__API_URL": "http://k2hr3/", **options}).sources
    return source


@pytest.mark.slow
@thorough(150)
@given(body=OSLO_BODIES, rules=RULES)
def test_the_filter_accepts_what_oslo_accepts(body: bytes, rules: dict[str, Any]) -> None:
    oslo = OsloEndpoint(**rules)
    with suppress(TypeError):  # a rule for a payload that is no object: oslo.messaging trips
        dispatch(body, oslo)
    options = {"event_type": "", "publisher_id": ""}
    for name, rule in rules.items():
        options[name] = rule if isinstance(rule, str) else ",".join(map(":".join, rule.items()))
    accepted = accepts(source_with(**options), decode(body, properties()))
    assert accepted == bool(oslo.called)


@pytest.mark.parametrize(
    ("rules", "accepted"),
    [
        ({}, True),
        ({"event_type": r"^port\.delete"}, True),
        ({"event_type": "delete"}, False),
        ({"publisher_id": "^network"}, True),
        ({"publisher_id": "^compute"}, False),
        ({"context": "user:neutron"}, True),
        ({"context": "user:^nova$"}, False),
        ({"context": "roles:a"}, False),
        ({"context": "nobody:.*"}, False),
        ({"metadata": "timestamp:2026,message_id:1"}, True),
        ({"metadata": "timestamp:2025"}, False),
        ({"payload": "port_id:.*"}, True),
        ({"payload": "port:.*"}, False),
        ({"payload": "port_id:.*", "context": "user:^nova$"}, False),
    ],
)
def test_the_five_rules_of_the_filter(rules: dict[str, str], accepted: bool) -> None:
    body = notification(port(CUK, [ADDRESS]), message_id="1")
    assert accepts(source_with(**rules), decode(body, properties())) is accepted


# --- Deletion ----------------------------------------------------------------------------------


def deletion_of(payload: Any, event_type: str = "port.delete.end") -> Deletion | None:
    """What the endpoint makes of a payload."""
    return Endpoint().info(Notification({}, "network.h", event_type, "info", payload, {}))


def ips(*addresses: Any) -> list[dict[str, Any]]:
    """A port's `fixed_ips`."""
    return [{"subnet_id": CUK, "ip_address": address} for address in addresses]


@pytest.mark.parametrize(
    ("payload", "addresses"),
    [
        (port(CUK, [ADDRESS]), (ADDRESS,)),
        (port(CUK, [ADDRESS, "2001:db8::5"]), (ADDRESS, "2001:db8::5")),
        (port(CUK, [ADDRESS], device_owner=...), (ADDRESS,)),
        (port(CUK, [ADDRESS], device_owner=None), (ADDRESS,)),
        (port(CUK, [ADDRESS], device_owner="compute:az-1"), (ADDRESS,)),
        (port(CUK.upper(), [ADDRESS]), (ADDRESS,)),
        (port(CUK.replace("-", ""), [ADDRESS]), (ADDRESS,)),
        (instance(CUK), ()),
        (instance(CUK.upper()), ()),
        (compute_instance(CUK), ()),
        (compute_instance(CUK.replace("-", "").upper()), ()),
    ],
)
def test_payloads_become_deletions_with_the_canonical_cuk(
    payload: dict[str, Any], addresses: tuple[str, ...]
) -> None:
    assert deletion_of(payload) == Deletion(CUK, addresses)
    assert Deletion(CUK.upper()).cuk == CUK


@pytest.mark.parametrize(
    "members",
    [
        {"fixed_ips": []},
        {"fixed_ips": None},
        {"fixed_ips": ...},
        {"device_id": ""},
        {"device_id": None},
        {"device_id": ...},
        {"device_id": "dhcp0f8e-7a4b", "device_owner": ...},
        {"device_id": "reserved_dhcp_port", "device_owner": None},
        {"device_owner": "network:dhcp"},
        {"device_owner": "network:router_interface"},
        {"device_owner": "network:floatingip"},
        {"device_owner": "trunk:subport"},
        {"device_owner": "baremetal:none"},
        {"device_owner": ""},
        {"device_owner": "Compute:nova"},
        {"device_owner": "xcompute:nova"},
    ],
    ids=repr,
)
def test_everyday_ports_are_ignored(members: dict[str, Any]) -> None:
    assert deletion_of(port(CUK, [ADDRESS], **members)) is None


def test_a_neutron_that_sends_no_port_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint()
    for _ in range(3):
        assert endpoint.info(Notification({}, "", "", "info", {"port_id": CUK}, {})) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


NO_UUIDS = (
    CUK + "0",
    CUK + "\n",
    CUK[1:],
    "٠" + CUK[1:],
    CUK.replace("-", "", 1),
    f"{{{CUK}}}",
    f"urn:uuid:{CUK}",
)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "payload is not an object"),
        ([], "payload is not an object"),
        ("text", "payload is not an object"),
        ({}, "payload has none of"),
        ({"a": 1}, "payload has none of"),
        (port("no uuid", [ADDRESS]), "instance id 'no uuid' is not a UUID"),
        *((port(cuk, [ADDRESS]), "is not a UUID") for cuk in NO_UUIDS),
        (port(CUK, [ADDRESS], device_id=7), "device_id is a int"),
        (port(CUK, [ADDRESS], device_owner=[]), "device_owner is a list"),
        (port(CUK, [], fixed_ips=ADDRESS), "fixed_ips is a str"),
        (port(CUK, [], fixed_ips={"ip_address": ADDRESS}), "fixed_ips is a dict"),
        (port(CUK, [], fixed_ips=[ADDRESS]), "address"),
        (port(CUK, [], fixed_ips=[{}]), "address"),
        (port(CUK, [], fixed_ips=[None]), "address"),
        *((port(CUK, [], fixed_ips=ips(ADDRESS, bad)), "address") for bad in ("", None, 7)),
        (port(CUK, [], fixed_ips=ips(ADDRESS, "10.0.0.256")), "'10.0.0.256' is not an IP address"),
        (port(CUK, [], fixed_ips=ips("10.0.0.0/24")), "is not an IP address"),
        (port(CUK, [], fixed_ips=ips("my-host")), "is not an IP address"),
        ({"port": "x"}, "port is a str"),
        ({"port": []}, "port is a list"),
        *(({"nova_object.data": data}, "not a UUID") for data in (None, {}, {"uuid": 7})),
        ({"nova_object.data": None, "uuid": CUK}, "not a UUID"),
        ({"nova_object.data": {}, "uuid": CUK}, "not a UUID"),
        ({"nova_object.data": []}, "data is a list"),
        *(({"instance_id": bad}, "not a UUID") for bad in (None, "7", {"x": CUK}, [CUK])),
    ],
)
def test_payloads_that_no_attempt_can_make_good_are_malformed(payload: Any, reason: str) -> None:
    with pytest.raises(MalformedNotification, match=re.escape(reason)):
        deletion_of(payload)


def with_state(payload: dict[str, Any], state: Any) -> dict[str, Any]:
    """Nova's payload with another state; `...` leaves it out."""
    values = payload.get("nova_object.data", payload)
    values["state"] = state
    if state is ...:
        del values["state"]
    return payload


@pytest.mark.parametrize("to_payload", [instance, compute_instance])
@pytest.mark.parametrize(
    ("event_type", "state", "deleted"),
    [
        ("instance.delete.end", "deleted", True),
        ("compute.instance.force_delete.end", "deleted", True),
        ("instance.update", "deleted", True),
        ("instance.delete.end", "active", False),  # a deletion that failed
        ("instance.delete.end", "error", False),
        ("instance.soft_delete.end", "soft-delete", False),
        ("instance.update", "active", False),
        ("instance.delete.end", "Deleted", False),
        ("instance.delete.end", "", False),
        ("instance.delete.end", ..., True),  # hand-made, and taken at its word
        ("compute.instance.delete.end", ..., True),
        ("instance.update", ..., False),
        ("compute.instance.update", ..., False),
        ("instance.soft_delete.end", ..., False),
        ("instance.delete.start", ..., False),
    ],
)
def test_the_state_of_an_instance_decides_whether_it_is_deleted(
    to_payload: Callable[[str], dict[str, Any]], event_type: str, state: Any, deleted: bool
) -> None:
    found = deletion_of(with_state(to_payload(CUK), state), event_type)
    assert found == (Deletion(CUK) if deleted else None)


@pytest.mark.parametrize("to_payload", [instance, compute_instance])
@pytest.mark.parametrize("event_type", ["instance.delete.end", "instance.update"])
@pytest.mark.parametrize("state", [None, 7, True, ["deleted"], {"deleted": True}])
def test_a_state_that_is_no_text_is_malformed(
    to_payload: Callable[[str], dict[str, Any]], event_type: str, state: Any
) -> None:
    with pytest.raises(MalformedNotification, match="expected a string"):
        deletion_of(with_state(to_payload(CUK), state), event_type)


PAYLOADS = (port(CUK, [ADDRESS, "::1"]), instance(CUK), compute_instance(CUK))


@thorough(150)
@given(payload=nearly(*PAYLOADS) | JSON_VALUES)
def test_no_payload_raises_anything_else_or_widens_a_port_to_its_instance(payload: Any) -> None:
    try:
        deletion = deletion_of(payload)
    except MalformedNotification:
        return
    if deletion:
        assert str(uuid.UUID(deletion.cuk)) == deletion.cuk
        assert isinstance(payload, dict)
        if "port" in payload:
            assert list(deletion.ips) == [ip["ip_address"] for ip in payload["port"]["fixed_ips"]]
            assert deletion.ips
        else:
            assert deletion.ips == ()


def test_a_priority_without_a_method_is_ignored() -> None:
    assert Endpoint().priorities() == ["info"]
    for priority in ("error", "priorities", "deletion", "__init__"):
        assert Endpoint().deletion(Notification({}, "", "", priority, instance(CUK), {})) is None


# --- Role API ----------------------------------------------------------------------------------

PORT = Deletion(CUK, (ADDRESS, "2001:db8::5"))
INSTANCE = Deletion(CUK)


def client(api_url: str, **options: Any) -> k2hr3_osnl.RoleApi:
    """Our side of the Role API; attempts end within 1 s."""
    options = {"timeout_seconds": 1, **options}
    return k2hr3_osnl.RoleApi(dataclasses.replace(Config().k2hr3, api_url=api_url, **options))


def failure(of: k2hr3_osnl.RoleApi, deletion: Deletion = INSTANCE) -> RoleApiError:
    """The error of an attempt, which must end within timeout_seconds (and a noisy half second)."""
    began = time.monotonic()
    with pytest.raises(RoleApiError) as error:
        of.delete(deletion)
    assert time.monotonic() - began < 1 + SLACK
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("deletion", "host", "left"),
    [(PORT, {"host": [ADDRESS, "2001:db8::5"]}, {"10.0.0.6"}), (INSTANCE, {}, set())],
)
def test_a_deletion_is_one_delete_with_exactly_this_query(
    api: RoleApi, deletion: Deletion, host: dict[str, list[str]], left: set[str]
) -> None:
    api.register(CUK, ADDRESS, "2001:db8::5", "10.0.0.6")
    (other,) = cuks(1)
    api.register(other, ADDRESS)
    client(api.url).delete(deletion)
    (request,) = api.requests
    assert query(request) == {"extra": "openstack-auto-v1", "cuk": CUK, **host}
    assert (urlsplit(request.target).path, request.status) == ("/v1/role", 204)
    assert api.members() == {other: {ADDRESS}, **({CUK: left} if left else {})}


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd",
    [
        *(Odd(status, body=b"x" * 1_000_000) for status in (200, 201, 202, 299)),
        *(Odd(status, {"Content-Encoding": "gzip"}, b"no gzip") for status in (200, 204)),
        *(Odd(status, endless=True) for status in (200, 204)),
        Odd(200, body=b"x", missing=100),
        Odd(200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"),
        Odd(200, {"Retry-After": "9", "Connection": "close"}),
    ],
    ids=lambda odd: repr(odd)[:60],
)
def test_every_2xx_is_a_success_whatever_its_body(api: RoleApi, odd: Odd) -> None:
    role_api = client(api.url)
    api.register(CUK, ADDRESS)
    api.fault = odd
    for _ in range(2):
        began = time.monotonic()
        role_api.delete(INSTANCE)
        assert time.monotonic() - began < 1 + SLACK
    # Then the next deletion gets its own answer
    api.fault = Status(418)
    assert failure(role_api).status == 418


def test_the_body_of_an_answer_is_not_decoded(api: RoleApi) -> None:
    # Given 64 MB of nothing, twice packed
    body = bytes(1 << 26)
    for _ in range(2):
        packer = zlib.compressobj(wbits=31)
        body = packer.compress(body) + packer.flush()
    assert len(body) < 1000
    role_api = client(api.url)
    for status in (200, 400):
        api.fault = Odd(status, {"Content-Encoding": "gzip, gzip"}, body)
        tracemalloc.start()
        error = k2hr3_osnl.make_attempt(role_api, INSTANCE).error
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (error and error.status) == (None if status == 200 else 400)
        assert peak < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("interim", [100, 102, 103])
@pytest.mark.parametrize(("late", "next_one"), [(204, 403), (403, 204)])
def test_after_a_1xx_the_next_deletion_does_not_take_the_late_answer(
    api: RoleApi, interim: int, late: int, next_one: int
) -> None:
    api.one_at_a_time = False
    role_api = client(api.url)
    api.fault = Interim(interim, 0.3, late)
    error = k2hr3_osnl.make_attempt(role_api, INSTANCE).error
    # Then the final answer was awaited, or the attempt failed
    status = error.status if error else 204
    assert status == (late if interim == 100 else interim)
    assert status in (204, 400) or (error and error.may_have_acted)
    # and whatever is asked next gets its own answer
    api.fault = Interim(100, 0.6, next_one)
    error = k2hr3_osnl.make_attempt(role_api, PORT).error
    assert (error.status if error else 204) == next_one


#: What to check at a status that is a failure.
HINTS = {
    "redirect": (301, 302, 303, 307, 308),
    "delhost role, or K2HR3's store is down": (400,),
    "delhost role": (403,),
    "path of api_url": (404,),
    "too many addresses": (414, 431),
    "": (304, 401, 418, 429, 500, 502, 503, 599),
}


@pytest.mark.parametrize("hint", HINTS)
def test_any_other_status_is_a_failure_that_says_what_to_check(api: RoleApi, hint: str) -> None:
    role_api = client(api.url)
    with RoleApi() as elsewhere:
        for status in HINTS[hint]:
            api.fault = Status(status, {"Location": elsewhere.url})
            error = failure(role_api)
            assert (error.status, error.timed_out, error.retry_after) == (status, False, 0)
            assert error.is_permanent is (status in (414, 431))
            assert error.may_have_acted is (status == 403)  # K2HR3 may stop half-way with it
            assert f"DELETE {api.url}: {status}" in str(error)
            assert hint in str(error)
        assert (len(api.requests), elsewhere.requests) == (len(HINTS[hint]), [])


def test_too_many_addresses_for_one_request_are_not_sent(api: RoleApi) -> None:
    # Given the most addresses that a request line of 16,000 bytes has room for, and one more
    def with_addresses(count: int) -> Deletion:
        return Deletion(CUK, tuple(f"10.0.{n // 200}.{n % 200}" for n in range(count)))

    def size(count: int) -> int:
        return len(f"DELETE /v1/role?{with_addresses(count).query} HTTP/1.1")

    most = next(count for count in range(900, 0, -1) if size(count) <= 16_000)
    client(api.url).delete(with_addresses(most))

    error = failure(client(api.url), with_addresses(most + 1))

    assert error.is_permanent
    assert "not sent, too many addresses" in str(error)
    assert [request.status for request in api.requests] == [204]


def test_retry_after_in_seconds_or_as_a_date(api: RoleApi) -> None:
    role_api = client(api.url)

    def found(value: str) -> float:
        api.fault = Status(503, {"Retry-After": value})
        return failure(role_api).retry_after

    for value in ("7", "0", "99999999"):
        assert found(value) == int(value)
    for value in ("soon", "-5", "1.5", "", "\u00b2", "Fri, 99 Dec 1999 23:59:59 GMT"):
        assert found(value) == 0
    assert 50 < found(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize(
    ("fault", "timed_out"),
    [(Reset(), False), (Hang(), True), (Slow(2), True), (Drip(0.05), True), (Drip(0.9), True)],
    ids=repr,
)
def test_an_attempt_without_an_answer_ends_in_time(
    certificates: Certificates, fault: Fault, timed_out: bool, over_tls: bool
) -> None:
    with RoleApi(tls=certificates.context() if over_tls else None) as api:
        role_api = client(api.url, timeout_seconds=0.4, ca_file=str(certificates.ca_file))
        api.fault = fault
        error = failure(role_api)
        assert (error.status, error.timed_out) == (None, timed_out)
        # Then it works again as soon as the API does
        api.fault = None
        wait_until(lambda: k2hr3_osnl.make_attempt(role_api, INSTANCE).error is None)


def test_a_refused_connection_is_no_timeout(api: RoleApi) -> None:
    role_api = client(api.url)
    role_api.delete(INSTANCE)
    api.refuse()
    assert failure(role_api).timed_out is False
    assert failure(role_api).timed_out is False
    api.accept()
    role_api.delete(INSTANCE)


def test_a_name_that_does_not_resolve_is_a_failure() -> None:
    # in words, without the names of objects
    expected = r"invalid/v1/role: NewConnectionError: no-such-host\.invalid: "
    with pytest.raises(RoleApiError, match=expected):
        client("http://no-such-host.invalid/v1/role").delete(INSTANCE)


@contextlib.contextmanager
def babbling(reply: bytes, again: bytes) -> Iterator[str]:
    """A TCP server that sends bytes, some again and again, and never closes; its address."""
    ended = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):  # the client went
            connection.sendall(reply)
            while not ended.wait(0.02):
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "reply", "again", "timed_out"),
    [
        ("http", b"", b"", True),
        ("http", b"HTTP/1.1 204 No Content\r\n", b"X: y\r\n", None),
        ("http", b"HTTP/1.1 204 ", b"x", True),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n", True),
        ("http", b"SSH-2.0-OpenSSH_9.2\r\n", b"", False),
        ("http", b"HTTP/1.1 abc\r\n\r\n", b"", False),
        ("http", b"HTTP/1.1 204 " + b"x" * 100_000, b"", False),
        ("https", b"", b"", None),
        ("https", b"", b"\x16\x03\x03\x40\x00" + b"x" * 100, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_server_that_talks_nonsense_is_a_failure_in_time(
    scheme: str, reply: bytes, again: bytes, timed_out: bool | None
) -> None:
    with babbling(reply, again) as address:
        error = failure(client(f"{scheme}://{address}/v1/role", timeout_seconds=0.4))
    assert error.status is None
    assert error.may_have_acted is (scheme == "http")
    assert timed_out in (None, error.timed_out)


def test_a_connection_that_is_never_accepted_ends_in_time() -> None:
    # Given a full backlog
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        address = listening.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        error = failure(client(f"http://127.0.0.1:{address[1]}/v1/role", timeout_seconds=0.4))
        for each in waiting:
            each.close()
    assert error.timed_out


def test_a_host_name_with_a_dash_and_several_addresses(
    api: RoleApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a resolver that knows the name: nobody listens at its first address
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "my-host.example.com":
            return resolve(host, *arguments, **options)
        return [
            found
            for address in ("127.0.0.2", "127.0.0.1")
            for found in resolve(address, *arguments, **options)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    client(f"http://my-host.example.com:{api.port}/v1/role").delete(INSTANCE)

    assert api.deleted == {CUK}


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_kept_alive(certificates: Certificates, host: str, over_tls: bool) -> None:
    with RoleApi(host, tls=certificates.context() if over_tls else None) as api:
        role_api = client(api.url, ca_file=str(certificates.ca_file))
        for fault in (None, None, Status(400), None):
            api.fault = fault
            error = k2hr3_osnl.make_attempt(role_api, PORT).error
            assert (error is None) == (fault is None)
        assert (len(api.requests), api.connections) == (4, 1)


def test_a_connection_idle_for_4_seconds_is_not_used_again(
    api: RoleApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert k2hr3_osnl._Connection.idle_seconds == 4
    role_api = client(api.url)
    role_api.delete(INSTANCE)
    monkeypatch.setattr(k2hr3_osnl._Connection, "idle_seconds", 0)
    role_api.delete(INSTANCE)
    assert (len(api.requests), api.connections) == (2, 2)


def test_idle_connections_can_be_closed_and_are_opened_again(api: RoleApi) -> None:
    role_api = client(api.url, concurrency=2)
    role_api.delete(INSTANCE)
    role_api.close_idle()
    to_api = [each.raddr for each in psutil.Process().net_connections() if each.status != "LISTEN"]
    assert ("127.0.0.1", urllib.parse.urlsplit(api.url).port) not in to_api
    role_api.delete(INSTANCE)
    assert (len(api.requests), api.connections) == (2, 2)


@pytest.mark.parametrize("reset", [False, True])
def test_a_kept_alive_connection_that_the_api_closes_costs_one_attempt_at_most(
    api: RoleApi, reset: bool
) -> None:
    role_api = client(api.url)
    role_api.delete(INSTANCE)
    api.fault = CloseKeptAlive(reset)
    assert failure(role_api).timed_out is False
    role_api.delete(INSTANCE)


# TLS


@pytest.mark.parametrize(
    ("options", "shown", "insists", "reason"),
    [
        ({"ca_file": "CA"}, "server", False, ""),
        ({"ca_file": "CA", "cert_file": "CERT", "key_file": "KEY"}, "server", True, ""),
        ({"allow_self_signed_cert": True}, "unrelated_server", False, ""),
        ({"allow_self_signed_cert": True}, "other_host", False, ""),
        ({"allow_self_signed_cert": True}, "expired", False, ""),
        ({"ca_file": "CA"}, "server", True, "certificate required|Connection aborted"),
        ({"ca_file": "OTHER CA"}, "server", False, "CERTIFICATE_VERIFY_FAILED"),
        ({}, "server", False, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca_file": "CA"}, "unrelated_server", False, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca_file": "CA"}, "other_host", False, "'127.0.0.1' doesn't match"),
        ({"ca_file": "CA"}, "expired", False, "expired"),
    ],
)
@pytest.mark.matrix
def test_tls_to_the_role_api(
    certificates: Certificates, options: dict[str, Any], shown: str, insists: bool, reason: str
) -> None:
    files = certificates.files("osnl")
    with RoleApi(tls=certificates.context(shown, insists)) as api:
        role_api = client(api.url, **{name: files.get(of, of) for name, of in options.items()})
        if not reason:
            role_api.delete(PORT)
            assert api.deleted == {CUK}
            return
        error = failure(role_api)
        assert re.search(reason, str(error), re.S)
        assert (error.status, error.timed_out, api.requests) == (None, False, [])


@pytest.mark.parametrize(
    "options",
    [{"ca_file": "KEY"}, {"cert_file": "KEY"}, {"cert_file": "CERT", "key_file": "OTHER KEY"}],
)
def test_certificate_files_that_do_not_fit_are_a_wrong_setting(
    certificates: Certificates, options: dict[str, str]
) -> None:
    files = certificates.files("osnl")
    files["OTHER KEY"] = str(certificates.other_host.key_file)
    with pytest.raises(ConfigError, match=r"\[k2hr3\] .*PEM"):
        client("https://localhost/", **{name: files[file] for name, file in options.items()})


# Breaker

FAILS, TIMES_OUT = RoleApiError("503", 503), RoleApiError("time", timed_out=True)


@pytest.mark.parametrize(
    ("attempts", "probes"),
    [
        ([], False),
        ([FAILS], False),
        ([FAILS] * 2, False),
        ([FAILS] * 3, True),
        ([FAILS, FAILS, None, FAILS], False),
        ([FAILS, FAILS, None, FAILS, FAILS, FAILS], True),
        ([TIMES_OUT], True),
        ([TIMES_OUT, None], False),
    ],
)
def test_three_failures_in_a_row_or_one_timeout_ask_for_a_probe(
    attempts: list[RoleApiError | None], probes: bool
) -> None:
    breaker = Breaker(longest=60)
    for error in attempts:
        breaker.count_attempt(error, 0.1)
    assert breaker.is_probe_due(now=1000) is probes
    assert breaker.open is False


def test_a_probe_that_succeeds_leaves_it_closed_and_counts_from_zero() -> None:
    breaker = Breaker(longest=60)
    for _ in range(3):
        breaker.count_attempt(FAILS, 0.1)
    breaker.count_probe(None, now=1000, seconds=0.1)
    assert not breaker.open
    breaker.count_attempt(FAILS, 0.1)
    breaker.count_attempt(FAILS, 0.1)
    assert not breaker.is_probe_due(now=1000)


@pytest.mark.parametrize(
    ("longest", "pauses"),
    [(60, [1, 2, 4, 8, 16, 32, 60, 60]), (5, [1, 2, 4, 5, 5]), (1, [1, 1, 1])],
)
def test_while_open_probes_follow_after_growing_jittered_pauses(
    longest: int, pauses: list[int]
) -> None:
    breaker, now = Breaker(longest), 1000.0
    breaker.count_attempt(TIMES_OUT, 0.1)
    for pause in pauses:
        breaker.count_probe(FAILS, now, seconds=0.1)
        assert breaker.open
        assert not breaker.is_probe_due(now + pause / 2)
        now += min(1.5 * pause, longest)
        assert breaker.is_probe_due(now)
    # Then a success closes it, and the pauses begin anew
    breaker.count_probe(None, now, seconds=0.1)
    assert not breaker.open
    assert not breaker.is_probe_due(now)
    breaker.count_attempt(TIMES_OUT, 0.1)
    breaker.count_probe(FAILS, now, seconds=0.1)
    assert breaker.is_probe_due(now + 1.5)


@pytest.mark.parametrize(
    ("retry_after", "due"), [(0, 1.5), (-30, 1.5), (20, 20), (3600, 30), (float("inf"), 30)]
)
def test_retry_after_is_honoured_within_the_longest_pause(retry_after: float, due: float) -> None:
    breaker = Breaker(longest=30)
    breaker.count_probe(RoleApiError("503", 503, retry_after=retry_after), now=1000, seconds=0.1)
    assert not breaker.is_probe_due(1000 + due / 2)
    assert breaker.is_probe_due(1000 + due)


# --- Verdicts and attempts -----------------------------------------------------------------------

TOO_LONG = RoleApiError("431", 431)


@pytest.mark.parametrize(
    ("outcome", "fields", "limit", "verdict"),
    [
        (Attempted(None, 0.1), {}, 0, k2hr3_osnl.DONE),
        (Attempted(None, 0.1), {"attempts": 9, "last_failure": 10}, 1, k2hr3_osnl.DONE),
        (Attempted(None, 0.1), {"is_doubtful": True}, 0, k2hr3_osnl.DOUBTFUL),
        (Attempted(FAILS, 0.1), {"attempts": 9, "last_failure": 10}, 0, k2hr3_osnl.RETRY),
        (Attempted(FAILS, 0.1), {"attempts": 9, "last_failure": 9}, 10, k2hr3_osnl.RETRY),
        (Attempted(FAILS, 0.1), {"attempts": 3, "last_failure": 10}, 10, k2hr3_osnl.DEAD_LETTER),
        (Attempted(FAILS, 0.1), {"attempts": 2, "last_failure": 10}, 10, k2hr3_osnl.RETRY),
        (Attempted(TIMES_OUT, 60), {"attempts": 1}, 0, k2hr3_osnl.RETRY),
        (Attempted(TOO_LONG, 0.1), {"attempts": 1}, 0, k2hr3_osnl.DEAD_LETTER),
    ],
)
def test_an_outcome_leads_to_a_verdict(
    outcome: Any, fields: dict[str, Any], limit: float, verdict: Any
) -> None:
    delivery = k2hr3_osnl.Delivery(
        cast(Any, None), 1, b"", pika.BasicProperties(), POOL, 0.0, **fields
    )
    assert k2hr3_osnl.decide(delivery, outcome.error, limit) == verdict


def test_a_copy_keeps_what_the_sender_said_and_drops_what_would_harm() -> None:
    kept: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "r",
        "message_id": "m",
        "timestamp": 1767225600,
        "type": "t",
        "app_id": "a",
    }
    sent = pika.BasicProperties(
        headers={"CC": ["other"], "x-death": [{"count": 3}], "x-k2hr3-attempts": 9, "a": {"b": 1}},
        delivery_mode=1,
        user_id="lab",
        expiration="3600000",
        **kept,
    )
    delivery = k2hr3_osnl.Delivery(cast(Any, None), 1, b"", sent, POOL, 0.0, reason="x")
    copy = delivery.copy_properties()
    assert {name: getattr(copy, name) for name in kept} == kept
    assert (copy.delivery_mode, copy.user_id, copy.expiration) == (2, None, None)
    assert copy.headers == {
        "x-k2hr3-queue": POOL,
        "x-k2hr3-attempts": 0,
        "x-k2hr3-reason": "x",
    }


class Workers:
    """The monitor `Attempts`, stepped by a test: no threads, and a clock that the test sets."""

    def __init__(self, remembered: int = 10) -> None:
        self.now = 1000.0
        self.attempts = k2hr3_osnl.Attempts(Breaker(60), 30.0, remembered, 100, lambda: None)

    def submit(self, cuk: str = "", consumer: Any = None, **fields: Any) -> k2hr3_osnl.Delivery:
        deletion = Deletion(cuk or str(uuid.uuid4()), fields.pop("ips", ()))
        delivery = k2hr3_osnl.Delivery(
            consumer, 1, b"", pika.BasicProperties(), POOL, self.now, deletion=deletion, **fields
        )
        self.attempts.submit(delivery, self.now)
        return delivery

    def take(self) -> Any:
        return self.attempts.take(self.now)

    def report(self, job: Any, error: RoleApiError | None = None, seconds: float = 0.1) -> None:
        self.attempts.report(job, Attempted(error, seconds), self.now)

    def collect(self) -> k2hr3_osnl.Snapshot:
        return self.attempts.collect(self.now)


def test_due_and_fresh_deletions_are_taken_in_turns() -> None:
    workers = Workers()
    fresh = [workers.submit() for _ in range(4)]
    due = [workers.submit(is_retry=True) for _ in range(2)]
    taken = [workers.take() for _ in range(6)]
    assert [each for each in taken if each.is_retry] == due
    assert [each for each in taken if not each.is_retry] == fresh
    assert (
        {each.is_retry for each in taken[:2]}
        == {each.is_retry for each in taken[2:4]}
        == {True, False}
    )


def test_after_a_failure_one_job_at_a_time_until_its_result_is_collected() -> None:
    workers = Workers()
    for _ in range(4):
        workers.submit()
    first, second = workers.take(), workers.take()
    workers.report(first, FAILS)
    assert workers.take() is None  # the second is still under way
    workers.report(second, FAILS)
    assert workers.take() is None  # nobody knows the verdicts yet
    assert workers.collect().running == 0
    third = workers.take()
    assert workers.take() is None
    # Then a success lets all of them run again
    workers.report(third)
    assert workers.take() is not None


def test_a_result_that_is_not_collected_counts_as_running() -> None:
    workers = Workers()
    workers.submit()
    job = workers.take()
    assert workers.collect().running == 1
    workers.attempts.stop()
    workers.report(job)
    snapshot = workers.collect()
    assert (snapshot.running, snapshot.results) == (0, [(job, Attempted(None, 0.1))])


def test_three_failures_make_the_next_job_a_probe_and_its_failure_ends_all_others() -> None:
    workers = Workers()
    for _ in range(5):
        workers.submit()
    for _ in range(3):
        workers.report(workers.take(), FAILS)
        workers.collect()
    probe = workers.take()
    assert isinstance(probe, k2hr3_osnl.Probe)
    assert workers.take() is None
    retry = workers.submit(is_retry=True)
    workers.report(probe, FAILS)
    # Then what is fresh is skipped, now and later, and nothing is taken but the next probe
    fresh = workers.submit()
    snapshot = workers.collect()
    assert snapshot.in_trouble
    skipped = [job for job, outcome in snapshot.results if outcome == k2hr3_osnl.SKIP_IN_TROUBLE]
    assert len(skipped) == 3
    assert fresh in skipped
    assert workers.take() is None
    workers.now += 1.3
    probe = workers.take()
    assert isinstance(probe, k2hr3_osnl.Probe)
    workers.report(probe)
    assert not workers.collect().in_trouble
    assert workers.take() is retry


def test_an_error_that_no_retry_can_mend_tells_nothing_about_k2hr3() -> None:
    workers = Workers()
    for _ in range(4):
        workers.submit()
        workers.report(workers.take(), TOO_LONG)
        workers.collect()
    assert not isinstance(workers.submit(), k2hr3_osnl.Probe)
    assert isinstance(workers.take(), k2hr3_osnl.Delivery)


def test_while_k2hr3_does_not_keep_up_all_that_is_fresh_is_skipped() -> None:
    workers = Workers()
    late, retry = workers.submit(), workers.submit(is_retry=True)
    assert workers.collect().results == []
    workers.now += 29
    # Given that something fresh has waited all the time, though not the same, and that as many
    # wait as the broker gives out, so that nothing is added
    fresh = workers.submit()
    assert {workers.take(), workers.take()} == {late, retry}
    assert workers.collect().results == []
    workers.now += 2
    assert workers.collect().results == [(fresh, k2hr3_osnl.SKIP_LATE)]
    assert workers.collect().results == []
    # Then what comes meanwhile is skipped, too
    workers.now += 0.9
    fresh = workers.submit()
    assert workers.collect().results == [(fresh, k2hr3_osnl.SKIP_LATE)]
    # until nothing has come for a second
    workers.now += 1.1
    assert workers.collect().results == []
    workers.submit()
    assert workers.collect().results == []
    workers.now += 29
    assert workers.collect().results == []


@pytest.mark.parametrize(
    ("first", "seconds", "again"),
    [
        ({}, 0.1, False),
        ({}, 8.1, True),  # K2HR3 may have kept the member
        ({"attempts": 1, "is_retry": True}, 0.1, False),
        ({"is_doubtful": True}, 0.1, True),
        ({"ips": ("10.0.0.5",)}, 0.1, True),
    ],
)
def test_a_deletion_of_an_instance_that_was_removed_without_doubt_is_skipped(
    first: dict[str, Any], seconds: float, again: bool
) -> None:
    workers = Workers()
    workers.submit(CUK, **first)
    workers.report(workers.take(), seconds=seconds)
    workers.collect()
    second, retry = workers.submit(CUK), workers.submit(CUK, is_retry=True)
    taken = [workers.take(), workers.take()]
    assert retry in taken
    assert (second in taken) is again
    assert workers.collect().results == ([] if again else [(second, k2hr3_osnl.SKIP_REMOVED)])


def test_what_is_held_is_submitted_when_it_is_due() -> None:
    workers = Workers()
    retry = workers.submit(is_retry=True, due=1010)
    letter = workers.submit(copy_at=1010, verdict=k2hr3_osnl.DEAD_LETTER, reason="x")
    assert workers.collect().results == []
    assert workers.take() is None
    workers.now += 10
    assert workers.collect().results == [(letter, k2hr3_osnl.Skipped("x", k2hr3_osnl.DEAD_LETTER))]
    assert workers.take() is retry


def test_a_failed_deletion_whose_copy_fails_is_copied_again_until_it_is_due() -> None:
    workers = Workers()
    failed = workers.submit(copy_at=1001, due=1004, verdict=k2hr3_osnl.RETRY, reason="503")
    assert workers.collect().results == []
    workers.now += 1
    assert workers.collect().results == [(failed, k2hr3_osnl.Skipped("503", k2hr3_osnl.RETRY))]
    assert workers.take() is None
    workers.now += 3
    workers.attempts.submit(failed, workers.now)
    assert (workers.collect().results, workers.take()) == ([], failed)


def test_the_deliveries_of_one_consumer_are_taken_back() -> None:
    workers = Workers()
    one, other = object(), object()
    mine = [
        workers.submit(consumer=one),
        workers.submit(consumer=one, is_retry=True),
        workers.submit(consumer=one, is_retry=True, due=1010),
    ]
    kept = workers.submit(consumer=other)
    assert workers.attempts.take_back(one) == mine  # type: ignore[arg-type]
    workers.now += 10
    assert workers.collect().results == []
    assert [workers.take(), workers.take()] == [kept, None]


def test_the_watch_counts_what_left_the_retry_queue_and_nothing_else() -> None:
    watch = k2hr3_osnl.QueueWatch()
    looks = [
        # ready, consumers, copies confirmed before it, copies begun before its answer; missing
        ((7, 0, 0, 2), 0),  # nothing is known before the first look
        ((9, 0, 2, 2), 0),  # two copies arrived, though they may have been counted before
        ((12, 0, 5, 6), 0),
        ((10, 0, 6, 6), 2),  # at least two are gone: 12, and one copy that may have been in them
        ((0, 1, 6, 6), 0),  # somebody consumes them
        ((0, 0, 6, 6), 0),
        ((4, 0, 6, 6), 0),  # from another listener
        ((0, 0, 6, 6), 4),
    ]
    for (ready, consumers, confirmed, begun), missing in looks:
        state = k2hr3_osnl.QueueState(ready, consumers)
        assert watch.compare(state, confirmed, begun) == missing


def test_of_removed_instances_the_last_ones_are_remembered() -> None:
    workers = Workers(remembered=2)
    first, second, third = cuks(3)
    for cuk in (first, second, third):
        workers.submit(cuk)
        workers.report(workers.take())
        workers.collect()
    again, known = workers.submit(first), workers.submit(second)
    assert [workers.take(), workers.take()] == [again, None]
    assert workers.collect().results == [(known, k2hr3_osnl.SKIP_REMOVED)]


def test_doubts_are_ten_lines_a_minute_then_their_number(caplog: pytest.LogCaptureFixture) -> None:
    doubts = k2hr3_osnl.Doubts(100)
    for number in range(15):
        assert f"instance-{number}" not in doubts.told
        doubts.tell(f"instance-{number}", 1000.0 + number)
        assert f"instance-{number}" in doubts.told
    doubts.flush(1059.9)
    assert len(caplog.messages) == 10
    for now in (1060.1, 1061.0, 1200.0):
        doubts.flush(now)
    assert len(caplog.messages) == 11
    assert caplog.messages[-1].startswith("5 more dead letters: K2HR3 answered 204")


def test_doubts_that_wait_for_their_minute_to_end_are_logged_at_a_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = k2hr3_osnl.Listener(Config())
    for number in range(12):
        listener._doubts.tell(f"instance-{number}", time.monotonic())
    listener.stop()
    listener.run()
    assert caplog.messages[-1].startswith("2 more dead letters: K2HR3 answered 204")


# --- Notifications in, deletions out -------------------------------------------------------------

#: Service -> its payload for an instance, whose id has one of three spellings.
PAYLOADS_OF: dict[str, Callable[[str], dict[str, Any]]] = {
    "neutron": lambda cuk: port(cuk.upper(), [ADDRESS, "2001:db8::5"]),
    "nova": instance,
    "compute": lambda cuk: compute_instance(cuk.replace("-", "")),
}
DRIVERS = (("messagingv2", None), ("messaging", "gzip"), ("messagingv2", "bzip2"))


def add_presets(broker: Broker, sections: Sections, *services: str) -> None:
    """Add sources of these services to the settings, and make their exchanges."""
    with closing(broker.amqp()) as connection:
        for service in services:
            connection.channel().exchange_declare(SERVICES[service][0], "topic", durable=True)
            sections[f"{NOTIFICATIONS}:{service}"] = {}


@pytest.mark.matrix
def test_every_deletion_from_every_driver_is_made(broker: Broker, api: RoleApi) -> None:
    # Given three sources that share one pool, and services that send by each driver
    sections = quick(broker.url(), api)
    sections.update({f"{NOTIFICATIONS}:{service}": {} for service in SERVICES})
    expected: list[dict[str, Any]] = []

    def started(kind: tuple[str, tuple[str, str | None]]) -> tuple[str, Notifier]:
        service, (driver, compression) = kind
        exchange, topic, *_, publisher = SERVICES[service]
        notifier = notifiers.enter_context(
            Notifier(broker.url(), exchange, [topic], driver, publisher, compression=compression)
        )
        notifier.notify_many(noise())
        return service, notifier

    with contextlib.ExitStack() as notifiers, ThreadPoolExecutor(4) as threads:
        services = list(threads.map(started, itertools.product(SERVICES, DRIVERS)))
        with listening(sections):
            wait_until(lambda: len(broker.bindings(POOL)) == 3, what="three bindings")

            # When each deletes, among everyday events
            for service, notifier in services:
                event_type = SERVICES[service][2][0]
                host = {"host": [ADDRESS, "2001:db8::5"]} if service == "neutron" else {}
                for cuk in cuks(10):
                    notifier.notify_many([*noise(), (event_type, PAYLOADS_OF[service](cuk))])
                    expected.append({"extra": "openstack-auto-v1", "cuk": cuk, **host})
                assert notifier.errors == []

            # Then each has its DELETE, and nothing else has one
            wait_until(lambda: len(api.requests) >= len(expected), 30)
            broker.wait_for_depth(POOL, 0)
            assert broker.depth(RETRY) == broker.depth(DEAD) == Depth(0, 0)
    found = sorted((query(request) for request in api.requests), key=itemgetter("cuk"))
    assert found == sorted(expected, key=itemgetter("cuk"))


def test_any_exchange_and_default_queue_is_used_as_the_service_made_it(
    broker: Broker, api: RoleApi
) -> None:
    # Given services with each durability and queue type, each with its own exchange and topic
    kinds = [(False, False), (True, False), (False, True)]  # durable, quorum
    services = {
        f"{number}{pool}": (*kind, pool)
        for number, kind in enumerate(kinds)
        for pool in ("", "pool")
    }
    sections = quick(broker.url(), api)
    for name, (_, _, pool) in services.items():
        sections[f"{NOTIFICATIONS}:{name}"] = {
            "exchange": name,
            "topic": name,
            "pool": pool and f"own-{name}",
        }
    # When the listener starts before any of them
    with listening(sections, HURRIED) as listener, contextlib.ExitStack() as notifiers:
        wait_until(lambda: broker.queue(DEAD))
        listener.wait_for_log("404", count=len(services))
        # Then it creates none of what is the services'
        assert not services.keys() & broker.exchanges().keys()
        assert not {f"{name}.info" for name in services} & broker.queues().keys()
        # and hears each
        started = []
        for name, (durable, quorum, _) in services.items():
            service = Notifier(broker.url(), name, [name], durable=durable, quorum=quorum)
            notifiers.enter_context(service).notify(*noise()[0])
            started.append(service)
        for name, (_, _, pool) in services.items():
            if pool:
                wait_for_binding(broker, f"own-{name}")
        deleted = cuks(len(services))
        for service, cuk in zip(started, deleted):
            service.notify("port.delete.end", port(cuk, [ADDRESS]))
            assert service.errors == []
        wait_until(lambda: api.deleted == set(deleted), 20)
        for name, (durable, quorum, pool) in services.items():
            assert broker.exchanges()[name]["durable"] == (durable or quorum)
            queue = broker.queue(f"{name}.info")
            assert queue["durable"] == (durable or quorum)
            assert queue["type"] == ("quorum" if quorum else "classic")
            if pool:
                own = broker.queue(f"own-{name}")
                assert (own["durable"], own["type"]) == (True, "classic")
            else:
                broker.wait_for_depth(f"{name}.info", 0)


# --- The verdict table ---------------------------------------------------------------------------


@pytest.fixture
def blind(broker: Broker) -> str:
    """Transport URL of a user who can't consume the retry queue, so that what is there stays."""
    broker.add_user("blind", "secret", read=r"^(?!k2hr3_osnl\.retry$).*$")
    return broker.url("blind", "secret")


#: A word of the reason -> body, `compression` header, and attempts: none of what can't be read.
UNUSABLE: dict[str, tuple[bytes, Any, int]] = {
    "JSON": (b"<xml>port.delete.end</xml>", None, 0),
    "UUID": (notified("web-7f9c"), None, 0),
    "bz2": (zlib.compress(GOOD), BZ2, 0),
    "compression": (GOOD, ["gzip"], 0),
    "not sent": (notified(CUK, *(f"10.0.{n // 200}.{n % 200}" for n in range(1500))), None, 1),
}


@pytest.mark.matrix
def test_a_malformed_notification_becomes_a_dead_letter_with_a_reason(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    (cuk,) = cuks(1)
    for word, (body, compression, _) in UNUSABLE.items():
        sent = properties(compression)
        sent.message_id = word
        broker.publish(body, "neutron", "notifications.info", sent)
    neutron(cuk)
    with listening(quick(broker.url(), api)) as listener:
        wait_until(lambda: api.deleted == {cuk})
        broker.wait_for_depth(DEAD, len(UNUSABLE))
        broker.wait_for_depth(POOL, 0)
        assert broker.depth(RETRY) == Depth(0, 0)
        assert "Traceback" not in listener.log
        assert max(map(len, listener.log.splitlines())) < 1000
    assert [request.cuk for request in api.requests] == [cuk]
    for message in broker.messages(DEAD):
        word = str(message.properties.message_id)
        body, compression, attempts = UNUSABLE[word]
        assert message.body == body
        found = headers(message)
        reason = found.pop("x-k2hr3-reason")
        assert word in reason
        assert reason.isprintable()
        assert 10 < len(reason) <= 300
        if attempts:
            assert found.pop("x-k2hr3-first-failure") == found.pop("x-k2hr3-last-failure") > 0
        # (what is not a text may be something that pika can read and not write)
        kept = {"compression": compression} if isinstance(compression, str) else {}
        assert found == {"x-k2hr3-queue": POOL, "x-k2hr3-attempts": attempts, **kept}


@pytest.mark.matrix
def test_an_attempt_that_fails_moves_the_deletion_to_the_retry_queue(
    broker: Broker, blind: str, api: RoleApi, neutron: Callable[..., None]
) -> None:
    # Given failures with a success between them, so that K2HR3 is not taken for being in trouble
    failures: list[tuple[Fault, str, bool]] = [
        (Status(503), "503", False),
        (Status(403), "403", True),  # K2HR3 may have begun to delete
        (Reset(), "(?i)reset|abort|closed", True),
    ]
    with listening(quick(blind, api)):
        for number, (fault, word, is_doubtful) in enumerate(failures, 1):
            cuk, good = cuks(2)
            began = int(time.time())
            api.fault = fault
            fill(broker, POOL, [cuk], queue="forged", attempts=9, first_failure=17, reason="forged")
            broker.wait_for_depth(RETRY, number)
            broker.wait_for_depth(POOL, 0)
            api.fault = None
            neutron(good)
            wait_until(lambda good=good: good in api.deleted)  # type: ignore[misc]
            assert instances_in(broker, RETRY)[-1] == cuk
            found = headers(broker.messages(RETRY)[-1])
            assert re.search(word, found.pop("x-k2hr3-reason"))
            first, last = found.pop("x-k2hr3-first-failure"), found.pop("x-k2hr3-last-failure")
            assert began <= first == last <= time.time()
            doubt = {"x-k2hr3-doubt": "open"} if is_doubtful else {}
            assert found == {"x-k2hr3-queue": POOL, "x-k2hr3-attempts": 1, **doubt}
        assert broker.depth(DEAD) == Depth(0, 0)


def test_what_fails_for_too_long_becomes_a_dead_letter(broker: Broker, api: RoleApi) -> None:
    # Given the services' own queue, which is not named like the retry queue
    declare(broker, "notifications.info")
    api.refused_cuks.add(CUK)
    fill(broker, "notifications.info", [CUK])
    limits = {"retry_interval_seconds": 1, "dead_letter_after_seconds": 3}
    sections = quick(broker.url(), api, **limits)
    sections[NOTIFICATIONS]["pool"] = ""
    with listening(sections):
        broker.wait_for_depth(DEAD, 1, timeout=20)
        broker.wait_for_depth(RETRY, 0)
    found = headers(broker.messages(DEAD)[0])
    assert found["x-k2hr3-queue"] == "notifications.info"
    assert "400" in found["x-k2hr3-reason"]
    assert found["x-k2hr3-attempts"] == len(asked(api, [CUK])) >= 3
    assert found["x-k2hr3-last-failure"] - found["x-k2hr3-first-failure"] >= 2  # whole seconds
    assert broker.depth("notifications.info") == Depth(0, 0)


def test_a_retry_is_attempted_whatever_its_headers_and_source(broker: Broker, api: RoleApi) -> None:
    strange: list[dict[str, Any] | None] = [
        None,
        {},
        {"x-k2hr3-attempts": "many"},
        {"x-k2hr3-attempts": 10**9},
        {"x-k2hr3-attempts": -5, "x-k2hr3-last-failure": -5},
        {"x-k2hr3-attempts": [1]},
        {"x-k2hr3-last-failure": int(time.time()) + 10**6},
        {"x-k2hr3-last-failure": 2**62},
        {"x-k2hr3-queue": 17},
        {"x-k2hr3-first-failure": {}},
        {"x-delivery-count": 100},
    ]
    deleted = cuks(len(strange))
    # Given retries that no filter accepts, and one that is no notification
    declare(broker, RETRY)
    for sent, cuk in zip(strange, deleted):
        body = notification(port(cuk, [ADDRESS]), "port.gone", publisher_id="another")
        broker.publish(body, "", RETRY, pika.BasicProperties(headers=sent, delivery_mode=2))
    broker.publish(b"nothing", "", RETRY)
    with listening(quick(broker.url(), api, retry_interval_seconds=1)):
        wait_until(lambda: api.deleted == set(deleted), 30)
        broker.wait_for_depth(RETRY, 0)
        broker.wait_for_depth(DEAD, 1)


# A 204 that may have left a member behind


def doubtful(broker: Broker, count: int) -> list[dict[str, Any]]:
    """Wait for so many dead letters of deletions in doubt; return their headers."""
    broker.wait_for_depth(DEAD, count, timeout=30)
    broker.wait_for_depth(RETRY, 0)
    found = [headers(message) for message in broker.messages(DEAD)]
    for each in found:
        assert each["x-k2hr3-doubt"] == "done"
        assert "204, but may have kept a member" in each["x-k2hr3-reason"]
        assert each["x-k2hr3-queue"] == POOL
    return found


@pytest.mark.parametrize(
    ("kept", "attempts"),
    [(Kept(403), 2), (Kept(None), 2), (Kept(403, seconds=2), 2), (Kept(204, seconds=0.7), 1)],
    ids=["403", "reset", "time-out", "slow 204"],
)
def test_a_member_that_k2hr3_may_have_kept_is_one_dead_letter_for_a_person(
    broker: Broker, api: RoleApi, neutron: Callable[..., None], kept: Kept, attempts: int
) -> None:
    cuk, *good = cuks(4)
    for each in (cuk, *good):
        api.register(each, ADDRESS)
    sections = quick(broker.url(), api, timeout_seconds=1)
    assert k2hr3_osnl.DOUBTFUL_SECONDS == 8
    with listening(sections, "k2hr3_osnl.DOUBTFUL_SECONDS = 0.5") as listener:
        # Given three deletions of the instance, of which the first costs it its index only
        api.fault = kept
        neutron(cuk)
        wait_until(lambda: cuk in api.kept())
        api.fault = None
        neutron(cuk, cuk, *good)
        # Then all are done, and one letter asks for a person
        wait_until(lambda: api.deleted >= {cuk, *good}, 20)
        (letter,) = doubtful(broker, 1)
        assert 1 <= letter["x-k2hr3-attempts"] <= attempts  # of the deletion that was done first
        assert api.members().keys() == api.kept() == {cuk}
        listener.wait_for_log(f" WARNING dead letter instance={cuk}: K2HR3 answered 204")
        assert listener.stop() == 0
        assert re.search(" deleted=5 .* doubtful=1 ", listener.log)


def test_a_doubt_outlives_the_connection_also_where_the_instance_was_removed_meanwhile(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    # Given an attempt that costs an instance its index only, and a success after it
    api.register(CUK, ADDRESS)
    api.fault = Kept(None, seconds=2)
    sections = quick(broker.url(), api)
    sections["oslo_messaging_notifications"].update(event_type="", publisher_id="")
    whole, _ = k2hr3_osnl.sample_message("nova", Deletion(CUK))
    neutron(CUK)
    publish(broker, whole)
    with listening(sections) as listener:
        wait_until(lambda: api.under_way)
        api.fault = None
        broker.alarm(True)  # no copies
        try:
            listener.wait_for_log(f"deleted instance={CUK} host=all", 20)
            # When the connection is lost, and both come again
            close_connections(broker)
        finally:
            broker.alarm(False)
        # Then there is a letter
        broker.wait_for_depth(DEAD, 1, timeout=30)
        assert headers(broker.messages(DEAD)[0])["x-k2hr3-doubt"] == "done"


# --- No message is ever in none of the queues ----------------------------------------------------

#: Ends the program when a copy is confirmed and its original not yet acked.
KILLED_AFTER_COPY = """
from pika.adapters.blocking_connection import BlockingChannel
publish = BlockingChannel.basic_publish
def publish_and_die(*args, **kwargs):
    publish(*args, **kwargs)
    os.kill(os.getpid(), 9)
BlockingChannel.basic_publish = publish_and_die
"""
#: Copying goes on 1 s after each failure.
SHORT_PAUSE = "k2hr3_osnl.Publisher.longest_pause = 1.0"


@pytest.mark.parametrize(("source", "target"), [(POOL, RETRY), (RETRY, RETRY), (POOL, DEAD)])
def test_a_kill_between_copy_and_ack_loses_nothing(
    source: str, target: str, broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    api.refused_cuks = {CUK}
    declare(broker, RETRY)
    broker.publish(notified("none" if target == DEAD else CUK), "", source)
    sections = quick(broker.url(), api, retry_interval_seconds=1)
    # When it is killed there
    with listening(sections, KILLED_AFTER_COPY) as listener:
        assert listener.process.wait(20) == -9
    # Then original and copy are there
    for queue in (source, target):
        broker.wait_for_depth(queue, 2 if source == target else 1)
    # And the next run settles both
    api.refused_cuks.clear()
    with listening(sections):
        broker.wait_for_depth(POOL, 0)
        broker.wait_for_depth(RETRY, 0)
        broker.wait_for_depth(DEAD, 2 if target == DEAD else 0)
    assert target == DEAD or api.deletions[CUK] == 2


@pytest.fixture
def mute(broker: Broker) -> str:
    """Transport URL of a user who can't publish by the default exchange, so not copy."""
    broker.add_user("mute", "secret", write=r"^(?!amq\.default$).*$")
    return broker.url("mute", "secret")


@pytest.mark.parametrize("malformed", [False, True], ids=["retry", "dead letter"])
def test_what_may_not_be_copied_is_held_until_it_may(
    malformed: bool, broker: Broker, mute: str, api: RoleApi, neutron: Callable[..., None]
) -> None:
    cuk, good = cuks(2)
    api.refused_cuks.add(cuk)
    neutron("none" if malformed else cuk)
    with listening(quick(mute, api), SHORT_PAUSE) as listener:
        queue = DEAD if malformed else RETRY
        listener.wait_for_log(rf" ERROR .*{queue}.*amq\.default")
        broker.wait_for_depth(POOL, 0, 1)
        # others are not held up
        neutron(good)
        wait_until(lambda: api.deleted == {good})
        broker.wait_for_depth(POOL, 0, 1)
        assert total(broker, RETRY, DEAD) == 0
        # When it may, or need not, be copied any more
        if malformed:
            broker.set_permissions("mute")
            broker.wait_for_depth(DEAD, 1, timeout=20)
        else:
            api.refused_cuks.clear()
            wait_until(lambda: api.deleted == {good, cuk}, 20)
        broker.wait_for_depth(POOL, 0)
        assert total(broker, RETRY, DEAD) == malformed


@pytest.mark.parametrize("full", [RETRY, DEAD])
def test_what_one_queue_refuses_is_held_and_the_other_queue_still_used(
    full: str, broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    api.refused_cuks.add(CUK)
    declare(broker, full, {"x-max-length": 0, "x-overflow": "reject-publish"})
    first, second = (CUK, "none") if full == RETRY else ("none", CUK)
    with listening(quick(broker.url(), api, retry_interval_seconds=2), SHORT_PAUSE) as listener:
        neutron(first)
        listener.wait_for_log(f" ERROR .*{re.escape(full)}")
        neutron(second)
        wait_until(lambda: total(broker, DEAD if full == RETRY else RETRY) == 1)
        broker.wait_for_depth(POOL, 0, 1)
        assert broker.depth(full) == Depth(0, 0)
        # When the queue is deleted, then it is made anew and takes what was held
        broker.delete_queue(full)
        wait_until(lambda: total(broker, full) == 1, 20)
        broker.wait_for_depth(POOL, 0)
        # (a retry that is being moved is there twice)
        wait_until(lambda: total(broker, RETRY, DEAD) == 2)


def test_failed_copies_pause_all_for_longer_and_longer_and_are_one_error(
    broker: Broker, mute: str, api: RoleApi, neutron: Callable[..., None]
) -> None:
    neutron(*(f"none-{number}" for number in range(5)))
    sections = quick(mute, api, retry_interval_seconds=1)
    shorter = "k2hr3_osnl.Publisher.longest_pause = 4.0"
    with listening(sections, f"{HURRIED}\n{shorter}") as listener:
        pauses = listener.wait_for_log(r"(?<=held instead; next try in )\d+", 20, 4)
        assert pauses[:4] == ["1", "2", "4", "4"]
        broker.wait_for_depth(POOL, 0, 5)
        broker.set_permissions("mute")
        listener.wait_for_log(" INFO copies to .* are made again", 20)
        broker.wait_for_depth(DEAD, 5, timeout=20)
        broker.wait_for_depth(POOL, 0)
        assert len(re.findall(" ERROR ", listener.log)) == 1
    assert k2hr3_osnl.Publisher.longest_pause == 30


@pytest.fixture
def small_messages(broker: Broker) -> Iterator[Callable[[], None]]:
    """Has the broker refuse bodies of more than 20 kB from now on."""

    def limit(size: int) -> None:
        broker.evaluate(f"persistent_term:put(max_message_size, {size})")
        broker.evaluate(f"application:set_env(rabbit, max_message_size, {size})")

    yield partial(limit, 20_000)
    limit(1 << 27)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.matrix
def test_one_odd_message_stops_no_other(
    broker: Broker, api: RoleApi, small_messages: Callable[[], None], queue_type: str
) -> None:
    # Given odd messages of three kinds, too: done, failing and malformed; and a large failing one
    declare_neutron(broker, queue_type)
    odd_good, odd_failing, good = cuks(len(ODD_HEADERS)), cuks(len(ODD_HEADERS)), cuks(20)
    failing, large = cuks(2)
    for name, first, second in zip(ODD_HEADERS, odd_good, odd_failing):
        bodies = [notified(first), notified(second), name.encode()]
        broker.publish_many(bodies, "neutron", "notifications.info", ODD_HEADERS[name])
    publish(broker, notified(large) + b" " * 50_000, notified(failing), *map(notified, good))
    small_messages()
    api.refused_cuks = {*odd_failing, failing, large}
    # When
    with listening(quick(broker.url(), api)) as listener:
        # Then all that K2HR3 takes is made, all others are copied, and only the large one is held
        wait_until(lambda: {*good, *odd_good} <= api.deleted, 20)
        broker.wait_for_depth(DEAD, len(ODD_HEADERS))
        wait_until(lambda: total(broker, RETRY) == len(ODD_HEADERS) + 1, 20)
        broker.wait_for_depth(POOL, 0, 1)
        assert len(re.findall("connected to the broker", listener.log)) == 1
        for message in broker.messages(DEAD):
            assert {name for name in headers(message) if not name.startswith("x-k2hr3-")} <= {
                "x-delivery-count"
            }
        # and what fails is attempted again, and made as soon as it can be
        api.refused_cuks = set()
        wait_until(lambda: {*odd_failing, failing, large} <= api.deleted, 30)
        wait_until(lambda: total(broker, POOL, RETRY) == 0)
        assert re.search(f" ERROR no copy to {RETRY}.*(max size|message size)", listener.log)


@pytest.mark.parametrize("quorum", [False, True], ids=["classic first", "quorum first"])
def test_queues_of_an_earlier_run_are_used_as_they_are(
    quorum: bool, broker: Broker, api: RoleApi
) -> None:
    sections = quick(broker.url(), api, retry_interval_seconds=1)
    add_presets(broker, sections, "neutron")
    for is_quorum in (quorum, not quorum):
        sections[RABBIT]["rabbit_quorum_queue"] = is_quorum
        (cuk,) = cuks(1)
        api.refused_cuks.add(cuk)
        with listening(sections) as listener:
            delete_ports(broker, cuk, "none")
            wait_until(lambda: total(broker, RETRY) == 1)
            api.refused_cuks.clear()
            wait_until(lambda cuk=cuk: cuk in api.deleted)  # type: ignore[misc]
            broker.wait_for_depth(DEAD, 1 if is_quorum == quorum else 2)
            for queue in QUEUES:
                made = broker.queue(queue)
                assert made["durable"]
                assert made["arguments"] == (QUORUM if quorum else {"x-queue-type": "classic"})
            broker.wait_for_depth(RETRY, 0)
            broker.wait_for_depth(POOL, 0)
            assert " ERROR " not in listener.log


# --- An outage of K2HR3 --------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "doubts"), [(Status(503), 0), (Hang(), 4)], ids=repr)
def test_an_outage_costs_few_requests_and_after_it_all_are_deleted(
    broker: Broker, api: RoleApi, neutron: Callable[..., None], fault: Fault, doubts: int
) -> None:
    deleted = cuks(200)
    api.fault = fault
    neutron(*deleted)
    options: Any = {"concurrency": 4, "retry_interval_seconds": 3, "timeout_seconds": 1}
    with listening(quick(broker.url(), api, **options)):
        # Given that all moved to the retry queue, which is not consumed, and some probes failed
        broker.wait_for_depth(RETRY, 200, timeout=40)
        broker.wait_for_depth(POOL, 0)
        wait_until(lambda: sum(each.cuk not in deleted for each in api.requests) >= 3, 20)
        # Then few were attempted, as many at the first failure as may run at once, then one by one
        assert len(asked(api, deleted)) <= 3 + 4
        later_ones = list(api.requests)[4:]
        for earlier, later in zip(later_ones, later_ones[1:]):
            assert earlier.ended is not None
            assert earlier.ended <= later.begun
        for found in map(headers, broker.messages(RETRY)):
            attempted = found["x-k2hr3-attempts"] == 1
            assert ("x-k2hr3-first-failure" in found) is attempted
            assert ("x-k2hr3-last-failure" in found) is attempted
            assert found["x-k2hr3-reason"]
        # When K2HR3 is well again
        api.fault = None
        wait_until(lambda: set(deleted) <= api.deleted, 60)
        wait_until(lambda: total(broker, POOL, RETRY) == 0)
    assert total(broker, DEAD) <= doubts


# --- TLS to the broker ---------------------------------------------------------------------------


def serve(broker: Broker, served: Pair, pair: Pair) -> None:
    """Have the broker use another certificate from the next connection on."""
    for source, target in zip(pair, served):
        shutil.copy(source, target)
    broker.evaluate("ssl:clear_pem_cache()")


def over_tls(url: str, api: RoleApi, options: Mapping[str, str], files: Mapping[str, str]) -> Any:
    """Settings with TLS and these options, of which some name files."""
    sections = quick(url, api)
    sections[RABBIT]["ssl"] = "True"
    for name, text in options.items():
        sections[RABBIT][name] = files.get(text, text)
    return sections


CLIENT = {"ssl_ca_file": "CA", "ssl_cert_file": "CERT", "ssl_key_file": "KEY"}
EXTERNAL = {**CLIENT, "rabbit_login_method": "EXTERNAL"}
ANY_NAME = {"ssl_ca_file": "CA", "ssl_enforce_hostname_verification": "False"}


@pytest.mark.parametrize(
    ("options", "certificate", "user", "warnings"),
    [
        ({"ssl_ca_file": "CA"}, "server", "guest", 0),
        ({}, "unrelated_server", "guest", 1),
        (CLIENT, "server", "guest", 0),
        (EXTERNAL, "server", "", 0),
        (ANY_NAME, "other_host", "guest", 0),
    ],
    ids=["ca", "without-ca-it-warns", "client-certificate", "external-login", "another-host-name"],
)
@pytest.mark.matrix
def test_deletions_arrive_over_tls(
    broker: Broker,
    neutron: Callable[..., None],
    served: Pair,
    certificates: Certificates,
    api: RoleApi,
    options: dict[str, str],
    certificate: str,
    user: str,
    warnings: int,
) -> None:
    serve(broker, served, getattr(certificates, certificate))
    broker.add_user("osnl", uuid.uuid4().hex)  # nobody logs in with that password
    neutron(CUK)
    url = f"rabbit://{user + ':guest@' if user else ''}127.0.0.1:{broker.tls_port}/"
    with listening(over_tls(url, api, options, certificates.files("osnl"))) as listener:
        all_done(broker, api, [CUK])
        logins = broker.evaluate(
            "[[{user, {binary_to_atom(U)}}, S] ||"
            " [{user, U}, S] <-"
            " rabbit_networking:connection_info_all([user, ssl])]"
        )
        assert f"[{{user, {{{user or 'osnl'}}}}}, {{ssl, true}}]" in logins, logins
        lines = troubles(listener.log)
    assert len(lines) == warnings
    assert all("unverified" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "certificate", "reason"),
    [
        ({"ssl_ca_file": "OTHER CA"}, "server", "CERTIFICATE_VERIFY_FAILED"),
        ({"ssl_ca_file": "CA"}, "other_host", "not valid for '127.0.0.1'"),
        ({"ssl_ca_file": "CA"}, "expired", "expired"),
        (EXTERNAL, "server", "refused"),
    ],
    ids=["unrelated-ca", "another-host-name", "expired", "external-login-of-a-stranger"],
)
def test_a_refused_tls_connection_is_one_line(
    broker: Broker,
    served: Pair,
    certificates: Certificates,
    api: RoleApi,
    options: dict[str, str],
    certificate: str,
    reason: str,
) -> None:
    serve(broker, served, getattr(certificates, certificate))
    with Proxy(broker.tls_port) as proxy:
        url = f"rabbit://guest:guest@127.0.0.1:{proxy.port}/"
        with listening(over_tls(url, api, options, certificates.files("stranger"))) as listener:
            # When it tried three times, so two attempts have ended
            wait_until(lambda: proxy.connections >= 3, 30, "three attempts")
            (line,) = troubles(listener.log)
    assert reason in line


# --- Recovery -----------------------------------------------------------------------------------


def make_pool_again(broker: Broker) -> None:
    """Delete the pool queue, which cancels its consumer, and make it again of another type."""
    broker.delete_queue(POOL)
    with suppress(ChannelClosedByBroker):  # it was faster
        declare(broker, POOL, {"x-queue-type": "quorum"})


def close_connections(broker: Broker) -> None:
    # Not by the management API, which knows a connection only after some seconds. One that ends
    # by itself meanwhile is closed, too.
    closed = broker.evaluate(
        '[begin catch rabbit_networking:close_connection(P, "by a test"), P end'
        " || P <- rabbit_networking:connections()]"
    )

    def still_there() -> set[str]:
        connections = broker.evaluate("rabbit_networking:connections()")
        return pids.intersection(re.findall(r"<[\d.]+>", connections))

    pids = set(re.findall(r"<[\d.]+>", closed))
    wait_until(lambda: not still_there(), 20, "the connections to be closed")


@pytest.mark.parametrize("happens", [Broker.restart, close_connections, make_pool_again])
def test_recovers_with_deliveries_held(
    broker: Broker,
    api: RoleApi,
    neutron: Callable[..., None],
    happens: Callable[[Broker], None],
) -> None:
    # Given deletions of which one is under way and all others are held
    expected = cuks(10)
    api.fault = Slow(0.2)
    neutron(*expected)
    with listening(quick(broker.url(), api)) as listener:
        wait_until(lambda: api.deleted)
        assert broker.depth(POOL).ready == 0
        # When
        happens(broker)
        assert not set(expected) <= api.deleted
        # Then they are made, and so is what comes in afterwards
        later = cuks(2)
        neutron(*later)
        all_done(broker, api, [*expected, *later])
        lines = troubles(listener.log)
    lines = [line for line in lines if "was deleted, with all that it held" not in line]
    assert len(lines) == 1, lines


def test_recovers_from_a_deleted_retry_queue(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    # Given deletions that wait for their third attempt, held from the retry queue
    expected = cuks(3)
    api.refused_cuks = set(expected)
    neutron(*expected)
    with listening(quick(broker.url(), api, concurrency=3)) as listener:
        listener.wait_for_log(r"not deleted .* attempts=2", count=3)
        broker.wait_for_depth(RETRY, 0, 3)
        before = troubles(listener.log)
        # When
        broker.delete_queue(RETRY)
        api.refused_cuks = set()
        # Then
        all_done(broker, api, expected)
        lines = [
            line for line in troubles(listener.log)[len(before) :] if "not deleted" not in line
        ]
    words = ["cancelled the consumer", "was deleted, with all that it held.*set_policy"]
    assert len(lines) == len(words), lines
    assert all(re.search(word, line) for word, line in zip(words, lines)), lines


#: Erlang that deletes a queue as a broker does that is short of time: no consumer is told.
DELETE_UNTOLD = """
Name = rabbit_misc:r(<<"/">>, queue, <<"k2hr3_osnl">>),
case erlang:function_exported(rabbit_db_queue, delete, 2) of
    true -> rabbit_db_queue:delete(Name, normal);
    false -> rabbit_amqqueue:internal_delete(Name, <<"lab">>)
end"""


def test_recovers_from_a_deleted_queue_whose_consumer_was_not_cancelled(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    [cuk] = cuks(1)
    with listening(quick(broker.url(), api), HURRIED) as listener:
        # Given a consumer of a queue that is there no more, which nobody tells
        wait_until(lambda: broker.queue(POOL).get("consumers"))
        broker.evaluate(DELETE_UNTOLD)
        # When the listener looks, as each 30 s
        listener.wait_for_log("was deleted, with all that it held.*set_policy", 3 + 15)
        # Then it consumes the new queue
        neutron(cuk)
        all_done(broker, api, [cuk])
    broker.kill()  # with the process of the old queue


def test_an_outage_of_the_broker_is_one_line(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    neutron(CUK)
    # Given no host that takes connections, but one that counts them and resets them
    away = Proxy(broker.port)
    with Proxy(free_port()) as counted:
        url = broker.url(hosts=[f"127.0.0.1:{each.port}" for each in (away, counted)])
        with listening(quick(url, api)) as listener:
            wait_until(lambda: counted.connections >= 6, 30, "six attempts")
            (line,) = troubles(listener.log)
            assert "connecting again" in line
            # When one of them comes back
            away.start()
            # Then
            all_done(broker, api, [CUK])
            assert troubles(listener.log) == [line]
    away.stop()


# --- Stopping -----------------------------------------------------------------------------------


def stops_in_time(listener: ListenerProcess, timeout_seconds: float) -> None:
    """Send SIGTERM: the exit code is 0 within `timeout_seconds` + 1 s."""
    began = time.monotonic()
    assert listener.stop(timeout_seconds + 30) == 0
    assert time.monotonic() - began < timeout_seconds + 1 + SLACK
    assert "Traceback" not in listener.log


def nothing_lost(broker: Broker, api: RoleApi, expected: Iterable[str]) -> None:
    """Wait until each instance is deleted or its deletion lies in a queue."""
    wait_until(lambda: {*expected} <= api.deleted | {*instances_in(broker, *QUEUES)}, 10)


@pytest.mark.matrix
def test_stops_in_the_middle_of_a_load(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    expected = cuks(500)
    neutron(*expected)
    api.delay = 0.02
    sections = quick(broker.url(), api)
    sections[RABBIT]["rabbit_qos_prefetch_count"] = 10
    with listening(sections) as listener:
        wait_until(lambda: len(api.deleted) >= 20)
        assert broker.depth(POOL).unacked <= 10
        stops_in_time(listener, 2)
        requests = len(api.requests)
        assert requests < len(expected)
        nothing_lost(broker, api, expected)
        # What was deleted was acknowledged: running attempts ended and were settled
        assert {*instances_in(broker, *QUEUES)} == set(expected) - api.deleted
        assert api.most_at_once == 1
        assert len(api.requests) == requests


@pytest.mark.parametrize("fault", [Status(503), Hang()], ids=repr)
def test_stops_in_an_outage_of_the_role_api(
    broker: Broker, api: RoleApi, neutron: Callable[..., None], fault: Fault
) -> None:
    expected = cuks(50)
    neutron(*expected)
    api.fault = fault
    with listening(quick(broker.url(), api)) as listener:
        wait_until(lambda: api.under_way or total(broker, RETRY) >= 10)
        stops_in_time(listener, 2)
    nothing_lost(broker, api, expected)


def test_stops_while_connecting_to_a_host_that_does_not_answer(api: RoleApi) -> None:
    with Proxy(free_port()) as proxy:
        proxy.stall()
        hosts = ",".join([f"127.0.0.1:{proxy.port}"] * 3)
        with listening(settings(f"rabbit://{hosts}/", api.url, timeout_seconds=1)) as listener:
            wait_until(lambda: proxy.connections)
            stops_in_time(listener, 1)


def test_stops_while_a_copy_waits_on_a_stalled_connection(
    broker: Broker, api: RoleApi, neutron: Callable[..., None]
) -> None:
    first, second = expected = cuks(2)
    api.fault = Status(503)
    api.delay = 0.5
    with Proxy(broker.port) as proxy:
        url = broker.url(hosts=[f"127.0.0.1:{proxy.port}"])
        with listening(quick(url, api)) as listener:
            # Given a publishing connection that stalls after its first copy
            neutron(first)
            wait_until(lambda: broker.depth(RETRY).total)
            neutron(second)
            wait_until(lambda: any(each.cuk == second for each in api.requests))
            proxy.stall()
            listener.wait_for_log(f"not deleted instance={second}")
            stops_in_time(listener, 2)
    nothing_lost(broker, api, expected)


@pytest.mark.parametrize("heartbeat", [60, 0])
def test_an_embedded_listener_stops_in_time_though_the_broker_stalls(
    broker: Broker, api: RoleApi, tmp_path: Path, heartbeat: int
) -> None:
    declare_neutron(broker)
    with Proxy(broker.port) as proxy:
        sections = quick(broker.url(hosts=[f"127.0.0.1:{proxy.port}"]), api, timeout_seconds=2)
        sections[RABBIT]["heartbeat_timeout_threshold"] = heartbeat
        with embedded(tmp_path, sections, Endpoint(), 2 + 1 + SLACK):
            wait_for_binding(broker, POOL)
            proxy.stall()


@pytest.mark.slow
def test_an_error_in_the_thread_that_listens_is_no_good_end(api: RoleApi) -> None:
    # Given a tick that fails, in the pause after a failed connection
    change = "k2hr3_osnl.Reporter.tick = lambda self: 1 / 0"
    with listening(settings(NOBODY, api.url), change) as listener:
        assert listener.process.wait(20) == 1
        assert "ZeroDivisionError" in listener.log
        assert "stopped: " not in listener.log


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_while_no_broker_is_reachable(
    api: RoleApi, tmp_path: Path, kind: str
) -> None:
    address = str(tmp_path / "s") if kind == "path" else f"@{uuid.uuid4()}"
    with (
        closing(NotifySocket(address)) as notify,
        listening(settings(NOBODY, api.url), environment=notify.environment) as listener,
    ):
        notify.wait_for("^READY=1$")
        assert len(notify.messages) == 1
        assert "connecting" in notify.wait_for("^STATUS=", 2)
        notify.wait_for("^WATCHDOG=1$", 3)
        assert not any(message.startswith("STOPPING") for message in notify.messages)
        listener.process.send_signal(signal.SIGTERM)
        notify.wait_for("^STOPPING=1$")
        assert listener.process.wait(10) == 0
        assert sum("READY=1" in message for message in notify.messages) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    broker: Broker, api: RoleApi, neutron: Callable[..., None], number: signal.Signals
) -> None:
    expected = cuks(3)
    neutron(*expected)
    api.fault = Hang()
    sections = quick(broker.url(), api, timeout_seconds=60)
    with (
        closing(NotifySocket(f"@{uuid.uuid4()}")) as notify,
        listening(sections, environment=notify.environment) as listener,
    ):
        wait_until(lambda: api.under_way)
        # Given a listener that waits for its last attempt
        listener.process.send_signal(number)
        notify.wait_for("^STOPPING=1$")
        assert listener.process.poll() is None
        # When
        began = time.monotonic()
        listener.process.send_signal(number)
        # Then
        assert listener.process.wait(30) == 0
        assert time.monotonic() - began < SLACK
    nothing_lost(broker, api, expected)


def test_sighup_reopens_the_log_file_and_sigusr1_logs_the_counters(
    broker: Broker, api: RoleApi, neutron: Callable[..., None], tmp_path: Path
) -> None:
    expected = cuks(3)
    neutron(*expected)
    log, old = tmp_path / "log", tmp_path / "log.1"
    sections = quick(broker.url(), api)
    sections["DEFAULT"]["log_file"] = log
    with listening(sections) as listener:
        all_done(broker, api, expected)
        # When logrotate moved the file away
        log.rename(old)
        listener.process.send_signal(signal.SIGHUP)
        listener.process.send_signal(signal.SIGUSR1)
        # Then what follows stands in the new one
        wait_until(lambda: log.exists() and "deleted=3" in log.read_text())
        assert "deleted=3" not in old.read_text()
        assert old.read_text().count("deleted instance=") == 3
        # And where the folder is gone, it goes on without
        shutil.rmtree(tmp_path)
        listener.process.send_signal(signal.SIGHUP)
        more = cuks(1)
        neutron(*more)
        all_done(broker, api, more)
        listener.wait_for_log(str(log))
        stops_in_time(listener, 2)


# --- As a library --------------------------------------------------------------------------------

#: Run by an interpreter that finds nothing but the standard library and one more folder.
IMPORT = """
import logging, logging.handlers, signal, sys, threading
sys.path.append(sys.argv[1])
import pika, urllib3
logging.getLogger("k2hr3_osnl")

def state():
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    return ([signal.getsignal(number) for number in signal.valid_signals()],
            signal.pthread_sigmask(signal.SIG_BLOCK, []), threading.active_count(),
            [(logger.name, list(logger.handlers), logger.level) for logger in loggers])

before = state()
from k2hr3_osnl import Config, Endpoint, Listener
assert state() == before, (before, state())
"""


def test_importing_has_no_side_effects_and_needs_pika_and_urllib3_only(tmp_path: Path) -> None:
    for module in (pika, urllib3):
        shutil.copytree(Path(str(module.__file__)).parent, tmp_path / module.__name__)
    if not (tmp_path / "urllib3" / "packages" / "six.py").exists():  # taken out by Debian
        with suppress(ImportError):
            shutil.copy(str(importlib.import_module("six").__file__), tmp_path)
    shutil.copy(PROGRAM, tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class ServerEndpoint(Endpoint):
    """Knows another service's deletions, sent with another priority."""

    def error(self, notification: k2hr3_osnl.Notification) -> Deletion | None:
        server = notification.payload["server"]
        return Deletion(server["id"], tuple(server["addresses"])) if server["gone"] else None

    def warn(self, notification: k2hr3_osnl.Notification) -> Any:
        return notification.payload["what"]


def test_another_projects_endpoint_is_heard(broker: Broker, api: RoleApi, tmp_path: Path) -> None:
    sections = quick(broker.url(), api)
    sections[NOTIFICATIONS].update(
        exchange="openstack", event_type="^server.gone$", publisher_id="^cloud$"
    )
    gone, kept, of_neutron = cuks(3)
    with closing(broker.amqp()) as connection:
        connection.channel().exchange_declare("openstack", "topic")

    def tell(payload: Any, priority: str) -> None:
        body = notification(payload, "server.gone", publisher_id="cloud", priority=priority)
        publish(broker, body, exchange="openstack", key=f"notifications.{priority}")

    with embedded(tmp_path, sections, ServerEndpoint()) as listener:
        bound = {("openstack", f"notifications.{name}") for name in ("error", "warn", "info")}
        wait_until(lambda: set(broker.bindings(POOL)) == bound)
        # Given another shape with another priority, and the shapes known before
        for cuk, is_gone in ((gone, True), (kept, False)):
            tell({"server": {"id": cuk, "addresses": ["10.0.0.7"], "gone": is_gone}}, "error")
        tell(port(of_neutron, [ADDRESS]), "info")
        wait_until(lambda: api.deleted == {gone, of_neutron})
        # When the endpoint raises, or returns what is no deletion
        tell({}, "error")
        tell({"what": "this"}, "warn")
        broker.wait_for_depth(DEAD, 2)
        broker.wait_for_depth(POOL, 0)
        assert listener.counters["deleted"] == 2
    # Then each is a dead letter that tells so
    raised, returned = (headers(message)["x-k2hr3-reason"] for message in broker.messages(DEAD))
    assert "KeyError" in raised
    assert "server" in raised
    assert "this" in returned
    assert api.deleted == {gone, of_neutron}
    assert [request.host for request in api.requests if request.cuk == gone] == [("10.0.0.7",)]


# --- The command line ---------------------------------------------------------------------------

COMMANDS = ("listen", "drain", "check", "dump", "emit", "dead-letters", "delete")
PLACES = [
    "k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.conf",
    "/etc/k2hr3/k2hr3-osnl.conf",
    "/usr/local/etc/k2hr3/k2hr3_osnl.ini",
    "/usr/local/etc/k2hr3/k2hr3_osnl.conf",
    "/usr/local/etc/k2hr3/k2hr3-osnl.conf",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--nonsense", "usage: "),
        ("nonsense", "usage: "),
        ("-c", "usage: "),
        ("--config-file", "usage: "),
        ("-d loud", "usage: "),
        ("check -l loud", "usage: "),
        ("-f", "usage: "),
        ("listen more", "usage: "),
        ("check --config-fil x", "usage: "),
        ("delete", "are required: UUID$"),
        (f"delete - {ADDRESS}", "into the lines of standard input$"),
        *((f"dump --count {count}", "--count") for count in ("-1", "0", "9" * 30)),
    ],
)
def test_a_wrong_command_line_is_usage(command: Run, arguments: str, said: str) -> None:
    done = command(None, *arguments.split(), code=2)
    assert done.stdout == ""
    assert re.search(said, done.stderr)


@pytest.mark.slow
def test_help_tells_options_commands_exit_codes_and_environment(command: Run) -> None:
    assert command(None, "-v").stdout == f"k2hr3_osnl {k2hr3_osnl.__version__}\n"
    done = command(None, "--help")
    assert done.stderr == ""
    assert "[OPTIONS] [COMMAND [OPTIONS]]" in done.stdout.splitlines()[0]
    assert "listen by default" in done.stdout
    words = ["--config-file", "-d", "-l", "-f", "-v", *PLACES, "OS_<SECTION>__<OPTION>"]
    assert [word for word in words if word not in done.stdout] == []
    assert re.findall(r"^  (\d+) ", done.stdout, re.M) == ["0", "1", "2", "75", "78", "130"]
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +[A-Z]", done.stdout, re.M), name


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_command_with_an_example(command: Run, name: str) -> None:
    done = command(None, name, "--help")
    assert re.search(r"^example: .*k2hr3.osnl", done.stdout, re.M)
    assert "-c FILE" in done.stdout
    assert len(done.stdout.splitlines()) > 12


@pytest.mark.parametrize(("there", "missing"), [([], "pika"), (["pika"], "urllib3")])
def test_a_missing_package_is_one_line_that_names_it(
    command: Run, tmp_path: Path, there: list[str], missing: str
) -> None:
    # Given an interpreter that sees only what lies beside the program
    shutil.copy(PROGRAM, tmp_path)
    for name in there:
        package = Path(importlib.import_module(name).__file__ or "").parent
        (tmp_path / name).symlink_to(package)
    done = command(None, "--help", before=(sys.executable, "-S", tmp_path / PROGRAM.name), code=1)
    assert done.stdout == ""
    assert f"install the package python3-{missing}" in one_line(done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["missing/log", ""], ids=["no-such-folder", "a-folder"])
@pytest.mark.parametrize("given", ["settings", "command line"])
def test_a_log_file_that_cannot_be_written_is_a_settings_error(
    command: Run, tmp_path: Path, where: str, given: str
) -> None:
    log_file = tmp_path / where
    in_file = given == "settings"
    done = command(
        {"DEFAULT": {"log_file": log_file}} if in_file else {},
        *([] if in_file else ["-f", log_file]),
        code=78,
    )
    assert done.stdout == ""
    assert f"log_file = {log_file}" in one_line(done.stderr)
    assert ("k2hr3_osnl.ini" in done.stderr) == in_file


def test_files_before_and_after_the_command_are_layered(command: Run, tmp_path: Path) -> None:
    first, second, third = (
        write_settings(tmp_path / name, {NOTIFICATIONS: {"pool": name, **more}})
        for name, more in (("1", {"exchange": "own"}), ("2", {"topic": "own"}), ("3", {}))
    )
    sections = settings(NOBODY, "http://127.0.0.1:1/v1/role")
    arguments = ["-c", first, "-c", second, "check", "--json", "-c", third]
    done = command(sections, *arguments, code=1)
    (source,) = json.loads(done.stdout)[0]["effective"]["sources"]
    assert [source[name] for name in ("exchange", "topic", "pool")] == ["own", "own", "3"]


def test_flags_win_over_the_settings_file(api: RoleApi, tmp_path: Path) -> None:
    # Given a broker that refuses connections: an ERROR of ours, and more of pika's for debuggers
    sections = quick(f"rabbit://127.0.0.1:{free_port()}/", api)
    sections["DEFAULT"].update(
        debug_level="critical", libs_debug_level="warn", log_file=tmp_path / "unused"
    )
    log = tmp_path / "log"
    arguments = ["-d", "info", "listen", "-l", "debug", "-f", str(log)]
    with ListenerProcess(sections, *arguments) as listener:
        wait_until(lambda: "no broker reached" in log.read_text())
        stops_in_time(listener, 2)
        text = log.read_text()
        assert listener.log == "", "all goes to the file"
    assert not (tmp_path / "unused").exists()
    assert " INFO " in text
    assert " DEBUG " in text, "pika's"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "expected"), [("critical", set()), ("error", {"ERROR"}), ("info", {"ERROR", "INFO"})]
)
def test_a_log_level_drops_what_is_below(api: RoleApi, level: str, expected: set[str]) -> None:
    proxy = Proxy(free_port())
    sections = quick(f"rabbit://127.0.0.1:{proxy.port}/", api)
    with proxy, ListenerProcess(sections, "-d", level) as listener:
        wait_until(lambda: proxy.connections >= 2, what="an attempt that ended")
        assert set(re.findall(r"^[-\d]+ [:,\d]+ (\w+) ", listener.log, re.M)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("first", range(len(PLACES)), ids=PLACES)
def test_without_c_the_first_settings_file_that_exists_is_read(command: Run, first: int) -> None:
    # Given the first of these files and all that come after it, in folders of our own
    files = "".join(
        f"printf '[k2hr3]\\nconcurrency = none\\n' >{file}\n" for file in PLACES[first:]
    )
    own = "for etc in /etc /usr/local/etc; do mount -t tmpfs none $etc; mkdir $etc/k2hr3; done"
    script = f'{own}\n{files}exec "$@"'
    own_etc = ["unshare", "-rm", "/bin/sh", "-ec", script, "sh"]
    done = command(None, before=[*own_etc, sys.executable, PROGRAM], code=78)
    # Then its wrong value is what is complained of
    assert re.match(rf"k2hr3_osnl: (\./)?{re.escape(PLACES[first])}: ", done.stderr)


@pytest.fixture
def cloud(broker: Broker, api: RoleApi) -> Sections:
    """Settings for a cloud where all is well: exchange and queues are there, no listener runs."""
    with closing(broker.amqp()) as connection:
        channel = connection.channel()
        channel.exchange_declare("neutron", "topic", durable=True)
        for name in QUEUES:
            channel.queue_declare(name, durable=True)
        channel.queue_bind(POOL, "neutron", "notifications.info")
    sections = settings(broker.url(), api.url, retry_interval_seconds=2, max_retries=0)
    sections["DEFAULT"]["debug_level"] = "info"
    return sections


@pytest.fixture
def run(cloud: Sections, command: Run) -> Run:
    """Runs a command in that cloud."""
    return partial(command, cloud)


# --- drain --------------------------------------------------------------------------------------


def test_drain_makes_what_is_queued_and_every_retry_whether_due_or_not(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run
) -> None:
    fresh, waiting = cuks(5), cuks(3)
    cloud["k2hr3"]["retry_interval_seconds"] = 600
    fill(broker, POOL, fresh)
    now = int(time.time())
    fill(broker, RETRY, waiting, queue=POOL, attempts=9, first_failure=now - 60, last_failure=now)
    run("drain")
    assert asked(api, fresh + waiting) == sorted(fresh + waiting)
    assert all(depth.total == 0 for depth in broker.queues().values())
    run("drain")  # nothing to do is no failure


def test_drain_tries_each_retry_once_and_says_by_75_that_some_are_left(
    broker: Broker, api: RoleApi, run: Run
) -> None:
    waiting = cuks(6)
    api.refused_cuks = set(waiting[1:3])
    fill(broker, RETRY, waiting, queue=POOL, attempts=1, first_failure=1, last_failure=1)
    run("drain", code=75)
    assert asked(api, waiting) == sorted(waiting)
    assert set(instances_in(broker, RETRY)) == set(waiting[1:3])
    assert {headers(each)["x-k2hr3-attempts"] for each in broker.messages(RETRY)} == {2}


def test_drain_moves_the_rest_to_the_retry_queue_when_k2hr3_is_in_trouble(
    broker: Broker, api: RoleApi, run: Run
) -> None:
    fresh, waiting = cuks(30), cuks(3)
    api.fault = Status(503)
    fill(broker, POOL, fresh)
    fill(broker, RETRY, waiting, queue=POOL, attempts=1, first_failure=1, last_failure=1)
    run("drain", code=75)
    assert broker.depth(POOL).total == 0
    assert sorted(instances_in(broker, RETRY)) == sorted(fresh + waiting)
    assert len(api.requests) < 10
    # And the next one, with K2HR3 well again, makes all of them
    api.fault = None
    run("drain")
    assert api.deleted >= {*fresh, *waiting}
    assert broker.depth(RETRY).total == 0


def test_drain_ends_though_a_deletion_can_be_neither_made_nor_copied(
    broker: Broker, api: RoleApi, cloud: Sections
) -> None:
    # Given a K2HR3 that works, but for one deletion, and a retry queue that takes nothing
    api.refused_cuks = {CUK}
    fill(broker, POOL, [CUK])
    broker.delete_queue(RETRY)
    declare(broker, RETRY, {"x-max-length": 0, "x-overflow": "reject-publish"})
    cloud["k2hr3"]["timeout_seconds"] = 1
    change = "k2hr3_osnl.Listener.hold_seconds = 3\nsys.argv.append('drain')"
    with listening(cloud, change) as process:
        assert process.process.wait(30) == 75
        assert "neither deleted nor copied" in process.log
    assert instances_in(broker, POOL) == [CUK]


def test_drain_says_by_75_an_exchange_is_missing(broker: Broker, api: RoleApi, run: Run) -> None:
    broker.delete_exchange("neutron")
    fresh, waiting = cuks(2)
    fill(broker, POOL, [fresh])
    fill(broker, RETRY, [waiting], queue=POOL, attempts=1)
    done = run("drain", code=75)
    assert api.deleted == {fresh, waiting}
    assert "exchange neutron, notifications.info: 404" in done.stderr


def test_drain_stopped_by_a_signal_says_by_75_that_some_are_left(
    broker: Broker, api: RoleApi, cloud: Sections
) -> None:
    fresh = cuks(50)
    fill(broker, POOL, fresh)
    api.delay = 0.2
    with ListenerProcess(cloud, "drain") as process:
        process.wait_for_log("deleted instance")
        assert process.stop() == 75
        assert "Traceback" not in process.log
    broker.wait_for_depth(POOL, 50 - len(api.deleted))
    assert set(instances_in(broker, POOL)) == set(fresh) - api.deleted


def test_drain_ends_when_broker_or_queue_are_not_there_within_30_seconds(
    broker: Broker, cloud: Sections
) -> None:
    # Given: no broker at all, and a broker without the services' own queue
    nobody: Sections = {**cloud, NOTIFICATIONS: {"transport_url": NOBODY}}
    no_queue: Sections = {
        **cloud,
        NOTIFICATIONS: {"transport_url": broker.url(), "pool": "", "topic": "not_there"},
    }
    hurried = f"{HURRIED}\nsys.argv.append('drain')"
    with listening(nobody, hurried) as one, listening(no_queue, hurried) as other:
        began = time.monotonic()
        assert [one.process.wait(60), other.process.wait(60)] == [75, 75]
        assert time.monotonic() - began < 3 + 15
        assert "Traceback" not in one.log + other.log
    assert "not_there.info" not in broker.queues()


# --- check --------------------------------------------------------------------------------------


def rows(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """The lines of `check`: result, what, text."""
    found = [
        re.fullmatch(r"(ok|warn|fail) +([^:]+): (.*)", line) for line in done.stdout.splitlines()
    ]
    assert all(found), done.stdout
    return [(match[1], match[2], match[3]) for match in found if match]


def test_check_is_all_ok_where_a_listener_works(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run
) -> None:
    api.register(instance := cuks(1)[0], "10.0.0.5")
    add_presets(broker, cloud, "neutron", "nova")
    with ListenerProcess(cloud) as listener:
        listener.wait_for_log("connected")
        wait_until(lambda: consumed(broker), what="the consumer")
        before = broker.queues(), set(broker.exchanges())
        done = run("check", "--strict")
        as_json = run("check", "--strict", "--json")
        assert (broker.queues(), set(broker.exchanges())) == before
    found = rows(done)
    assert {row[0] for row in found} == {"ok"}, found
    texts = {what: text for _, what, text in found}
    assert "k2hr3_osnl.ini" in texts["settings"]
    assert broker.address in texts["broker"]
    assert re.search(r"RabbitMQ [34]\.\d+.*user guest", texts["broker"])
    # (of the retry queue it does not say that it is empty: a listener may hold what is not due)
    assert texts[f"queue {POOL}"] == texts[f"queue {RETRY}"] == "0 ready, 1 consumers"
    assert [request.method for request in api.requests] == ["DELETE"] * 2
    assert api.members() == {instance: {"10.0.0.5"}}
    # And what AMQP does not tell, the commands beside it do
    bindings = texts[f"binding of {POOL}"].partition("rabbitmqctl ")[2].partition(" |")[0]
    assert POOL in broker.ctl(*shlex.split(bindings))
    assert "set_policy --priority 10" in texts[f"policy of {RETRY}"]
    # And for machines the same, with the settings in effect
    same = json.loads(as_json.stdout)
    assert [(row["result"], row["what"]) for row in same] == [row[:2] for row in found]
    effective = same[0]["effective"]
    assert effective["k2hr3"]["api_url"] == api.url
    assert effective["rabbit"]["heartbeat_timeout_threshold"] == 60
    neutron, nova = effective["sources"]
    assert neutron["transport_url"] == broker.url().replace(":guest@", ":…@")
    assert (nova["exchange"], nova["event_type"]) == ("nova", r"^instance\.(delete\.end|update)$")


def make_again(broker: Broker, *queues: str, **kind: Any) -> None:
    """Delete queues and make them again as another kind."""
    with closing(broker.amqp()) as connection:
        for queue in queues:
            broker.delete_queue(queue)
            connection.channel().queue_declare(queue, **{"durable": True, **kind})


def unconsumed_default_queue(broker: Broker, api: RoleApi, sections: Sections) -> None:
    declare(broker, "notifications.info")
    broker.publish(b"{}", "", "notifications.info")


def nova_of_2_0_0(broker: Broker, api: RoleApi, sections: Sections) -> None:
    """The sources of the README's example for several services, as of version 2.0.0."""
    add_presets(broker, sections, "neutron", "nova")
    sections[f"{NOTIFICATIONS}:nova"] = {
        "event_type": r"^instance\.delete\.end$",
        "publisher_id": "^nova-(compute|api):.*$",
    }


def setting(section: str, name: str, value: str) -> Callable[..., None]:
    """A condition: another value of a setting, in which `{api}` and `{broker}` are replaced."""

    def change(broker: Broker, api: RoleApi, sections: Sections) -> None:
        sections[section][name] = value.format(api=api.url, broker=broker.address)

    return change


#: Name -> what makes it so, of the broker, the Role API and the settings.
CONDITIONS: dict[str, Callable[..., object]] = {
    "no listener": lambda broker, api, sections: None,
    "nova of 2.0.0": nova_of_2_0_0,
    "no exchange": lambda broker, api, sections: broker.delete_exchange("neutron"),
    "no queues": lambda broker, api, sections: list(map(broker.delete_queue, QUEUES)),
    "not durable": lambda broker, api, sections: make_again(broker, POOL, durable=False),
    "auto-delete": lambda broker, api, sections: make_again(broker, RETRY, auto_delete=True),
    "a stream": lambda broker, api, sections: make_again(
        broker, POOL, arguments={"x-queue-type": "stream"}
    ),
    "quorum queues": lambda broker, api, sections: make_again(broker, *QUEUES, arguments=QUORUM),
    "default queue": unconsumed_default_queue,
    "no pool": setting(NOTIFICATIONS, "pool", ""),
    "two waiting": lambda broker, api, sections: fill(broker, RETRY, cuks(2)),
    "three letters": lambda broker, api, sections: fill(broker, DEAD, cuks(3)),
    "no broker": setting(NOTIFICATIONS, "transport_url", NOBODY),
    "wrong password": setting(NOTIFICATIONS, "transport_url", "rabbit://guest:wrong@{broker}/"),
    "wrong host": setting(NOTIFICATIONS, "transport_url", "rabbit://guest:guest@{broker}/nowhere"),
    "not in delhost": lambda broker, api, sections: setattr(api, "fault", Status(400)),
    "another server": lambda broker, api, sections: setattr(api, "fault", Status(200)),
    "a reset": lambda broker, api, sections: setattr(api, "fault", Reset()),
    "a hang": lambda broker, api, sections: setattr(api, "fault", Hang()),
    "wrong path": setting("k2hr3", "api_url", "{api}s"),
    "unknown option": setting("k2hr3", "time_out_seconds", "5"),
}
#: What `check` says about them, as a regular expression.
FINDINGS = [
    ("no listener", "warn", f"queue {POOL}", "0 consumers.*no listener"),
    ("no listener", "warn", "sources", "only Neutron is heard.*made beforehand.*:nova]"),
    ("nova of 2.0.0", "warn", "sources", "instance.update is not: .*force-deleted.*accept both"),
    ("no exchange", "fail", "exchange neutron", "control_exchange.*driver"),
    *(("no queues", "warn", f"queue {name}", "missing.*listener makes it") for name in QUEUES),
    ("not durable", "warn", f"queue {POOL}", "not durable.*restart of the broker loses"),
    ("auto-delete", "warn", f"queue {RETRY}", "auto-delete.*delete the queue"),
    ("a stream", "warn", f"queue {POOL}", "a stream.*what comes while it runs"),
    ("quorum queues", "ok", f"queue {RETRY}", "^0 ready"),
    ("default queue", "warn", "queue notifications.info", "1 ready and no consumer.*grows until"),
    ("default queue", "warn", "queue notifications.info", "set pool to nothing.*max-length"),
    ("no pool", "warn", "queue notifications.info", "^missing; the service makes it"),
    ("two waiting", "warn", f"queue {RETRY}", "^2 "),
    ("three letters", "warn", f"queue {DEAD}", "^3 .*dead-letters"),
    ("no broker", "fail", "broker", "check transport_url, and that the broker runs"),
    ("wrong password", "fail", "broker", "; user or password is wrong$"),
    ("wrong host", "fail", "broker", "; the virtual host is wrong"),
    ("not in delhost", "fail", "Role API", "400: this host .*delhost role, or K2HR3"),
    ("another server", "warn", "Role API", "200; K2HR3 answers 204"),
    ("a reset", "fail", "Role API", "reset.*api_url"),
    ("a hang", "fail", "Role API", "time"),
    ("wrong path", "fail", "Role API", "404.*path of api_url"),
    ("unknown option", "warn", "settings", "time_out_seconds.*timeout_seconds"),
]


@pytest.mark.parametrize("name", CONDITIONS)
def test_check_names_what_is_wrong_and_what_to_do(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run, name: str
) -> None:
    CONDITIONS[name](broker, api, cloud)
    expected = [row[1:] for row in FINDINGS if row[0] == name]
    before = set(broker.queues()), set(broker.exchanges())
    is_failing = "fail" in {row[0] for row in expected}
    found = rows(run("check", code=int(is_failing)))
    for result, what, text in expected:
        assert [row for row in found if row[:2] == (result, what) and re.search(text, row[2])], (
            found
        )
    if name == "no listener":
        run("check", "--strict", code=1)
    assert (set(broker.queues()), set(broker.exchanges())) == before


def test_check_tells_tls_from_plain_ports(
    broker: Broker, certificates: Certificates, command: Run
) -> None:
    tls_url = broker.url(hosts=[f"127.0.0.1:{broker.tls_port}"])
    with RoleApi(tls=certificates.context()) as tls_api:
        to_tls = settings(tls_url, tls_api.url.replace("https:", "http:"))
        to_plain = settings(broker.url(), f"https://127.0.0.1:{broker.management_port}/")
        to_plain[RABBIT]["ssl"] = True
        for sections, said in (
            (to_tls, "if this port wants TLS"),
            (to_plain, "answers without TLS"),
        ):
            found = rows(command(sections, "check", code=1))
            failing = [text for result, _, text in found if result == "fail"]
            assert [said in text for text in failing] == [True, True]


def test_a_key_that_this_user_cannot_read_is_a_settings_error(
    command: Run, certificates: Certificates, tmp_path: Path
) -> None:
    key = tmp_path / "our.key"
    key.touch(mode=0)
    cert_file = certificates.server.cert_file
    sections: Sections = {"k2hr3": {"cert_file": cert_file, "key_file": key}}
    # Given a process without root's right to read everything
    before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, PROGRAM]
    done = command(sections, "check", before=before, code=78)
    assert re.search(rf"key_file = {key}: expected .*read by this user", one_line(done.stderr))


@pytest.mark.slow
def test_check_is_bounded_where_names_do_not_resolve(command: Run) -> None:
    # Given a name server that does not answer
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.9.9.9", 53))
        script = (
            "echo 'nameserver 127.9.9.9\noptions timeout:30' >resolv.conf\n"
            'mount --bind resolv.conf /etc/resolv.conf\nexec "$@"'
        )
        sections = settings("rabbit://a:b@broker.test/", "http://k2hr3.test/v1/role")
        sections["k2hr3"]["timeout_seconds"] = 60
        before = ["unshare", "-rm", "/bin/sh", "-ec", script, "sh", sys.executable, PROGRAM]
        began = time.monotonic()
        done = command(sections, "check", before=before, code=1)
        assert time.monotonic() - began < 20 + 10 + 3
    failed = {what: text for result, what, text in rows(done) if result == "fail"}
    assert "no answer within 20 s" in failed["broker"]
    assert "no answer within 10 s" in failed["Role API"]


@pytest.mark.parametrize(
    ("name", "queue"), [("auto-delete", RETRY), ("a stream", POOL), ("quorum queues", "")]
)
def test_the_log_names_a_queue_of_a_kind_that_loses(
    broker: Broker, api: RoleApi, cloud: Sections, name: str, queue: str
) -> None:
    CONDITIONS[name](broker, api, cloud)
    with ListenerProcess(cloud) as listener:
        wait_until(lambda: consumed(broker, RETRY))  # which comes last
        lines = troubles(listener.log)
    assert [line for line in lines if f" WARNING queue {queue} is a" in line] == lines
    assert len(lines) == bool(queue)


# --- dump ---------------------------------------------------------------------------------------


def test_dump_shows_what_a_listener_deletes(broker: Broker, api: RoleApi, cloud: Sections) -> None:
    wanted = cuks(3)
    # Given a second source whose exchange is missing, which stops neither
    cloud = {**cloud, f"{NOTIFICATIONS}:neutron": {}, f"{NOTIFICATIONS}:nova": {}}
    with ListenerProcess(cloud), ListenerProcess(cloud, "dump") as dumping:
        name = wait_until(
            lambda: next(iter(set(broker.queues()) - set(QUEUES)), ""), what="the queue of dump"
        )
        wait_until(lambda: broker.queue(name).get("consumers"), what="its consumer")
        queue = broker.queue(name)
        other = notified(cuks(1)[0]).replace(b"port.delete.end", b"port.update.end")
        first = notified(wanted[0], "10.0.0.5", "2001:db8::5")
        for body in (first, other, b"{}", *map(notified, wanted[1:])):
            broker.publish(body, "neutron", "notifications.info")
        wait_until(lambda: set(wanted) <= api.deleted, what="the listener's deletions")
        dumping.wait_for_log(wanted[2])
        dumping.process.send_signal(signal.SIGINT)
        assert dumping.process.wait(10) == 0
        missing, *lines = dumping.log.splitlines()
    assert re.search("^k2hr3_osnl: 404 .*no exchange 'nova'.*check its control_exchange", missing)
    shown = [json.loads(line) for line in lines]
    assert ["malformed" in line for line in shown] == [False, True, False, False]
    assert [line.get("instance") for line in shown if "delete" in line] == wanted
    # What it asked the API for is what dump showed
    assert {line["delete"] for line in shown if "delete" in line} == {
        urllib.parse.urljoin(api.url, request.target) for request in api.requests
    }
    assert queue["exclusive"]
    assert queue["arguments"]["x-max-length"] > 0
    assert set(broker.queues()) == set(QUEUES)


# --- emit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "addresses"),
    [("neutron", ["10.0.0.5", "2001:db8::5"]), ("nova", []), ("compute", [])],
)
def test_emit_publishes_a_deletion_that_the_listener_makes(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run, pattern: str, addresses: list[str]
) -> None:
    add_presets(broker, cloud, pattern)
    (cuk,) = cuks(1)
    exchange, topic = SERVICES[pattern][:2]
    bound = (exchange, f"{topic}.info")
    declare(broker, "beside it", bound_to=bound)
    with ListenerProcess(cloud) as listener:
        wait_until(lambda: bound in broker.bindings(POOL), what="a binding")
        ips = [argument for address in addresses for argument in ("--ip", address)]
        done = run("emit", pattern, "--instance", cuk.upper(), *ips)
        # Then the log says what emit promises
        promised = f"deleted instance={cuk}"
        assert promised in done.stdout
        listener.wait_for_log(promised)
    # and it was published as oslo.messaging does
    (message,) = broker.messages("beside it")
    assert json.loads(message.body)["oslo.version"] == "2.0"
    assert message.properties.delivery_mode == 2
    assert [(request.cuk, request.host) for request in api.requests] == [
        (cuk, tuple(addresses) or None)
    ]


def test_emit_creates_nothing_where_the_exchange_is_missing(broker: Broker, run: Run) -> None:
    broker.delete_exchange("neutron")
    before = set(broker.queues()), set(broker.exchanges())
    done = run("emit", "neutron", code=1)
    assert re.search("exchange 'neutron'.*check its control_exchange", one_line(done.stderr))
    assert (set(broker.queues()), set(broker.exchanges())) == before


@pytest.mark.parametrize(
    "arguments", [["neutron", "--instance", "no-uuid"], ["neutron", "--ip", "10.0.0.256"], ["nova"]]
)
def test_emit_refuses_what_no_listener_would_delete(
    broker: Broker, run: Run, arguments: list[str]
) -> None:
    done = run("emit", *arguments, code=1)
    hint = f"add [{NOTIFICATIONS}:nova]" if arguments == ["nova"] else ""
    assert hint in one_line(done.stderr)
    assert broker.depth(POOL).total == 0


# --- dead-letters -------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_stay(broker: Broker, run: Run) -> None:
    # Given one of ours, one that is malformed, and one whose texts a stranger wrote
    ours, strange = cuks(2)
    since: Any = {"first_failure": int(time.time()) - 7200, "reason": "K2HR3: 431", "doubt": "done"}
    fill(broker, DEAD, [ours], queue=POOL, attempts=4, **since)
    fill(broker, DEAD, [strange], queue="a\nb", attempts="\x1b[2J", reason="\x1b[2J\r\n" * 200)
    malformed = pika.BasicProperties(headers={"x-k2hr3-reason": "not JSON"})
    broker.publish_many([b'{"\xff'], "", DEAD, malformed)
    done = run("dead-letters")
    assert done.stderr == "k2hr3_osnl: 3 listed\n"
    first, second, third = done.stdout.splitlines()
    assert re.fullmatch(
        rf"instance={ours} host=10\.0\.0\.5 event_type=port\.delete\.end "
        rf"message_id=[0-9a-f-]{{36}} age_hours=2\.0 attempts=4 queue={POOL} "
        "reason=K2HR3: 431 result=listed",
        first,
    )
    assert re.search(rf"instance={strange} .* attempts=0 queue=a\?b reason=\?\[2J", second)
    assert len(second) < 700
    assert re.search(r"instance= host= .* age_hours=None .*reason=not JSON", third)
    assert done.stdout.replace("\n", "").isprintable()
    # And for machines the same, with the body
    broker.wait_for_depth(DEAD, 3)
    found = [json.loads(line) for line in run("dead-letters", "--json").stdout.splitlines()]
    assert [letter["instance"] for letter in found] == [ours, strange, ""]
    assert [found[0][name] for name in ("age_hours", "attempts", "queue")] == [2.0, 4, POOL]
    assert ours in found[0]["body"]
    assert found[2]["body"] == '{"\\xff'
    broker.wait_for_depth(DEAD, 3)
    kept = {"x-k2hr3-attempts": 4, "x-k2hr3-doubt": "done"}
    assert headers(broker.messages(DEAD)[0]).items() >= kept.items()
    # And no queue yet means no letters
    broker.delete_queue(DEAD)
    done = run("dead-letters")
    assert (done.stdout, done.stderr) == ("", "k2hr3_osnl: none\n")


def test_dead_letters_are_replayed_to_where_they_came_from(broker: Broker, run: Run) -> None:
    # Given letters from our queue, one that names a queue that is not ours, one that is done
    declare(broker, "notifications.info")
    forged, done_already, *ours = cuks(4)
    since = {"attempts": 4, "reason": "431", "first_failure": 1, "last_failure": 2}
    fill(broker, DEAD, [forged], queue="notifications.info", **since)
    fill(broker, DEAD, [done_already], queue=POOL, doubt="done", **since)
    fill(broker, DEAD, ours, queue=POOL, **since)
    done = run("dead-letters", "--replay", "--json")
    letters = map(json.loads, done.stdout.splitlines())
    assert {letter["instance"]: letter["result"] for letter in letters} == {
        forged: f"moved to {RETRY}",
        done_already: "left as done",
        **dict.fromkeys(ours, f"moved to {POOL}"),
    }
    assert done.stderr == f"k2hr3_osnl: 1 moved to {RETRY}, 1 left as done, 2 moved to {POOL}\n"
    assert instances_in(broker, DEAD) == [done_already]
    for queue, instances in {POOL: ours, RETRY: [forged]}.items():
        assert instances_in(broker, queue) == instances
        for message in broker.messages(queue):
            assert headers(message) == {"x-k2hr3-queue": queue}
            assert message.properties.delivery_mode == 2
    assert broker.depth("notifications.info").total == 0


def test_a_replayed_dead_letter_keeps_its_doubt(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run
) -> None:
    (cuk,) = cuks(1)
    fill(broker, DEAD, [cuk], queue=POOL, attempts=4, reason="431", doubt="open")
    run("dead-letters", "--replay")
    (message,) = broker.messages(RETRY)
    assert headers(message) == {"x-k2hr3-queue": POOL, "x-k2hr3-doubt": "open"}
    # so that a person is told when it is done
    add_presets(broker, cloud, "neutron")
    with ListenerProcess(cloud):
        doubtful(broker, 1)
    assert api.deleted == {cuk}


def test_dead_letters_that_cannot_be_moved_stay(broker: Broker, run: Run) -> None:
    lost, good = cuks(2)
    broker.delete_queue(POOL)
    fill(broker, DEAD, [lost], queue=POOL, reason="431")
    fill(broker, DEAD, [good], queue=RETRY, reason="431")
    done = run("dead-letters", "--replay", code=1)
    assert f"not moved (no queue takes {POOL}" in done.stdout
    assert done.stderr == f"k2hr3_osnl: 1 not moved, 1 moved to {RETRY}\n"
    broker.wait_for_depth(DEAD, 1)
    assert instances_in(broker, DEAD) == [lost]
    assert instances_in(broker, RETRY) == [good]


def test_a_letter_that_has_become_too_large_does_not_stop_the_others(
    broker: Broker, run: Run, small_messages: Callable[[], None]
) -> None:
    good = cuks(2)
    fill(broker, DEAD, good[:1], queue=POOL)
    broker.publish_many([b"x" * 200_000], "", DEAD, pika.BasicProperties(delivery_mode=2))
    fill(broker, DEAD, good[1:], queue=POOL)
    small_messages()
    run("dead-letters", "--replay", code=1)
    assert instances_in(broker, POOL) == good
    broker.wait_for_depth(DEAD, 1)


def test_the_letters_of_one_instance_are_dropped_and_no_others(broker: Broker, run: Run) -> None:
    one, *others = cuks(3)
    fill(broker, DEAD, [others[0], one, others[1], one], queue=POOL)
    # (what can't be moved would be dropped)
    run("dead-letters", "--replay", "--drop", code=2)
    run("dead-letters", "--drop", "--instance", "no-uuid", code=1)
    done = run("dead-letters", "--drop", "--instance", one)
    assert done.stderr == "k2hr3_osnl: 2 dropped\n"
    assert re.findall("instance=([0-9a-f-]+)", done.stdout) == [one, one]
    broker.wait_for_depth(DEAD, 2)
    assert instances_in(broker, DEAD) == others
    run("dead-letters", "--drop")
    assert broker.depth(DEAD).total == broker.depth(POOL).total == 0


def test_a_replay_that_is_killed_loses_nothing(broker: Broker, cloud: Sections, run: Run) -> None:
    letters = cuks(200)
    fill(broker, DEAD, letters, queue=POOL)
    with ListenerProcess(cloud, "dead-letters", "--replay") as replay:
        wait_until(lambda: broker.depth(POOL).ready > 20, what="the middle of the replay")
        replay.kill()
    wait_until(lambda: broker.depth(DEAD).unacked == 0, what="the broker to take back the rest")
    moved, left = instances_in(broker, POOL), instances_in(broker, DEAD)
    assert left, "the replay was over before it was killed"
    assert set(moved) | set(left) == set(letters)
    run("dead-letters", "--replay")
    assert set(instances_in(broker, POOL)) == set(letters)
    assert broker.depth(DEAD).total == 0


# --- delete -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("addresses", "left"),
    [([], set()), (["10.0.0.5"], {"2001:db8::5"}), (["10.0.0.5", "2001:db8::5"], set())],
)
def test_delete_takes_an_instance_or_some_of_its_addresses_out(
    api: RoleApi, command: Run, addresses: list[str], left: set[str]
) -> None:
    (cuk,) = cuks(1)
    api.register(cuk, "10.0.0.5", "2001:db8::5")
    done = command(settings(NOBODY, api.url), "delete", cuk, *addresses)
    host = ",".join(addresses) or "all"
    said = f"k2hr3_osnl: deleted instance={cuk} host={host}\n"
    assert (done.stdout, done.stderr) == ("", said)
    assert api.members().get(cuk, set()) == left


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[""], ["no-uuid"], [CUK, "10.0.0.256"], [CUK, ""]], ids=repr)
def test_delete_refuses_what_is_no_instance_or_address(
    api: RoleApi, command: Run, arguments: list[str]
) -> None:
    done = command(settings(NOBODY, api.url), "delete", *arguments, code=1)
    assert arguments[-1] in one_line(done.stderr)
    assert api.requests == []


@pytest.mark.slow
def test_delete_prints_the_lines_that_failed_to_be_fed_in_again(api: RoleApi, command: Run) -> None:
    good, bad = cuks(4), cuks(2)
    api.refused_cuks = set(bad)
    failing = [f"{bad[0]} 10.0.0.5", "no-uuid", bad[1]]
    part = f"{good[1]} 10.0.0.6 10.0.0.7"
    lines = [good[0], failing[0], part, failing[1], "", failing[2], *good[2:]]
    sections = settings(NOBODY, api.url, max_retries=1)
    done = command(sections, "delete", "-", given="\n".join(lines) + "\n", code=1)
    assert done.stdout.splitlines() == failing
    said = done.stderr.splitlines()
    assert [line for line in said if " deleted instance=" in line] == [
        f"k2hr3_osnl: deleted instance={cuk} host={host}"
        for cuk, host in zip(good, ("all", "10.0.0.6,10.0.0.7", "all", "all"))
    ]
    assert said[-1] == "k2hr3_osnl: 4 deleted, 3 not"
    assert len(said) == 8
    assert not api.deleted & set(bad)
    assert {request.host for request in api.requests if request.cuk == good[1]} == {
        ("10.0.0.6", "10.0.0.7")
    }
    # And with K2HR3 well again, what it printed is what it takes, in silence if wanted
    api.refused_cuks = set()
    again = done.stdout.replace("no-uuid\n", "")
    done = command(sections, "delete", "-", "-d", "warn", given=again)
    assert (done.stdout, done.stderr) == ("", "")
    assert api.deleted >= {*good, *bad}


def test_delete_takes_any_bytes_on_standard_input(api: RoleApi, command: Run) -> None:
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    sections = settings(NOBODY, api.url)
    done = command(sections, "delete", "-", given=b"\xff\xfe\n", environment=strict, code=1)
    assert (done.stdout, api.requests) == ("\ufffd\ufffd\n", [])  # two bytes that are no UTF-8


@pytest.mark.slow
def test_delete_spares_a_k2hr3_in_trouble_and_prints_all_that_is_left(
    api: RoleApi, command: Run
) -> None:
    instances = cuks(200)
    api.fault = Status(503)
    sections = settings(NOBODY, api.url, max_retries=1, retry_interval_seconds=1)
    done = command(sections, "delete", "-", given="\n".join(instances), code=1)
    assert done.stdout.splitlines() == instances
    assert len(api.requests) < 20


@pytest.mark.slow
def test_delete_goes_on_when_a_k2hr3_in_trouble_is_well_again(api: RoleApi, command: Run) -> None:
    instances = cuks(20)
    api.fault = Status(503)

    def repair() -> None:
        wait_until(lambda: len(api.requests) >= 5, 20, "the probes")
        api.fault = None

    repairing = threading.Thread(target=repair)
    repairing.start()
    sections = settings(NOBODY, api.url, max_retries=20, retry_interval_seconds=1)
    done = command(sections, "delete", "-", given="\n".join(instances))
    repairing.join()
    assert done.stdout == ""
    assert api.deleted >= set(instances)


@pytest.mark.slow
def test_a_slow_failure_counts_as_three_for_the_command_too(api: RoleApi) -> None:
    api.fault = Status(503)
    api.delay = 5.1
    breaker = Breaker(60)
    with pytest.raises(RoleApiError):
        k2hr3_osnl._delete(client(api.url), breaker, 0, INSTANCE)
    assert breaker.needs_probe


# --- delete --queue -----------------------------------------------------------------------------


def test_queued_deletions_are_made_by_the_listener_whatever_its_sources(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run
) -> None:
    whole, part, unknown = cuks(3)
    api.register(whole, "10.0.0.1", "10.0.0.2")
    api.register(part, "10.0.0.3", "10.0.0.4")
    lines = f"{whole.upper()}\n\n{part} 10.0.0.3\nno-uuid\n{whole} 10.0.0.256\n"
    done = run("delete", "--queue", "-", given=lines, code=1)
    assert done.stdout == f"no-uuid\n{whole} 10.0.0.256\n"
    assert done.stderr.splitlines()[-1] == "k2hr3_osnl: 2 queued, 2 not"
    run("delete", unknown, "--queue")
    assert (broker.depth(RETRY), api.requests) == (Depth(3, 0), [])
    for message in broker.messages(RETRY):
        assert message.properties.delivery_mode == 2
        assert headers(message)["x-k2hr3-queue"] == RETRY
    add_presets(broker, cloud, "compute")
    with ListenerProcess(cloud):
        wait_until(lambda: api.deleted == {whole, part, unknown})
        broker.wait_for_depth(RETRY, 0)
    assert api.members() == {part: {"10.0.0.4"}}
    assert broker.depth(DEAD) == Depth(0, 0)


def test_nothing_is_queued_while_more_than_100_deletions_wait(broker: Broker, run: Run) -> None:
    fill(broker, RETRY, cuks(101))
    done = run("delete", "--queue", "-", given=cuks(1)[0], code=75)
    assert done.stdout == ""
    assert "more than 100" in one_line(done.stderr)
    assert broker.depth(RETRY) == Depth(101, 0)
    # And none at all is no error
    broker.purge(RETRY)
    assert run("delete", "--queue", "-", given="").stdout == ""
    # And without a queue it fails, and makes none
    broker.delete_queue(RETRY)
    run("delete", "--queue", cuks(1)[0], code=1)
    assert RETRY not in broker.queues()


# --- For people ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["drain", "dead-letters --replay", "delete -"])
def test_progress_is_shown_on_a_terminal(
    broker: Broker, api: RoleApi, run: Run, arguments: str
) -> None:
    instances = cuks(10)
    if arguments != "delete -":
        fill(broker, DEAD if "--replay" in arguments else POOL, instances, queue=POOL)
    api.delay = 0.15
    ours, theirs = pty.openpty()
    run(*arguments.split(), given="\n".join(instances), stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert re.search(rb"\d+ done, \d+ left, \d+/s", shown), shown


@pytest.mark.parametrize(
    "arguments",
    ["dump", "emit neutron", "dead-letters", "dead-letters --replay", f"delete {uuid.uuid4()}"],
)
@pytest.mark.parametrize("name", ["no broker", "wrong password", "no queues"])
def test_an_error_is_one_line_and_an_exit_code(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run, arguments: str, name: str
) -> None:
    CONDITIONS[name](broker, api, cloud)
    api.fault = Reset()
    if name == "no queues":
        broker.delete_exchange("neutron")
    none_yet = name == "no queues" and arguments.startswith("dead-letters")
    one_line(run(*arguments.split(), code=0 if none_yet else 1).stderr)
    assert set(broker.queues()) <= set(QUEUES)


@pytest.mark.parametrize("arguments", ["dump", f"delete {uuid.uuid4()}", "check"])
def test_ctrl_c_ends_a_command_without_a_traceback(
    broker: Broker, api: RoleApi, cloud: Sections, arguments: str
) -> None:
    api.fault = Hang()
    cloud["k2hr3"]["timeout_seconds"] = 20
    with ListenerProcess(cloud, *arguments.split()) as process:
        wait_until(lambda: api.requests or set(broker.queues()) - set(QUEUES), what="its work")
        process.process.send_signal(signal.SIGINT)
        process.process.wait(10)
        assert "Traceback" not in process.log
        _, deletes, instance = arguments.partition("delete ")
        assert not deletes or f"{instance}\n" in process.log, "what is left, to be fed in again"


@pytest.mark.parametrize("drop", [[], ["--drop"]], ids=["list", "drop"])
def test_a_reader_that_has_seen_enough_ends_a_list_and_loses_no_letter(
    broker: Broker, run: Run, drop: list[str]
) -> None:
    fill(broker, DEAD, cuks(100), queue=POOL, reason="x" * 200)
    reader, writer = os.pipe()
    os.close(reader)  # as head ends when it has seen enough
    done = run("dead-letters", *drop, code=1, stdout=writer)
    os.close(writer)
    assert done.stderr == ""
    broker.wait_for_depth(DEAD, 100)


# --- Secrets ------------------------------------------------------------------------------------

PASSWORD = "s3cr3t@Passw0rd"
#: Ends of URLs, of which many are wrong.
ENDS = st.lists(st.sampled_from(["rabbit", "mysql", "://", "//", *":/@?#,[]h1 %"]))


@thorough(30)
@given(before=ENDS, after=ENDS)
def test_a_malformed_url_is_refused_without_its_password(
    tmp_path: Path, before: list[str], after: list[str]
) -> None:
    url = f"{''.join(before)}{SECRET}{''.join(after)}"
    for section in ("DEFAULT", NOTIFICATIONS):
        try:
            shown = repr(load(tmp_path, f"[{section}]\ntransport_url = {url}\n"))
        except ConfigError as error:
            shown = str(error)
            assert "expected rabbit://user:password@host" in shown or "unknown option" in shown
        assert SECRET not in shown


@pytest.mark.parametrize("refused", [False, True])
def test_no_password_shows_in_processes_logs_or_output(
    broker: Broker, api: RoleApi, cloud: Sections, run: Run, refused: bool
) -> None:
    broker.add_user("secretive", PASSWORD + ("!" if refused else ""))
    url = broker.url("secretive", PASSWORD)
    cloud[NOTIFICATIONS]["transport_url"] = url
    cloud["DEFAULT"].update(debug_level="debug", libs_debug_level="debug")
    with ListenerProcess(cloud) as listener:
        listener.wait_for_log("connecting again" if refused else "connected to the broker")
        shown = [listener.log, " ".join(psutil.Process(listener.process.pid).cmdline())]
        listener.stop()
        shown.append(listener.log)
    for arguments in (["check"], ["check", "--json"], ["emit", "neutron"], ["dead-letters"]):
        done = run(*arguments, code=int(refused), debug=True)
        shown += [done.stdout, done.stderr]
    broker.delete_user("secretive")
    assert re.search("pika", shown[0]), "the libraries logged nothing"
    assert [
        text for text in shown if PASSWORD in text or urllib.parse.quote(PASSWORD, safe="") in text
    ] == []
