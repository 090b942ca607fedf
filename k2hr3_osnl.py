#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["pika>=1.2", "urllib3>=1.26.5"]
# ///
"""K2HR3 OpenStack Notification Listener: takes deleted instances out of their K2HR3 roles.

It consumes Neutron's "port deleted" and Nova's "instance deleted" notifications from RabbitMQ
and calls DELETE on K2HR3's Role API for each:

    Neutron, Nova ─> exchange ─> pool queue ─> decode, filter ─> DELETE ─> K2HR3 Role API
                                                   │        ▲
                              <pool>.dead_letter <─┴─────>  └── <pool>.retry  (K2HR3 failed)

Every delivery gets one verdict: ignored, done, retry or dead letter. Nothing is acked before
what replaces it is confirmed, so a crash repeats a deletion, which is harmless.

Run it:    k2hr3_osnl.py -c /etc/k2hr3/k2hr3_osnl.ini
Embed it:  from k2hr3_osnl import Config, Endpoint, Listener
           Listener(Config.load("k2hr3_osnl.ini"), Endpoint()).run()
"""

from __future__ import annotations

import argparse
import bz2
import configparser
import copy
import dataclasses
import difflib
import email.utils
import http.client
import inspect
import io
import ipaddress
import json
import logging
import logging.handlers
import math
import os
import queue
import random
import re
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
import zlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Deque, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple, cast

import pika
import urllib3
from pika import exceptions as amqp
from pika.adapters.blocking_connection import BlockingChannel
from urllib3.connection import HTTPConnection, HTTPSConnection

__version__ = "2.0.0"
__all__ = [
    "Config",
    "ConfigError",
    "Deletion",
    "Endpoint",
    "Error",
    "Listener",
    "MalformedNotification",
    "Notification",
    "RoleApi",
    "RoleApiError",
]
LOG = logging.getLogger("k2hr3_osnl")

# --- Errors ------------------------------------------------------------------------------------


class Error(Exception):
    """What every error of this program is."""


class ConfigError(Error):
    """A setting is wrong; names file, section, option, value and what is accepted."""


class MalformedNotification(Error):
    """A notification that no attempt can ever make good: a dead letter."""


class RoleApiError(Error):
    """A failed attempt: what was asked, what came back, what to check.

    `status` is None without an answer; `retry_after` is in seconds, 0 where not asked for.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        timed_out: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status, self.timed_out, self.retry_after = status, timed_out, retry_after


# --- Settings ----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What an option accepts, in words; what reads its text, and tells whether the value fits."""

    accepts: str
    parse: Callable[[str], Any]
    fits: Callable[[Any], Any] = lambda value: True


def _whole(lowest: int, highest: int) -> Kind:
    return Kind(
        f"a whole number from {lowest} to {highest}",
        int,
        lambda number: lowest <= number <= highest,
    )


def _parse_rules(text: str) -> Rules:
    pairs = [pair.split(":", 1) for pair in text.split(",") if pair.strip()]
    return tuple((key.strip(), re.compile(regex.strip())) for key, regex in pairs)


def _is_readable(file: str) -> bool:
    if file:
        open(file, "rb").close()
    return True


def _is_writable(file: str) -> bool:
    place = file if os.path.exists(file) else os.path.dirname(file) or "."
    return file in STREAMS or (not os.path.isdir(file) and os.access(place, os.W_OK))


def _is_api_url(url: str) -> bool:
    urllib.parse.urlsplit(url).port  # noqa: B018  it raises where there is no such port
    return (
        re.fullmatch(
            r"https?://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[1-9]\d{0,4})?"
            r"(/[!-\"$->@-~]*)?",
            url,
        )
        is not None
    )


Regex = Optional["re.Pattern[str]"]
Rules = Tuple[Tuple[str, "re.Pattern[str]"], ...]
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "notset": logging.DEBUG,
}
STREAMS = ("sys.stderr", "sys.stdout", "")
LOG_FILE = Kind("sys.stderr, sys.stdout or a file that can be written", str, _is_writable)
FILE = Kind("a file that can be read", str, _is_readable)
LEVEL = Kind("one of " + ", ".join(LEVELS), str, LEVELS.__contains__)
NAME = Kind("a name of 1 to 200 characters", str, re.compile("[!-~]{1,200}").fullmatch)
POOL = Kind("a name of up to 200 characters, or nothing", str, re.compile("[!-~]{0,200}").fullmatch)
LOGIN = Kind(
    "one of AMQPLAIN, PLAIN, EXTERNAL", str, re.compile("amqplain|plain|external", re.I).fullmatch
)
BOOLEAN = Kind("true or false", lambda text: configparser.ConfigParser.BOOLEAN_STATES[text.lower()])
REGEX = Kind("a regular expression", lambda text: re.compile(text) if text else None)
RULES = Kind("key:regex,key:regex", _parse_rules)
API_URL = Kind("http[s]://host[:port][/path], without user or query", str, _is_api_url)
TRANSPORT_URL = Kind(
    "rabbit://user:password@host:port[,user:password@host:port]/virtual_host "
    "with user and password %-encoded",
    str,
    lambda url: parse_transport_url(url),
)
NO_URL = Kind(
    f"{TRANSPORT_URL.accepts}, or nothing", str, lambda url: not url or parse_transport_url(url)
)


def option(kind: Kind, default: Any, meaning: str) -> Any:
    """An entry of the option table, as the field of a section's dataclass."""
    return dataclasses.field(
        default=default,
        repr=kind not in (TRANSPORT_URL, NO_URL),
        metadata={"kind": kind, "meaning": meaning},
    )


@dataclass(frozen=True)
class Default:
    """``[DEFAULT]``: a section of its own, not inherited."""

    log_file: str = option(LOG_FILE, "sys.stderr", "sys.stderr, sys.stdout or a file (daily)")
    debug_level: str = option(LEVEL, "info", "log level of this program")
    libs_debug_level: str = option(LEVEL, "warn", "log level of pika and urllib3")
    transport_url: str = option(NO_URL, "", "used where the next section has none")


@dataclass(frozen=True)
class Source:
    """``[oslo_messaging_notifications]`` or one of its named sections: what is consumed."""

    transport_url: str = option(
        TRANSPORT_URL,
        "rabbit://guest:guest@127.0.0.1:5672/",
        "the brokers that OpenStack publishes to",
    )
    topic: str = option(NAME, "notifications", "routing keys are <topic>.<priority>")
    exchange: str = option(NAME, "neutron", "control_exchange of the publishing service")
    event_type: Regex = option(REGEX, re.compile(r"^port\.delete\.end$"), "which events count")
    publisher_id: Regex = option(REGEX, re.compile(r"^network.*$"), "whose events count")
    context: Rules = option(RULES, (), "what values of the request context must match")
    metadata: Rules = option(RULES, (), "what message_id and timestamp must match")
    payload: Rules = option(RULES, (), "what values of the payload must match")
    pool: str = option(POOL, "k2hr3_osnl", "our queue; empty: the services' <topic>.<priority>")
    name: str = "oslo_messaging_notifications"


@dataclass(frozen=True)
class Rabbit:
    """``[oslo_messaging_rabbit]``: what matters here of oslo.messaging's RabbitMQ driver."""

    ssl: bool = option(BOOLEAN, False, "TLS to the broker")
    ssl_ca_file: str = option(FILE, "", "CA of the broker; empty: encrypted but unverified")
    ssl_cert_file: str = option(FILE, "", "our certificate")
    ssl_key_file: str = option(FILE, "", "its key")
    ssl_enforce_hostname_verification: bool = option(BOOLEAN, True, "certificate must name host")
    rabbit_login_method: str = option(LOGIN, "AMQPLAIN", "AMQPLAIN and PLAIN are sent as PLAIN")
    rabbit_quorum_queue: bool = option(BOOLEAN, False, "create quorum queues")
    rabbit_qos_prefetch_count: int = option(_whole(0, 65535), 200, "notifications in hand; 0: 200")
    heartbeat_timeout_threshold: int = option(_whole(0, 3600), 60, "seconds; 0: no heartbeat")
    rabbit_retry_interval: int = option(_whole(1, 3600), 1, "first pause between connects, seconds")
    rabbit_retry_backoff: int = option(_whole(0, 3600), 2, "by how much it grows, seconds")
    rabbit_interval_max: int = option(_whole(1, 3600), 30, "the longest such pause, seconds")


@dataclass(frozen=True)
class K2hr3:
    """``[k2hr3]``: the Role API."""

    api_url: str = option(API_URL, "https://localhost/v1/role", "K2HR3's Role API")
    timeout_seconds: int = option(_whole(1, 600), 60, "an attempt ends within this")
    retry_interval_seconds: int = option(_whole(1, 600), 60, "longest pause between attempts")
    max_retries: int = option(_whole(0, 1000), 5, "how often the command delete tries again")
    allow_self_signed_cert: bool = option(BOOLEAN, False, "do not verify the API's certificate")
    ca_file: str = option(FILE, "", "CA of the API; empty: the system's")
    cert_file: str = option(FILE, "", "our certificate")
    key_file: str = option(FILE, "", "its key")
    concurrency: int = option(_whole(1, 256), 1, "attempts at once")
    dead_letter_after_seconds: int = option(
        _whole(0, 10**9), 0, "a deletion failing for so long is a dead letter; 0: never"
    )


#: Events of ports that are still there. (Nova's notifications say themselves who is deleted.)
LIVING_PORTS = ("port.create.end", "port.update.end")
NOTIFICATIONS, RABBIT = "oslo_messaging_notifications", "oslo_messaging_rabbit"
#: What the section of a named source brings if it has the name of a service. Nova's API and its
#: computes both publish deletions, so no publisher is left out there: the state decides.
PRESETS: dict[str, dict[str, Any]] = {
    f"{NOTIFICATIONS}:neutron": {
        "exchange": "neutron",
        "topic": "notifications",
        "event_type": re.compile(r"^port\.delete\.end$"),
        "publisher_id": re.compile(r"^network.*$"),
    },
    f"{NOTIFICATIONS}:nova": {
        "exchange": "nova",
        "topic": "versioned_notifications",
        "event_type": re.compile(r"^instance\.(delete\.end|update)$"),
        "publisher_id": None,
    },
    f"{NOTIFICATIONS}:compute": {
        "exchange": "nova",
        "topic": "notifications",
        "event_type": re.compile(r"^compute\.instance\.(force_)?delete\.end$"),
        "publisher_id": None,
    },
}
#: The option table: one dataclass a section. A named source's section is like the second.
OPTIONS: dict[str, Any] = {
    "DEFAULT": Default,
    NOTIFICATIONS: Source,
    RABBIT: Rabbit,
    "k2hr3": K2hr3,
}
#: Options that the predecessor or oslo.messaging know, accepted without effect.
WITHOUT_EFFECT = {
    NOTIFICATIONS: ("executor", "allow_requeue", "topics", "driver", "retry"),
    "k2hr3": ("requeue_on_error",),
}
#: Other names of options: the predecessor's, and older oslo.messaging's.
SAME_AS = {
    "retries": "max_retries",
    "rabbit_use_ssl": "ssl",
    "kombu_ssl_ca_certs": "ssl_ca_file",
    "kombu_ssl_certfile": "ssl_cert_file",
    "kombu_ssl_keyfile": "ssl_key_file",
}
#: Section -> option -> its text, and the file or variable it stands in.
Settings = Dict[str, Dict[str, Tuple[str, str]]]


@dataclass(frozen=True)
class Config:
    """All settings, checked: read by `load`, or made in code by a program that embeds this one."""

    default: Default = Default()
    sources: tuple[Source, ...] = (Source(),)
    rabbit: Rabbit = Rabbit()
    k2hr3: K2hr3 = K2hr3()
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def queue(self) -> str:
        """Our queue, after which the retry and the dead-letter queue are named."""
        return self.sources[0].pool or "k2hr3_osnl"

    @classmethod
    def load(cls, *files: str, environ: Mapping[str, str] = os.environ) -> Config:
        """Read settings files, later over earlier ones, and ``OS_<SECTION>__<OPTION>`` over them.

        As oslo.config reads them: the last of duplicate keys wins, surrounding quotes go, ``$$``
        is ``$``, ``%`` is nothing special.

        :raises ConfigError: a file can't be read, or a value is wrong
        """
        settings: Settings = {section: {} for section in OPTIONS}
        for file in files:
            _read_file(file, settings)
        variables = _read_environment(environ, settings)
        default = _section("DEFAULT", settings, Default())
        if default.transport_url:
            settings[NOTIFICATIONS].setdefault(
                "transport_url", settings["DEFAULT"]["transport_url"]
            )
        base = _section(NOTIFICATIONS, settings, Source())
        sources = tuple(
            _section(section, settings, dataclasses.replace(base, **PRESETS.get(section, {})))
            for section in settings
            if section.startswith(NOTIFICATIONS + ":")
        ) or (base,)
        for source in sources:
            if source.transport_url != base.transport_url:
                raise ConfigError(
                    f"{settings[source.name]['transport_url'][1]}: [{source.name}] "
                    f"transport_url: accepted is the one of [{NOTIFICATIONS}]; for "
                    "another broker run a second listener"
                )
            if source.pool in [f"{source.topic}.{priority}" for priority in PRIORITIES]:
                raise ConfigError(
                    f"{', '.join(files)}: [{source.name}] pool = {source.pool}: the "
                    "services' own queue; accepted is another name, or nothing"
                )
        # oslo.messaging lets the query of a transport URL override its driver's options
        url, origin = settings[NOTIFICATIONS].get("transport_url", ("", ""))
        for name, text in urllib.parse.parse_qsl(url.partition("?")[2]):
            settings[RABBIT][name] = text, f"{origin}, query of transport_url"
        rabbit = _section(RABBIT, settings, Rabbit())
        k2hr3 = _section("k2hr3", settings, K2hr3())
        try:  # the files of TLS, which only fit together
            parse_transport_url(base.transport_url, rabbit)
            RoleApi(k2hr3)
        except ConfigError as error:
            raise ConfigError(f"{', '.join(files)}: {error}") from None
        return cls(
            default,
            sources,
            rabbit,
            k2hr3,
            (*files, *variables),
            (
                *_unknown_options(settings),
                *_overruled_options(settings, base),
                *_risks(sources, rabbit, k2hr3, files),
            ),
        )


def _put(settings: Settings, section: str, name: str, text: str, origin: str) -> None:
    """Set an option's text as oslo.config reads it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    settings[section][SAME_AS.get(name, name)] = text.replace("$$", "$"), origin


def _read_file(file: str, settings: Settings) -> None:
    parser = configparser.ConfigParser(
        interpolation=None, strict=False, default_section="\0", empty_lines_in_values=False
    )
    try:
        with open(file, encoding="utf-8-sig") as lines:
            parser.read_file(lines)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        # configparser's own text quotes the line, password and all
        errors = getattr(error, "errors", None) or [(getattr(error, "lineno", 0), "")]
        what = f"line {errors[0][0]} is no option = value" if errors[0][0] else str(error)
        raise ConfigError(
            f"{file}: {what}: accepted is a text file of [section] and option = value"
        ) from None
    for section in parser.sections():
        settings.setdefault(section, {})  # a named source may inherit everything
        for name, text in parser.items(section):
            _put(settings, section, name, text, file)


def _read_environment(environ: Mapping[str, str], settings: Settings) -> list[str]:
    """Put in what the environment says; returns which variables these were."""
    sections = {f"OS_{section}".upper(): section for section in settings}
    origins = []
    for variable, text in environ.items():
        prefix, mark, name = variable.upper().partition("__")
        if mark and prefix in sections:
            origins.append(f"environment variable {variable}")
            _put(settings, sections[prefix], name.lower(), text, origins[-1])
    return origins


def _section(section: str, settings: Settings, base: Any) -> Any:
    """`base`, the dataclass of a section, with what the settings say."""
    values: dict[str, Any] = {"name": section} if isinstance(base, Source) else {}
    for field in dataclasses.fields(base):
        if field.metadata and field.name in settings[section]:
            kind, (text, origin) = field.metadata["kind"], settings[section][field.name]
            try:
                values[field.name] = kind.parse(text)
                if not kind.fits(values[field.name]):
                    raise ValueError
            except (ValueError, LookupError, ArithmeticError, OSError, re.error, ConfigError):
                shown = re.sub("//.*@", "//…@", " ".join(text.split()))
                if not field.repr:  # a password, wherever it stands
                    shown = shown.partition(":")[0] + ":…"
                raise ConfigError(
                    f"{origin}: [{section}] {field.name} = {shown}: accepted is {kind.accepts}"
                ) from None
    return dataclasses.replace(base, **values)


def _unknown_options(settings: Settings) -> Iterable[str]:
    for section, given in settings.items():
        table = section.partition(":")[0]
        if table in WITHOUT_EFFECT:
            known = [field.name for field in dataclasses.fields(OPTIONS[table]) if field.metadata]
            for name in given.keys() - {*known, *WITHOUT_EFFECT[table]}:
                near = difflib.get_close_matches(name, known, 1, 0.0)[0]
                yield f"{given[name][1]}: [{section}] {name}: unknown; the nearest known is {near}"


def _overruled_options(settings: Settings, base: Source) -> Iterable[str]:
    for section in settings.keys() & PRESETS.keys():
        for name, value in PRESETS[section].items():
            if (
                name in settings[NOTIFICATIONS]
                and name not in settings[section]
                and getattr(base, name) != value
            ):
                yield (
                    f"{settings[NOTIFICATIONS][name][1]}: [{NOTIFICATIONS}] {name}: not used by "
                    f"[{section}], which has its own; set it in that section to change it"
                )


def _risks(
    sources: Iterable[Source], rabbit: Rabbit, k2hr3: K2hr3, files: Iterable[str]
) -> Iterable[str]:
    if rabbit.ssl and not rabbit.ssl_ca_file:
        yield f"[{RABBIT}] ssl without ssl_ca_file: encrypted but unverified"
    if k2hr3.allow_self_signed_cert:
        yield "[k2hr3] allow_self_signed_cert: any server is trusted; see ca_file"
    for source in sources:
        for event_type in filter(partial(_matches, source.event_type), LIVING_PORTS):
            yield (
                f"[{source.name}] event_type accepts {event_type}: living instances would lose "
                "their rights"
            )
    for file in files:
        if os.stat(file).st_mode & 0o004:
            yield f"{file}: can be read by everyone, and may hold a password: chmod o-r"


def tls_context(
    options: str, ca_file: str, cert_file: str, key_file: str, verify: bool
) -> ssl.SSLContext:
    """A client's TLS context.

    :param options: the names of the three files' options, for the error
    :raises ConfigError: the files can't be used
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(file for file in (ca_file, cert_file, key_file) if file)
        raise ConfigError(
            f"{options} = {files}: {error}: accepted are PEM files, without pass phrase"
        ) from None
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# --- Transport ---------------------------------------------------------------------------------

_TRANSPORT = re.compile(r"(?:rabbit|kombu|amqp)://(?P<hosts>[^/?]+)/?(?P<path>[^?]*)(?:\?.*)?")
_HOST = re.compile(
    r"(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?(?:\[(?P<ipv6>[\da-fA-F:.%]+)\]|"
    r"(?P<name>[^\[\]:@\s]+))(?::(?P<port>[1-9]\d{0,4}))?"
)


def parse_transport_url(url: str, rabbit: Rabbit = Rabbit()) -> list[pika.ConnectionParameters]:
    """Connection parameters for each host of a transport URL; they are alternatives.

    https://docs.openstack.org/oslo.messaging/latest/reference/transport.html

    :raises ConfigError: another form; the URL itself is not repeated, it holds a password
    """
    parts = _TRANSPORT.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")] if parts else []
    tls = rabbit.ssl and tls_context(
        f"[{RABBIT}] ssl_ca_file, ssl_cert_file, ssl_key_file",
        rabbit.ssl_ca_file,
        rabbit.ssl_cert_file,
        rabbit.ssl_key_file,
        verify=bool(rabbit.ssl_ca_file),
    )
    if tls and not rabbit.ssl_enforce_hostname_verification:
        tls.check_hostname = False
    found = []
    for host in hosts or [None]:
        if parts is None or host is None or int(host["port"] or 5672) > 65535:
            raise ConfigError(f"transport_url: accepted is {TRANSPORT_URL.accepts}")
        name = host["ipv6"] or host["name"]
        user, password = (
            urllib.parse.unquote(text)
            for text in (
                host["user"] or "guest",
                host["password"] or ("" if host["user"] else "guest"),
            )
        )
        found.append(
            pika.ConnectionParameters(
                host=name,
                port=int(host["port"] or 5672),
                virtual_host=urllib.parse.unquote(parts["path"]) or "/",
                credentials=pika.credentials.ExternalCredentials()
                if rabbit.rabbit_login_method.upper() == "EXTERNAL"
                else pika.PlainCredentials(user, password),
                heartbeat=rabbit.heartbeat_timeout_threshold,
                ssl_options=pika.SSLOptions(tls, name) if tls else None,
                socket_timeout=5,
                stack_timeout=5,  # seconds to accept, negotiate TLS and log us in
                client_properties={"connection_name": f"k2hr3_osnl on {socket.gethostname()}"},
            )
        )
    return found


def connect(
    hosts: list[pika.ConnectionParameters], give_up: Callable[[], bool] = lambda: False
) -> pika.BlockingConnection:
    """Connect to the first host that answers, tried in shuffled order as oslo.messaging does.

    :param give_up: asked before each host
    :raises Error: none answered; names each and why
    """
    problems = []
    for host in random.sample(hosts, len(hosts)):
        try:
            if not give_up():
                return pika.BlockingConnection(host)
        except Exception as error:  # pika lets through what TLS, sockets and resolvers raise
            problems.append(f"{host.host}:{host.port}: {explain(error)}")
    raise Error("no broker reached: " + "; ".join(problems))


def explain(error: BaseException | None) -> str:
    """One line about an error of pika's: what came back and what to check."""
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.ProbableAccessDeniedError)):
        return f"refused: check user, password and virtual host of transport_url ({error})"
    if isinstance(error, (amqp.ConnectionClosed, amqp.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text!s}"
    if isinstance(error, Error):
        return str(error)
    return " ".join(repr(error).split())[:300]


def refusal(
    connection: pika.BlockingConnection, request: Callable[[BlockingChannel], Any]
) -> amqp.ChannelClosedByBroker | None:
    """Make a request on a channel of its own, since the broker closes it where it refuses."""
    try:
        with connection.channel() as channel:
            request(channel)
    except amqp.ChannelClosedByBroker as error:
        return error
    return None


def look_at(
    connection: pika.BlockingConnection, queue: str
) -> tuple[int, int, amqp.ChannelClosedByBroker | None]:
    """How many messages are ready in a queue, its consumers, and how the broker refused to tell."""
    try:
        with connection.channel() as channel:
            found: Any = channel.queue_declare(queue, passive=True).method
            return found.message_count, found.consumer_count, None
    except amqp.ChannelClosedByBroker as error:
        return 0, 0, error


def ensure_queue(
    connection: pika.BlockingConnection, name: str, create: str = ""
) -> amqp.ChannelClosedByBroker | None:
    """Use a queue as it is, else create it as "classic" or "quorum"; returns how it was refused."""
    arguments: dict[str, Any] = {"x-queue-type": create}
    if create == "quorum":  # -1 drops at the first return on 3.x, and no limit means 20 on 4.x
        arguments["x-delivery-limit"] = 2_000_000_000
    for _ in range(2):  # a 406 means that another listener was faster: then it exists
        _, _, refused = look_at(connection, name)
        if refused and refused.reply_code == 404 and create:
            refused = refusal(
                connection,
                lambda channel: channel.queue_declare(name, durable=True, arguments=arguments),
            )
        if refused is None or refused.reply_code != 406:
            break
    return refused


# --- Notification ------------------------------------------------------------------------------

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
MAX_BYTES = 8 * 1024 * 1024  #: of a body, as it arrives and unpacked; usual are some thousand


@dataclass(frozen=True)
class Notification:
    """What an OpenStack service published, in the words of oslo.messaging's endpoints."""

    context: Mapping[str, Any]
    publisher_id: str
    event_type: str
    priority: str
    payload: Any
    metadata: Mapping[str, Any]


def decode(body: bytes, properties: pika.BasicProperties) -> Notification:
    """Read a message body of oslo.messaging's drivers ``messaging`` and ``messagingv2``.

    https://docs.openstack.org/oslo.messaging/latest/reference/notification_driver.html

    :raises MalformedNotification: it is none, with a reason that a person understands
    """
    message = _parse_json(_unpack(body, properties))
    if "oslo.version" in message and "oslo.message" in message:
        version, text = message["oslo.version"], message["oslo.message"]
        try:  # minor versions are compatible, newer ones, too
            major, _minor = map(int, version.split(".")[:2])
        except (AttributeError, ValueError):
            major = 0
        if major != 2:
            raise MalformedNotification(f"envelope version {version!r} is not 2.x")
        if not isinstance(text, str):
            raise MalformedNotification("oslo.message is not a text")
        message = _parse_json(text)
    for name in ("publisher_id", "event_type", "priority"):
        if not isinstance(message.get(name), str):
            raise MalformedNotification(f"{name} is missing or not a text")
    return Notification(
        {name[9:]: value for name, value in message.items() if name.startswith("_context_")},
        message["publisher_id"],
        message["event_type"],
        message["priority"].lower(),
        message.get("payload"),
        {name: message.get(name) for name in ("message_id", "timestamp")},
    )


def _unpack(body: bytes, properties: pika.BasicProperties) -> str:
    compression = (properties.headers or {}).get("compression")
    unpackers: dict[Any, Any] = {
        "application/x-gzip": zlib.decompressobj,
        "application/x-bz2": bz2.BZ2Decompressor,
    }
    try:
        if compression and len(body) <= MAX_BYTES:
            unpacker = unpackers[compression]()
            body = unpacker.decompress(body, MAX_BYTES + 1)
            if len(body) <= MAX_BYTES and not unpacker.eof:
                raise MalformedNotification(f"the {compression!r} body is cut off")
        if len(body) > MAX_BYTES:
            raise MalformedNotification(f"the body is larger than {MAX_BYTES} bytes")
        return body.decode()
    except UnicodeDecodeError:
        raise MalformedNotification("the body is not UTF-8") from None
    except (LookupError, TypeError):
        raise MalformedNotification(f"compression {compression!r} is not known") from None
    except (zlib.error, OSError) as error:
        raise MalformedNotification(f"the body is not {compression!r}: {error}") from None


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise MalformedNotification(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise MalformedNotification("the body is JSON nested too deep") from None
    if not isinstance(value, dict):
        raise MalformedNotification("the body is JSON, but not an object")
    return value


_EVENT_TYPE = re.compile(rb'event_type(\\?)"\s*:\s*\1"([\w.:-]+)\1"')


def quick_event_type(body: bytes, properties: pika.BasicProperties) -> bytes | None:
    r"""The event type where the raw body shows it beyond doubt: once, and no key in disguise.

    None where it is compressed, or where letters of a key may be written as ``\u00..``.
    """
    found = _EVENT_TYPE.search(body)
    if (
        found is None
        or body.count(b"event_type") != 1
        or rb"\u00" in body
        or "compression" in (properties.headers or ())
    ):
        return None
    return found[2]


# --- Filter ------------------------------------------------------------------------------------


def accepts(source: Source, notification: Notification) -> bool:
    """The five rules of oslo.messaging's NotificationFilter; a value that is no text never matches.

    https://docs.openstack.org/oslo.messaging/latest/reference/notification_listener.html
    """
    return (
        _matches(source.event_type, notification.event_type)
        and _matches(source.publisher_id, notification.publisher_id)
        and all(
            isinstance(values, dict) and _matches(regex, values.get(key))
            for rules, values in (
                (source.context, notification.context),
                (source.metadata, notification.metadata),
                (source.payload, notification.payload),
            )
            for key, regex in rules
        )
    )


def _matches(regex: Regex, value: Any) -> bool:
    return regex is None or (isinstance(value, str) and regex.match(value) is not None)


# --- Deletion ----------------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.I)


@dataclass(frozen=True)
class Deletion:
    """What to take out of K2HR3: some addresses of an instance, or, without addresses, all of it.

    :param cuk: the instance's UUID, in any spelling; K2HR3 compares texts, and answers 204 to
        any but lower case with dashes without removing anything
    :raises MalformedNotification: no UUID, or an address that is none
    """

    cuk: str
    ips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.cuk, str) or not _UUID.fullmatch(self.cuk):
            raise MalformedNotification(f"instance id {self.cuk!r} is not a UUID")
        object.__setattr__(self, "cuk", str(uuid.UUID(self.cuk)))
        for ip in self.ips:
            try:
                ipaddress.ip_address(ip if isinstance(ip, str) and "%" not in ip else "")
            except ValueError:
                raise MalformedNotification(f"address {ip!r} is not an IP address") from None

    @property
    def query(self) -> str:
        """The query of the DELETE. K2HR3 takes a `host` given twice for none: it widens."""
        host = {"host": json.dumps(self.ips, separators=(",", ":"))} if self.ips else {}
        return urllib.parse.urlencode({"extra": "openstack-auto-v1", **host, "cuk": self.cuk})


def _port_deletion(port: Mapping[str, Any]) -> Deletion | None:
    """Of Neutron's port: its addresses only, since the instance may live on without it."""
    owner, device_id = _typed(port, "device_owner", str), _typed(port, "device_id", str)
    fixed_ips = _typed(port, "fixed_ips", list)
    if (
        not device_id
        or not fixed_ips
        or (not _UUID.fullmatch(device_id) if owner is None else not owner.startswith("compute:"))
    ):
        return None
    addresses: Any = [(ip if isinstance(ip, dict) else {}).get("ip_address") for ip in fixed_ips]
    return Deletion(device_id, tuple(addresses))


def _typed(values: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value of a key, None where it is missing or null."""
    if values.get(key) is not None and not isinstance(values[key], kind):
        raise MalformedNotification(f"{key} is a {type(values[key]).__name__}, no {kind.__name__}")
    return values.get(key)


def _instance_deletion(
    instance: Mapping[str, Any], id_key: str, event_type: str
) -> Deletion | None:
    """Of Nova's instance: all of it, exactly if its state is "deleted".

    Nova publishes delete.end for a deletion that failed, too, and none for some that did not; its
    state tells. Hand-made delete.end without a state is taken at its word.
    """
    at_its_word = "deleted" if event_type.endswith(".delete.end") else "unknown"
    state = instance.get("state", at_its_word)
    if not isinstance(state, str):
        raise MalformedNotification(f"state is {state!r}, expected a text")
    return Deletion(instance.get(id_key, "")) if state == "deleted" else None


#: The key that tells a payload's shape, and what reads the payload of an event; the first counts.
PAYLOAD_SHAPES: dict[str, Callable[[Any, str], Optional[Deletion]]] = {
    "port": lambda payload, event_type: _port_deletion(_typed(payload, "port", dict) or {}),
    "port_id": lambda payload, event_type: None,  # Neutron, before it sent the port along
    "nova_object.data": lambda payload, event_type: _instance_deletion(
        _typed(payload, "nova_object.data", dict) or {}, "uuid", event_type
    ),
    "instance_id": lambda payload, event_type: _instance_deletion(
        payload, "instance_id", event_type
    ),
}


# --- Endpoint ----------------------------------------------------------------------------------


class Endpoint:
    """Turns notifications into deletions. Subclass it to know more of them.

    As with oslo.messaging's endpoints, a method is named after the priority it is for: the
    listener subscribes to ``<topic>.<priority>`` for each such method.
    """

    _told_of_old_neutron = False

    def info(self, notification: Notification) -> Deletion | None:
        """The deletion that a notification leads to, None where it leads to none.

        :raises MalformedNotification: as any error here, makes it a dead letter
        """
        payload = notification.payload
        if not isinstance(payload, dict):
            raise MalformedNotification("payload is not an object")
        shape = next((key for key in PAYLOAD_SHAPES if key in payload), "")
        if shape == "port_id" and not self._told_of_old_neutron:
            self._told_of_old_neutron = True
            LOG.warning(
                "this Neutron deletes ports without saying whose: nothing can be deleted "
                "in K2HR3 by them; use Nova's notifications"
            )
        if not shape:
            raise MalformedNotification("payload names no instance")
        return PAYLOAD_SHAPES[shape](payload, notification.event_type)

    def priorities(self) -> list[str]:
        """The priorities that there are methods for."""
        return [name for name in PRIORITIES if callable(getattr(self, name, None))]

    def deletion(self, notification: Notification) -> Deletion | None:
        """What the method of the notification's priority makes of it; None without a method."""
        if notification.priority not in self.priorities():
            return None
        deletion = getattr(self, notification.priority)(notification)
        if not isinstance(deletion, (Deletion, type(None))):
            raise MalformedNotification(f"the endpoint made {deletion!r} of it")
        return deletion


# --- Role API ----------------------------------------------------------------------------------

#: What to check, by the status that came back.
STATUS_HINTS = {
    400: "this host's address is not in the API's delhost role, or its store is down",
    403: "this host's address is not in the API's delhost role, or its store died",
    404: "check the path of api_url",
    414: "too many addresses for one request",
    431: "too many addresses for one request",
}


#: After so many seconds K2HR3's 204 may mean that one of its store's operations timed out.
DOUBTFUL_SECONDS = 8.0


_Response: Any = http.client.HTTPResponse


class _Reply(io.RawIOBase):
    """Reads a reply under one deadline; a socket's time-out begins anew with every byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("the reply did not end in time")
        self._sock.settimeout(left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Connection(HTTPConnection):
    """A connection whose attempts end in time, and that is not used again after idling."""

    idle_seconds = 4.0  # K2HR3 closes it after 5
    _used = 0.0
    response_class: Any = staticmethod(
        lambda sock, *rest, **more: _Response(_Reply(sock), *rest, **more)
    )

    def _new_conn(self) -> socket.socket:
        """All addresses of the host share one time-out; urllib3 would give it to each."""
        name, deadline = self._dns_host, time.monotonic() + float(self.timeout or 0)
        error: Any = urllib3.exceptions.NewConnectionError(cast(Any, self), f"{name}: no address")
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as failure:
            raise urllib3.exceptions.NewConnectionError(
                cast(Any, self), f"{name}: {failure}"
            ) from None
        for number, address in enumerate(found):
            left = deadline - time.monotonic()  # a dead address leaves the others their share
            self._dns_host = str(address[4][0])
            self.timeout = max(0.01, left / (len(found) - number))
            try:
                sock = super()._new_conn()
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                return sock
            except urllib3.exceptions.HTTPError as failure:
                error = failure
            finally:
                self._dns_host = name
        raise error

    def connect(self) -> None:
        super().connect()
        self._used = time.monotonic()

    def request(self, *rest: Any, **more: Any) -> None:
        if self.sock is not None and time.monotonic() - self._used > self.idle_seconds:
            self.close()
        super().request(*rest, **more)
        self._used = time.monotonic()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class RoleApi:
    """K2HR3's Role API over one pool of kept-alive connections; safe from any thread.

    https://k2hr3.antpick.ax/api_role.html

    :raises ConfigError: certificate files can't be used
    """

    def __init__(self, options: K2hr3) -> None:
        url = urllib.parse.urlsplit(options.api_url)
        self._path, self._request = url.path or "/", f"DELETE {options.api_url}"
        self._timeout = urllib3.Timeout(total=options.timeout_seconds)
        self._pool: Any
        if url.scheme == "https":
            context = tls_context(
                "[k2hr3] ca_file, cert_file, key_file",
                options.ca_file,
                options.cert_file,
                options.key_file,
                verify=not options.allow_self_signed_cert,
            )
            # urllib3 matches the name itself then; else its 1.26 fails for an address as host
            context.check_hostname = False
            self._pool = urllib3.HTTPSConnectionPool(
                url.hostname or "", url.port, maxsize=options.concurrency, ssl_context=context
            )
            if options.allow_self_signed_cert:  # warned of at start, not at each connection
                self._pool.cert_reqs = "CERT_NONE"
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            self._pool.ConnectionCls = _TlsConnection
        else:
            self._pool = urllib3.HTTPConnectionPool(
                url.hostname or "", url.port, maxsize=options.concurrency
            )
            self._pool.ConnectionCls = _Connection

    def delete(self, deletion: Deletion) -> None:
        """Make one attempt, within `timeout_seconds`; redirects are not followed.

        :raises RoleApiError: any answer but 2xx, or none
        """
        try:
            response = self._pool.urlopen(
                "DELETE",
                f"{self._path}?{deletion.query}",
                redirect=False,
                retries=False,
                headers={"User-Agent": f"k2hr3_osnl/{__version__}"},
                timeout=self._timeout,
                preload_content=False,
            )
            response.read(65536)
            if not response.closed:  # more of a body than is of use
                response.close()
            response.release_conn()
        except (
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as error:
            timed_out = isinstance(error, (urllib3.exceptions.TimeoutError, socket.timeout)) and (
                not isinstance(error, urllib3.exceptions.NewConnectionError)
            )
            what = re.sub(r"<[^>]*>: |HTTPS?Connection\w*\([^)]*\): ", "", str(error))
            raise RoleApiError(
                f"{self._request}: {type(error).__name__}: {what}", timed_out=timed_out
            ) from None
        status = int(response.status)
        if not 200 <= status < 300:
            hint = STATUS_HINTS.get(status, "redirects are not followed" if status < 400 else "")
            raise RoleApiError(
                f"{self._request}: {status}" + (hint and f": {hint}"),
                status,
                retry_after=_seconds(response.headers.get("Retry-After", "")),
            )


def _seconds(retry_after: str) -> float:
    """Seconds from now of a Retry-After header, 0 where it has none (RFC 9110, 10.2.3)."""
    try:
        return (
            float(retry_after)
            if retry_after.isdigit()
            else (email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
        )
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0.0


def probe() -> Deletion:
    """A deletion that harms nobody and succeeds only if K2HR3 is well and this host may delete."""
    return Deletion(str(uuid.uuid4()))


class Breaker:
    """Tells a K2HR3 in trouble, where it is open, from deletions that fail on their own.

    K2HR3's statuses don't (its 400 may mean that its store is down), so after three failures in
    a row a probe asks. While it is open, probes follow after pauses of 1, 2, 4 … seconds.

    :param longest: the longest pause, seconds
    """

    def __init__(self, longest: float) -> None:
        self.failures, self.open = 0, False
        self._longest, self._pause, self._probe_at = longest, 1.0, 0.0

    def attempted(self, error: RoleApiError | None) -> None:
        """Count an attempt. A time-out counts as three: it cost K2HR3 as much."""
        self.failures = self.failures + (3 if error.timed_out else 1) if error else 0

    def wants_probe(self, now: float) -> bool:
        """Whether the next request must be a probe; `now` is monotonic."""
        return now >= self._probe_at if self.open else self.failures >= 3

    def probed(self, error: RoleApiError | None, now: float) -> None:
        """Open or close by the result of a probe."""
        self.open = error is not None
        if error is None:
            self.failures, self._pause = 0, 1.0
        else:
            pause = max(self._pause * random.uniform(0.8, 1.2), error.retry_after)
            self._probe_at = now + min(pause, self._longest)
            self._pause = min(2 * self._pause, self._longest)


# --- Listener ----------------------------------------------------------------------------------


class Consumer:
    """A channel that consumes one queue, and its deliveries that are not acked yet.

    :raises amqp.ChannelClosedByBroker: the queue is missing or may not be read
    """

    def __init__(
        self,
        connection: pika.BlockingConnection,
        queue: str,
        prefetch: int,
        on_message: Callable[..., None],
    ) -> None:
        self.queue, self.cancelled = queue, False
        self.unfinished: dict[int, Delivery] = {}  # in the order of their tags
        self.finished: list[int] = []
        self.channel = connection.channel()
        self.channel.basic_qos(prefetch_count=prefetch)
        self.channel.add_on_cancel_callback(lambda _frame: setattr(self, "cancelled", True))
        self.tag = self.channel.basic_consume(queue, partial(on_message, self))

    def flush(self) -> None:
        """Ack what is finished: one ack for all before the oldest unfinished, single ones beyond.

        Acking an acked tag with `multiple` closes the channel; `finished` holds no such tag.
        """
        finished, self.finished = self.finished, []
        oldest = next(iter(self.unfinished), None)
        together = max((tag for tag in finished if oldest is None or tag < oldest), default=0)
        if together:
            self.channel.basic_ack(together, multiple=True)
        for tag in finished:
            if tag > together:
                self.channel.basic_ack(tag)


@dataclass(eq=False)
class Delivery:
    """A message in our hands: unacked until a deletion or a confirmed copy replaces it."""

    consumer: Consumer
    tag: int
    body: bytes
    properties: pika.BasicProperties
    queue: str  # the notification queue it first came from
    since: float  # monotonic: waits here since
    retry: bool = False  # it came from the retry queue
    deletion: Optional[Deletion] = None
    event: str = ""  # event type and message id, for the log
    attempts: int = 0
    first_failure: float = 0.0  # epoch seconds
    last_failure: float = 0.0
    due: float = 0.0  # monotonic: held until then
    copy_to: str = ""  # where its copy must go, once that is decided
    reason: str = ""

    def finish(self) -> None:
        """Have it acked by its consumer's next flush."""
        if self.consumer.unfinished.pop(self.tag, None):
            self.consumer.finished.append(self.tag)

    def copy_properties(self) -> pika.BasicProperties:
        """The properties of its copy, which tell the next reader what happened so far."""
        headers = {
            "x-k2hr3-queue": self.queue,
            "x-k2hr3-attempts": self.attempts,
            "x-k2hr3-reason": self.reason,
        }
        if self.attempts:
            headers.update(
                {
                    "x-k2hr3-first-failure": int(self.first_failure),
                    "x-k2hr3-last-failure": int(self.last_failure),
                }
            )
        return copied_properties(self.properties, headers)


def copied_properties(
    properties: pika.BasicProperties, headers: dict[str, Any]
) -> pika.BasicProperties:
    """The sender's properties for a copy, without what is the broker's or would lose it.

    :param headers: ours, in place of all ``x-*``
    """
    properties = copy.copy(properties)
    properties.headers = {
        **{
            name: value
            for name, value in (properties.headers or {}).items()
            if name not in ("CC", "BCC") and not str(name).lower().startswith("x-")
        },
        **headers,
    }
    # the broker takes no other user's id, and would drop the copy when the expiration is over
    properties.user_id = properties.expiration = None
    properties.delivery_mode = 2
    properties.timestamp = properties.timestamp or int(time.time())  # tells a dead letter's age
    return properties


class Publisher:
    """A daemon thread with a connection of its own, on which copies are published.

    Not on the consuming one: in a memory alarm a connection that has published is not read any
    more, not even its acks. And a connection that stalls here holds up nothing but copies.

    A failure stops copies for 1, 2, 4 … seconds, until one succeeds. To begin with a long pause
    would have a queue with a delivery limit drop what comes back often during it.

    :param answer: called in this thread with each delivery and why there is no copy ("": there is)
    """

    longest_pause, idle_seconds = 30.0, 5.0

    def __init__(
        self, hosts: list[pika.ConnectionParameters], answer: Callable[[Delivery, str], None]
    ) -> None:
        self._hosts = [copy.copy(host) for host in hosts]
        for host in self._hosts:
            host.heartbeat = host.blocked_connection_timeout = 10
        self._answer = answer
        self._copies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # queue, or "" for all -> monotonic end of its pause, and seconds of it
        self._paused: dict[str, tuple[float, float]] = {}
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._used = 0.0
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def copy(self, delivery: Delivery) -> None:
        """Have a delivery copied to its `copy_to`."""
        self._copies.put((delivery, delivery.copy_to, delivery.copy_properties()))

    def _run(self) -> None:
        while True:
            try:
                delivery, to, properties = self._copies.get(
                    timeout=self.idle_seconds if self._connection else None
                )
            except queue.Empty:
                self._close()
                continue
            if time.monotonic() - self._used > self.idle_seconds:  # nobody sent its heartbeats
                self._close()
            paused, _ = max(self._paused.get(stopped, (0.0, 0.0)) for stopped in ("", to))
            self._answer(
                delivery,
                "copying is paused"
                if time.monotonic() < paused
                else self._publish(to, delivery.body, properties),
            )

    def _publish(self, to: str, body: bytes, properties: pika.BasicProperties) -> str:
        try:
            if self._channel is None:
                self._connection = connect(self._hosts)
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
            self._used = time.monotonic()
            self._channel.basic_publish("", to, body, properties, mandatory=True)
            for stopped in ("", to):
                if self._paused.pop(stopped, None):
                    LOG.info("copies are made again")
            return ""
        except (amqp.UnroutableError, amqp.NackError) as error:
            stopped, problem = to, explain(error)
            self._paused.pop("", None)  # the connection works
        except Exception as error:
            stopped, problem = "", explain(error)
            self._close()
        now, (end, pause) = time.monotonic(), self._paused.get(stopped, (-math.inf, 0.0))
        again = now < end + 600  # what is held comes back within retry_interval_seconds
        pause = min(2 * pause, self.longest_pause) if again else 1.0
        self._paused[stopped] = now + pause, pause
        LOG.log(
            logging.DEBUG if again else logging.ERROR,
            "no copy to %s, held instead; next try "
            "in %d s: %s (check the queue, and write permission on amq.default)",
            to,
            pause,
            problem,
        )
        return problem

    def _close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        _close(connection)


def _close(connection: pika.BlockingConnection | None) -> None:
    try:
        if connection and connection.is_open:
            connection.close()
    except Exception as error:
        LOG.debug("closing a connection: %s", explain(error))


@dataclass(frozen=True)
class Subscription:
    """A notification queue, the sources that share it, and its bindings (none: not ours)."""

    queue: str
    sources: tuple[Source, ...]
    bindings: tuple[tuple[str, str], ...]  # exchange, routing key
    refused: dict[bytes, bool]  # by event type, what `skips` found

    def skips(self, body: bytes, properties: pika.BasicProperties) -> bool:
        """Whether a quick look shows another event."""
        event_type = quick_event_type(body, properties) if len(body) <= MAX_BYTES else None
        if event_type is None:
            return False
        if event_type not in self.refused:
            if len(self.refused) > 1000:
                self.refused.clear()
            self.refused[event_type] = not any(
                _matches(source.event_type, event_type.decode()) for source in self.sources
            )
        return self.refused[event_type]


def subscriptions(config: Config, endpoint: Endpoint) -> list[Subscription]:
    """What to consume: sources that share a queue become one consumer."""
    keys = [
        (source, f"{source.topic}.{priority}")
        for source in config.sources
        for priority in endpoint.priorities()
    ]
    return [
        Subscription(
            name,
            tuple(source for source, key in keys if (source.pool or key) == name),
            tuple((source.exchange, key) for source, key in keys if source.pool == name),
            {},
        )
        for name in dict.fromkeys(source.pool or key for source, key in keys)
    ]


class Listener:
    """Consumes notifications, makes their deletions and settles every delivery.

    The thread that calls `run` owns all state and the consuming connection. Worker threads make
    attempts and the publisher makes copies; their results come back through one queue.

    :param endpoint: turns notifications into deletions
    :raises ConfigError: certificate files can't be used
    """

    remembered = 10_000  #: so many removed instances; fresh deletions of them are ignored
    hold_seconds = 30.0  #: a fresh deletion that waited here so long moves to the retry queue
    exit_code = 0  #: of a process that a deadline or a second signal had to end

    def __init__(self, config: Config, endpoint: Endpoint | None = None) -> None:
        self.config, self.endpoint = config, endpoint or Endpoint()
        self.role_api = RoleApi(config.k2hr3)
        self.retry_queue, self.dead_letter_queue = (
            f"{config.queue}.retry",
            f"{config.queue}.dead_letter",
        )
        self.counters: Counter[str] = Counter()
        self.on_tick: Callable[[], None] = lambda: None  # called about twice a second
        self._hosts = parse_transport_url(config.sources[0].transport_url, config.rabbit)
        self._subscriptions = subscriptions(config, self.endpoint)
        self._breaker = Breaker(config.k2hr3.retry_interval_seconds)
        self._stopping = threading.Event()
        self._work: Deque[Tuple[Optional[Delivery], Deletion]] = deque()
        self._work_ready: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each of `_work`
        # Deletions fed ahead to the workers: what takes them 0.1 s, while all goes well. 8 instead
        # of 100 took 20 % more CPU for each, by waking this thread for every few of them.
        self._ahead, self._most_ahead = 0, (config.rabbit.rabbit_qos_prefetch_count or 200) // 2
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken = False  # the wake-up for the results that are ready is on its way
        self._halt = False  # workers hand back what they have not begun
        self._with_workers = 0
        self._connection: pika.BlockingConnection | None = None
        self._consumers: list[Consumer] = []
        self._pending: Deque[Delivery] = deque()  # fresh deletions
        self._due: Deque[Delivery] = deque()  # deletions to be tried again now
        self._held: list[Delivery] = []  # what waits until it is due
        self._removed: OrderedDict[str, None] = OrderedDict()  # whole instances, the oldest first
        self._retry_turn = False
        self._next_tick = self._next_look = 0.0  # monotonic
        self._said: set[str] = set()

    def run(self) -> None:
        """Listen until `stop`. Whatever happens to the broker: connect again and go on."""
        self._publisher = Publisher(self._hosts, self._copied_there)
        for _ in range(self.config.k2hr3.concurrency):
            threading.Thread(target=self._attempt, name="worker", daemon=True).start()
        rabbit = self.config.rabbit
        pause = rabbit.rabbit_retry_interval
        while not self._stopping.is_set():
            try:
                self._connection = connect(self._hosts, self._give_up)
                self._said = {topic for topic in self._said if not topic.startswith("broker")}
                LOG.info("connected to the broker")
                self._look(time.monotonic())
                pause = rabbit.rabbit_retry_interval
                while not self._stopping.is_set():
                    self._turn()
                self._finish()
            except (amqp.AMQPError, OSError, Error) as error:
                text = explain(error)
                if not self._stopping.is_set():
                    self._say(
                        "broker login" if "check user" in text else "broker",
                        logging.ERROR,
                        f"{text}; connecting again",
                    )
            except Exception:  # nothing but a person ends the listener
                LOG.exception("unexpected; connecting again")
            for consumer in list(self._consumers):
                self._drop(consumer)  # the broker delivers it all again
            connection, self._connection = self._connection, None
            _close(connection)
            end = time.monotonic() + pause
            pause = min(pause + rabbit.rabbit_retry_backoff, rabbit.rabbit_interval_max)
            while time.monotonic() < end and not self._stopping.wait(0.2):
                self._collect()
                self.on_tick()

    def _give_up(self) -> bool:
        self.on_tick()
        return self._stopping.is_set()

    def stop(self) -> None:
        """End `run` when the running attempts have ended. Safe from any thread."""
        self._stopping.set()

    def status(self) -> str:
        """State and counters, for a person. Safe from any thread."""
        state = (
            "connecting"
            if self._connection is None
            else "K2HR3 in trouble"
            if self._breaker.open
            else "listening"
        )
        names = ("deleted", "failed", "ignored", "retried", "dead_letters")
        return f"{state}: " + " ".join(f"{name}={self.counters[name]}" for name in names)

    def _turn(self) -> None:
        """Receive, take results, decide, give out work, ack: once for all that is there."""
        assert self._connection
        if len(self._work) > 50:  # so many last 10 ms with any API
            time.sleep(0.01)  # to read less often, and more at once: 15 % less CPU for each
        self._connection.process_data_events(0.5)
        self._collect()
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + 0.5
            self._tick(now)
        self._give_out(now)
        self._settle()

    def _finish(self) -> None:
        """Let running attempts end, settle, close: the broker gives the rest to others."""
        assert self._connection
        self._halt = True
        for consumer in self._consumers:
            if consumer.channel.is_open and not consumer.cancelled:
                consumer.channel.basic_cancel(consumer.tag)
        while self._with_workers:
            self._connection.process_data_events(0.1)
            self._collect()
        self._settle()
        self._connection.close()

    def _settle(self) -> None:
        for consumer in list(self._consumers):
            try:
                if consumer.finished and consumer.channel.is_open:
                    consumer.flush()
            except amqp.AMQPChannelError:
                pass  # closed, as seen below
            if not consumer.channel.is_open:  # which process_data_events does not tell
                reason = explain(getattr(consumer.channel, "_closing_reason", None))
                LOG.warning("channel of %s was closed, opening another: %s", consumer.queue, reason)
                self._drop(consumer)
            elif consumer.cancelled:
                self._evacuate(consumer)

    def _drop(self, consumer: Consumer) -> None:
        """Forget a consumer and what came over its channel: the broker delivers that again."""
        self._consumers.remove(consumer)
        self._next_look = 0.0
        lines: list[Any] = [self._pending, self._due, self._held]
        self._pending, self._due, self._held = (
            type(line)(delivery for delivery in line if delivery.consumer is not consumer)
            for line in lines
        )

    def _evacuate(self, consumer: Consumer) -> None:
        """Its queue was deleted, and what we hold is all there is of it: to the retry queue."""
        if consumer.tag:
            LOG.warning(
                "the broker cancelled the consumer of %s; what it delivered moves to %s",
                consumer.queue,
                self.retry_queue,
            )
            consumer.tag, self._next_look = "", 0.0
            for delivery in consumer.unfinished.values():  # have waited too long, and are due
                delivery.since, delivery.due, delivery.reason = 0.0, 0.0, "its queue was deleted"
                delivery.copy_to = delivery.copy_to or self.retry_queue
        elif not consumer.unfinished:
            consumer.channel.close()
            self._drop(consumer)

    # Receive and decide

    def _on_notification(
        self,
        subscription: Subscription,
        consumer: Consumer,
        _channel: Any,
        method: Any,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        if subscription.skips(body, properties):
            self.counters["ignored"] += 1
            consumer.finished.append(method.delivery_tag)
            return
        delivery = Delivery(
            consumer, method.delivery_tag, body, properties, subscription.queue, time.monotonic()
        )
        if not self._understand(delivery, subscription.sources):
            return
        if _number(properties, "x-delivery-count"):  # dropped after some returns; a copy is not
            self._move(delivery, self.retry_queue, "the broker delivered it before")
        else:
            self._pending.append(delivery)

    def _on_retry(
        self,
        consumer: Consumer,
        _channel: Any,
        method: Any,
        properties: pika.BasicProperties,
        body: bytes,
    ) -> None:
        came_from = (properties.headers or {}).get("x-k2hr3-queue")
        delivery = Delivery(
            consumer,
            method.delivery_tag,
            body,
            properties,
            came_from if isinstance(came_from, str) else self.config.queue,
            time.monotonic(),
            retry=True,
            attempts=int(_number(properties, "x-k2hr3-attempts")),
            first_failure=_number(properties, "x-k2hr3-first-failure"),
            last_failure=_number(properties, "x-k2hr3-last-failure"),
        )
        if self._understand(delivery, ()):
            wait = self._wait(delivery)
            # not longer than the longest pause, should another host's clock be wrong
            delivery.due = delivery.since + min(wait, self.config.k2hr3.retry_interval_seconds)
            (self._held if wait > 0 else self._due).append(delivery)

    def _understand(self, delivery: Delivery, sources: tuple[Source, ...]) -> bool:
        """Find a delivery's deletion; where there is none, settle it and return False."""
        delivery.consumer.unfinished[delivery.tag] = delivery
        try:
            notification = decode(delivery.body, delivery.properties)
            delivery.event = _printable(
                f"event={notification.event_type} message_id={notification.metadata['message_id']}"
            )
            if delivery.retry or any(accepts(source, notification) for source in sources):
                delivery.deletion = self.endpoint.deletion(notification)
        except MalformedNotification as error:
            self._dead_letter(delivery, str(error))
        except Exception as error:  # an endpoint's, or what nobody thought of
            self._dead_letter(delivery, f"the endpoint raised {error!r}")
        else:
            if delivery.deletion is None and delivery.retry:
                self._dead_letter(delivery, "it leads to no deletion")
            elif delivery.deletion is None:
                self.counters["ignored"] += 1
                delivery.finish()
        return delivery.deletion is not None

    def _wait(self, delivery: Delivery) -> float:
        """Seconds from now until a failed deletion is due."""
        pause = min(2.0 ** min(delivery.attempts, 10), self.config.k2hr3.retry_interval_seconds)
        return delivery.last_failure + pause - time.time()

    def _tick(self, now: float) -> None:
        """What time brings about."""
        if now >= self._next_look:
            self._look(now)
        for delivery in [each for each in self._pending if now - each.since > self.hold_seconds]:
            self._pending.remove(delivery)
            self._move(
                delivery,
                self.retry_queue,
                delivery.reason or f"K2HR3 did not come to it within {self.hold_seconds:.0f} s",
            )
        held, self._held = self._held, []
        for delivery in held:
            if now < delivery.due or (self._breaker.open and not delivery.copy_to):
                self._held.append(delivery)
            elif self._breaker.open or delivery.copy_to == self.dead_letter_queue:
                self._move(delivery, delivery.copy_to, delivery.reason)
            else:
                delivery.since, delivery.copy_to = now, ""
                self._due.append(delivery)
        self.on_tick()

    # Attempts

    def _give_out(self, now: float) -> None:
        if self._breaker.open:
            for delivery in self._pending:
                self._move(delivery, self.retry_queue, "K2HR3 is in trouble")
            self._pending.clear()
            self._held.extend(self._due)
            self._due.clear()
            self._give_back()
        if self._halt and not self._with_workers:
            self._halt = False
            self._pending = deque(sorted(self._pending, key=lambda delivery: delivery.since))
        if self._breaker.wants_probe(now):
            if not self._with_workers:
                self._hand_over(None, probe())
        elif not self._breaker.open and not self._halt:
            well = not self._breaker.failures  # else one at a time until the next success
            most = self.config.k2hr3.concurrency + self._ahead if well else 1
            while self._due or self._pending:
                # of retries only as many are in hand as can run: they need not wait for room
                retry = bool(self._due) and (well or self._retry_turn or not self._pending)
                if self._with_workers >= most and not (well and retry):
                    break
                self._retry_turn = not retry
                delivery = (self._due if retry else self._pending).popleft()
                assert delivery.deletion
                self._hand_over(delivery, delivery.deletion)

    def _give_back(self) -> None:
        """Leave the retry queue to listeners that reach K2HR3, once all we have of it is idle."""
        for consumer in [each for each in self._consumers if each.queue == self.retry_queue]:
            if (
                consumer.channel.is_open
                and not consumer.cancelled
                and all(delivery in self._held for delivery in consumer.unfinished.values())
            ):
                consumer.flush()
                consumer.channel.close()
                self._drop(consumer)

    def _hand_over(self, delivery: Delivery | None, deletion: Deletion) -> None:
        self._with_workers += 1
        # a retry overtakes what was fed ahead
        (self._work.appendleft if delivery and delivery.retry else self._work.append)(
            (delivery, deletion)
        )
        self._work_ready.put(None)

    def _attempt(self) -> None:
        """A worker thread: makes one attempt after the other, of a delivery or (None) a probe."""
        while True:
            self._work_ready.get()
            delivery, deletion = self._work.popleft()
            began, error = time.monotonic(), None
            if delivery and (
                self._halt
                or not delivery.consumer.channel.is_open
                or (not delivery.retry and began - delivery.since > self.hold_seconds)
            ):
                self._answer(partial(self._handed_back, delivery), True)
                continue
            # the events of one deletion come within milliseconds: looked at only now
            if delivery and not delivery.retry and deletion.cuk in self._removed:
                self._answer(
                    partial(self._already_removed, delivery), len(self._work) <= self._ahead // 2
                )
                continue
            try:
                self.role_api.delete(deletion)
            except RoleApiError as failure:
                error = failure
            except Exception as failure:  # a worker does not die of what nobody thought of
                error = RoleApiError(f"unexpected {failure!r}")
            if error:
                self._halt = True
            milliseconds = 1000 * (time.monotonic() - began)
            if delivery and not (
                error or deletion.ips or delivery.attempts or milliseconds > 1000 * DOUBTFUL_SECONDS
            ):
                self._removed[deletion.cuk] = None
            if delivery is None:
                self._answer(partial(self._probed, error), True)
            else:
                self._answer(
                    partial(self._attempted, delivery, milliseconds, error),
                    bool(error) or delivery.retry or len(self._work) <= self._ahead // 2,
                )

    def _answer(self, result: Callable[[], None], urgent: bool) -> None:
        """Give a result to the listener's thread, which looks anyway twice a second."""
        self._results.put(result)
        connection = self._connection
        if connection and urgent and not self._woken:
            self._woken = True
            try:
                connection.add_callback_threadsafe(lambda: None)
            except Exception as error:  # lost, as the listener's thread knows
                LOG.debug("wake-up: %s", explain(error))

    def _collect(self) -> None:
        self._woken = False
        while not self._results.empty():
            self._results.get()()

    def _already_removed(self, delivery: Delivery) -> None:
        self._with_workers -= 1
        self.counters["ignored"] += 1
        LOG.debug("ignored %s: its instance is removed", delivery.event)
        delivery.finish()

    def _handed_back(self, delivery: Delivery) -> None:
        self._with_workers -= 1
        if time.monotonic() - delivery.since > self.hold_seconds:
            self._next_tick = 0.0  # which moves it
        if delivery.consumer.channel.is_open:
            (self._due if delivery.retry else self._pending).appendleft(delivery)

    def _attempted(
        self, delivery: Delivery, milliseconds: float, error: RoleApiError | None
    ) -> None:
        assert delivery.deletion
        self._with_workers -= 1
        delivery.attempts += 1
        what = (
            f"instance={delivery.deletion.cuk} host={','.join(delivery.deletion.ips) or 'all'} "
            f"{delivery.event} attempts={delivery.attempts} ms={milliseconds:.0f}"
        )
        never = error is not None and error.status in (414, 431)  # it can't ever fit
        if not never:
            self._breaker.attempted(error)
        self._ahead = (
            0
            if error
            else min(
                self._most_ahead, int(100 * self.config.k2hr3.concurrency / max(milliseconds, 1.0))
            )
        )
        if error is None:
            if len(self._removed) > self.remembered:
                self._removed.popitem(last=False)
            self.counters["deleted"] += 1
            LOG.info("deleted %s", what)
            delivery.finish()
            return
        self.counters["failed"] += 1
        LOG.warning("not deleted %s: %s", what, error)
        delivery.last_failure = time.time()
        delivery.first_failure = delivery.first_failure or delivery.last_failure
        if self._stopping.is_set() or not delivery.consumer.channel.is_open:
            return  # unacked, so the broker delivers it again
        limit = self.config.k2hr3.dead_letter_after_seconds
        if never or 0 < limit <= delivery.last_failure - delivery.first_failure:
            self._dead_letter(delivery, str(error))
        else:
            self._move(delivery, self.retry_queue, str(error))

    def _probed(self, error: RoleApiError | None) -> None:
        self._with_workers -= 1
        self._breaker.probed(error, time.monotonic())
        if error:
            self._say(
                "K2HR3",
                logging.ERROR,
                f"K2HR3 is in trouble, deletions wait in {self.retry_queue}: {error}",
            )
        elif self._well("K2HR3", "K2HR3 is back"):
            self._next_look = 0.0

    # Copies

    def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        LOG.warning(
            "dead letter %s from %s: %s", delivery.event, delivery.queue, _printable(reason)
        )
        self._move(delivery, self.dead_letter_queue, reason)

    def _move(self, delivery: Delivery, to: str, reason: str) -> None:
        """Have a delivery copied to a queue of ours, after which it is acked."""
        delivery.copy_to, delivery.reason = to, _printable(reason)
        self._publisher.copy(delivery)

    def _copied_there(self, delivery: Delivery, problem: str) -> None:
        self._answer(partial(self._copied, delivery, problem), True)

    def _copied(self, delivery: Delivery, problem: str) -> None:
        if not problem:
            self.counters[
                "retried" if delivery.copy_to == self.retry_queue else "dead_letters"
            ] += 1
            delivery.finish()
        elif delivery.consumer.channel.is_open:
            now = time.monotonic()
            delivery.due = now + max(1.0, self._wait(delivery))
            self._held.append(delivery)
            self._next_look = min(self._next_look, now + 5)  # the queue may be missing

    # Queues and consumers

    def _look(self, now: float) -> None:
        """See that our queues, bindings and consumers are there; again in 5 s where one is not.

        Again in 30 s at most: nothing signals that an exchange was deleted and made again.
        """
        assert self._connection
        ours = "quorum" if self.config.rabbit.rabbit_quorum_queue else "classic"
        well = [
            self._check(
                f"queue {name}",
                f"configure permission on {name}",
                ensure_queue(self._connection, name, ours),
            )
            for name in (self.retry_queue, self.dead_letter_queue)
        ]
        for subscription in self._subscriptions:
            name = subscription.queue
            there = self._check(
                f"queue {name}",
                f"configure permission on {name}",
                ensure_queue(self._connection, name, ours if subscription.bindings else ""),
            )
            well.append(
                there
                and self._consume(
                    name,
                    self.config.rabbit.rabbit_qos_prefetch_count or 200,
                    partial(self._on_notification, subscription),
                )
            )
            for exchange, key in subscription.bindings if there else ():
                well.append(
                    self._check(
                        f"exchange {exchange}, {key}",
                        f"read permission on {exchange}, write permission on {name}",
                        refusal(
                            self._connection,
                            partial(
                                BlockingChannel.queue_bind,
                                queue=name,
                                exchange=exchange,
                                routing_key=key,
                            ),
                        ),
                    )
                )
        if well[0] and self._may_retry():
            well.append(
                self._consume(self.retry_queue, self.config.k2hr3.concurrency, self._on_retry)
            )
        self._next_look = now + (30.0 if all(well) else 5.0)

    def _may_retry(self) -> bool:
        return not self._breaker.open

    def _consume(self, name: str, prefetch: int, on_message: Callable[..., None]) -> bool:
        if any(each.queue == name and not each.cancelled for each in self._consumers):
            return True
        refused = None
        try:
            assert self._connection
            self._consumers.append(Consumer(self._connection, name, prefetch, on_message))
        except amqp.ChannelClosedByBroker as error:
            refused = error
        return self._check(f"consumer of {name}", f"read permission on {name}", refused)

    def _check(self, what: str, needs: str, refused: amqp.ChannelClosedByBroker | None) -> bool:
        if refused is None:
            self._well(what, f"{what}: well again")
            return True
        hint = f"; needs {needs}" if refused.reply_code == 403 else ""
        self._say(what, logging.WARNING, f"{what}: {explain(refused)}{hint}; looking every 5 s")
        return False

    def _say(self, topic: str, level: int, text: str) -> None:
        """Log trouble with a topic, once until it is well again."""
        LOG.log(logging.DEBUG if topic in self._said else level, text)
        self._said.add(topic)

    def _well(self, topic: str, text: str) -> bool:
        """Log that what was said about a topic is over; returns whether there was anything."""
        if topic not in self._said:
            return False
        self._said.remove(topic)
        LOG.info(text)
        return True


def _number(properties: pika.BasicProperties, header: str) -> float:
    value = (properties.headers or {}).get(header)
    return value if isinstance(value, (int, float)) and 0 <= value < 2**40 else 0


def _printable(text: str) -> str:
    """One short line of a text that strangers wrote."""
    return re.sub(r"[^ -~]+", "?", text)[:300]


# --- Commands ----------------------------------------------------------------------------------

CONFIG_FILES = (
    "./k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.conf",
    "/etc/k2hr3/k2hr3-osnl.conf",
)


class LogFile(logging.handlers.TimedRotatingFileHandler):
    """A log file that is rotated daily; a full disk makes it write to standard error."""

    def handleError(self, record: logging.LogRecord) -> None:
        print(f"{self.baseFilename}: {sys.exc_info()[1]}: {self.format(record)}", file=sys.stderr)


def set_up_logging(default: Default) -> None:
    """Log as ``[DEFAULT]`` says; :raises ConfigError: the log file can't be written."""
    stream = sys.stdout if default.log_file == "sys.stdout" else sys.stderr
    try:
        handler = (
            logging.StreamHandler(stream)
            if default.log_file in STREAMS
            else LogFile(
                default.log_file,
                when="midnight",
                backupCount=31,
                encoding="utf-8",
                errors="backslashreplace",
            )
        )
    except OSError as error:
        raise ConfigError(
            f"[DEFAULT] log_file = {default.log_file}: {error.strerror}: accepted "
            "is a file that can be written"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    libraries = LEVELS[default.libs_debug_level]
    logging.basicConfig(handlers=[handler], level=libraries, force=True)
    LOG.setLevel(LEVELS[default.debug_level])
    if libraries > logging.DEBUG:  # pika logs seven errors where ours says it in one line
        logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


def notify_systemd(state: str) -> None:
    """Tell systemd, where it listens; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    try:
        if address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.setblocking(False)
                notify.sendto(state.encode(), re.sub("^@", "\0", address))
    except OSError as error:
        LOG.debug("NOTIFY_SOCKET %s: %s", address, error)


def run(listener: Listener) -> None:
    """Run a listener under signals: SIGTERM and SIGINT stop it, HUP and USR1 see to the log."""
    # All threads block them and one waits for them, so that nothing is ever interrupted.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_obey, args=(signals, listener), daemon=True).start()
    notify_systemd("READY=1")
    LOG.info(
        "k2hr3_osnl %s, settings: %s", __version__, ", ".join(listener.config.files) or "defaults"
    )
    for warning in listener.config.warnings:
        LOG.warning(warning)
    listener.run()
    LOG.info("stopped: %s", listener.status().partition(": ")[2])


def _obey(signals: set[signal.Signals], listener: Listener) -> None:
    stopping = False
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGUSR1:
            LOG.info("counters, %s", listener.status())
        elif number == signal.SIGHUP:
            for handler in logging.getLogger().handlers:
                try:
                    handler.close()  # of a file; the next line opens its path again
                except OSError as error:  # what a full disk did not take is lost
                    print(f"log_file: {error}", file=sys.stderr)
        elif stopping:
            os._exit(listener.exit_code)
        else:
            stopping = True
            notify_systemd("STOPPING=1")
            listener.stop()
            # Neither a stalled broker nor a hanging K2HR3 holds us: what is unacked comes again.
            deadline = threading.Timer(
                listener.config.k2hr3.timeout_seconds + 1, os._exit, (listener.exit_code,)
            )
            deadline.daemon = True
            deadline.start()


def listen(config: Config, _arguments: argparse.Namespace) -> int:
    """The daemon, until SIGTERM or SIGINT.

    A second signal ends it at once. It lives through everything that happens to broker and
    K2HR3. SIGHUP reopens the log file, SIGUSR1 logs the counters.
    """
    listener = Listener(config)
    listener.on_tick = lambda: notify_systemd(f"WATCHDOG=1\nSTATUS={listener.status()}")
    run(listener)
    return 0


class Drain(Listener):
    """A listener that ends by itself, for `drain`."""

    exit_code = os.EX_TEMPFAIL

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.done = False
        self.on_tick = self._see_whether_done
        self._progress = Progress()
        self._last_done = 0, time.monotonic()  # how many deliveries, and when that changed
        self._retries = -1  # still to be taken from the retry queue; -1: not counted yet
        self._idle = 0  # looks at which nothing was left

    def _wait(self, delivery: Delivery) -> float:
        return 0.0  # due times are for a daemon, which comes back

    def _may_retry(self) -> bool:
        return self._retries > 0 and super()._may_retry()

    def _on_retry(self, *rest: Any) -> None:
        if self._retries > 0:  # what comes later stays unacked and goes back
            self._retries -= 1
            super()._on_retry(*rest)

    def _see_whether_done(self) -> None:
        now, there = time.monotonic(), {consumer.queue for consumer in self._consumers}
        if not self._connection or not all(each.queue in there for each in self._subscriptions):
            if now > self._last_done[1] + 30:
                LOG.error("the broker, or a notification queue, is not there within 30 s")
                self.stop()
            return
        done = sum(self.counters.values())
        if done != self._last_done[0]:
            self._last_done = done, now
        elif now > self._last_done[1] + self.config.k2hr3.timeout_seconds + self.hold_seconds:
            LOG.error("something is left that can be neither deleted nor copied")
            self.stop()
        left = sum(look_at(self._connection, each.queue)[0] for each in self._subscriptions) + sum(
            len(consumer.unfinished) for consumer in self._consumers
        )
        self._progress.show(
            self.counters["deleted"] + self.counters["failed"], left + max(0, self._retries)
        )
        # twice, since what the broker just sent is neither ready there nor in hand here
        self._idle = self._idle + 1 if left == 0 else 0
        if self._idle < 2:
            return
        if self._retries and not self._breaker.open:
            ready, _, _ = look_at(self._connection, self.retry_queue)
            if self._retries < 0 or ready == 0:  # to begin with; or others took some
                self._retries, self._next_look = ready, 0.0
        if self._retries == 0 or self._breaker.open:
            self.done = not self._breaker.open
            self.stop()


class Progress:
    """Done, left and rate, once a second, where standard error is a terminal."""

    def __init__(self) -> None:
        self._begun = self._next = time.monotonic()

    def show(self, done: int, left: int) -> None:
        """Show how many are done and left."""
        now = time.monotonic()
        if sys.stderr.isatty() and now >= self._next:
            self._next = now + 1
            rate = done / (now - self._begun + 0.001)
            print(f"\r{done} done, {left} left, {rate:.0f}/s ", end="", file=sys.stderr, flush=True)


def broker(config: Config) -> pika.BlockingConnection:
    """A connection for a command; :raises Error: no broker reached."""
    return connect(parse_transport_url(config.sources[0].transport_url, config.rabbit))


def drain(config: Config, _arguments: argparse.Namespace) -> int:
    """Work off what is queued, then end: for cron.

    Takes the notification queues until they are empty, then each deletion that is ready in the
    retry queue once. Exit 75 if one failed or was left, else 0.
    """
    listener = Drain(config)
    run(listener)
    return 0 if listener.done and not listener.counters["failed"] else os.EX_TEMPFAIL


#: A line of `check`: ok, warn or fail; what was looked at; what there is to say about it.
Row = Tuple[str, str, str]


def check(config: Config, arguments: argparse.Namespace) -> int:
    """See whether all it takes is there, and what to do where it is not. Changes nothing.

    One line each, ok, warn or fail: settings, broker, exchanges, our queues and their consumers,
    queues that nobody consumes, and the Role API, by deleting an instance that never was.
    """
    rows = []
    for result, what, text in _rows(config):
        rows.append({"result": result, "what": what, "text": text})
        if not arguments.json:
            print(f"{result:4}  {what}: {text}", flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return int(any(row["result"] == "fail" for row in rows))


def _rows(config: Config) -> Iterable[Row]:
    yield "ok", "settings", ", ".join(config.files) or "no file found, all are defaults"
    for warning in config.warnings:
        yield "warn", "settings", warning
    for gap in _gaps(config.sources):
        yield "warn", "sources", gap
    try:
        with broker(config) as connection:
            yield from _check_broker(config, connection)
    except (Error, amqp.AMQPError) as error:
        yield "fail", "broker", f"{explain(error)}; check transport_url, and that the broker runs"
    began = time.monotonic()
    failure = _failure(RoleApi(config.k2hr3), probe())
    yield (
        ("fail", "Role API", str(failure))
        if failure
        else (
            "ok",
            "Role API",
            f"{config.k2hr3.api_url}, {1000 * (time.monotonic() - began):.0f} ms",
        )
    )


def _gaps(sources: Iterable[Source]) -> Iterable[str]:
    """Deletions that no source hears of."""
    heard = [
        event_type
        for event_type in (
            "port.delete.end",
            "instance.delete.end",
            "instance.update",
            "compute.instance.delete.end",
            "compute.instance.force_delete.end",
        )
        if any(_matches(source.event_type, event_type) for source in sources)
    ]
    if heard == ["port.delete.end"]:
        yield (
            "only Neutron is heard: an instance whose port was made beforehand (by Heat, "
            f"Terraform, --port) stays a member for ever; add [{NOTIFICATIONS}:nova]"
        )
    missing = {
        "instance.delete.end": "instance.update",
        "compute.instance.delete.end": "compute.instance.force_delete.end",
    }
    if not set(heard) & set(missing.values()):
        for deleted in set(heard) & set(missing):
            yield (
                f"{deleted} is heard and {missing[deleted]} is not: an instance that is "
                "force-deleted while its host is down stays a member for ever; let event_type "
                "accept both"
            )


def _check_broker(config: Config, connection: pika.BlockingConnection) -> Iterable[Row]:
    impl = cast(Any, connection)._impl  # pika tells the server's properties nowhere else
    user = getattr(impl.params.credentials, "username", "of the certificate")
    yield (
        "ok",
        "broker",
        (
            f"{impl.params.host}:{impl.params.port}, RabbitMQ "
            f"{impl.server_properties.get('version')}, user {user}, "
            f"virtual host {impl.params.virtual_host}"
        ),
    )
    by_service = "the service makes it with its first notification"
    by_listener = "missing; the listener makes it when it starts"
    for exchange in dict.fromkeys(source.exchange for source in config.sources):
        refused = refusal(
            connection, partial(BlockingChannel.exchange_declare, exchange=exchange, passive=True)
        )
        yield (
            "fail" if refused else "ok",
            f"exchange {exchange}",
            "there"
            if not refused
            else (
                f"{explain(refused)}; {by_service}: check its control_exchange, and that its "
                "driver is messagingv2"
            ),
        )
    for subscription in subscriptions(config, Endpoint()):
        yield from _check_queue(
            connection,
            subscription.queue,
            by_listener if subscription.bindings else f"missing; {by_service}",
        )
        for _, key in subscription.bindings:
            ready, consumers, _ = look_at(connection, key)
            if ready and not consumers:
                yield (
                    "warn",
                    f"queue {key}",
                    (
                        f"{ready} ready and no consumer: it grows until the broker stops on memory "
                        "or disk. Either consume it (set pool to nothing), or bound it: rabbitmqctl "
                        f"set_policy {key} '^{re.escape(key)}$' '{{\"max-length\": 10000}}' "
                        "--apply-to queues"
                    ),
                )
    yield from _check_queue(connection, f"{config.queue}.retry", by_listener, "wait for K2HR3")
    yield from _check_queue(
        connection, f"{config.queue}.dead_letter", by_listener, "need a person: see dead-letters"
    )


def _check_queue(
    connection: pika.BlockingConnection, name: str, missing: str, waiting: str = ""
) -> Iterable[Row]:
    """Look at a queue that should be there and consumed, or, with `waiting`, empty."""
    what, (ready, consumers, refused) = f"queue {name}", look_at(connection, name)
    if refused:
        yield (
            ("warn", what, missing)
            if refused.reply_code == 404
            else ("fail", what, explain(refused))
        )
        return
    # declared again as durable, an existing queue that is not refuses, and nothing changes
    refused = refusal(connection, lambda channel: channel.queue_declare(name, durable=True))
    if refused and "'durable'" in str(refused.reply_text):
        yield (
            "warn",
            what,
            (
                "not durable, a restart of the broker loses it: stop the listener and "
                "delete it, then it is made durable"
            ),
        )
    if waiting:
        yield (
            "warn" if ready else "ok",
            what,
            (
                f"{ready} {waiting}"
                if ready
                else "none ready; a listener may hold some"
                if consumers
                else "empty"
            ),
        )
    else:
        yield (
            "ok" if consumers else "warn",
            what,
            f"{ready} ready, {consumers} consumers" + ("" if consumers else "; no listener runs"),
        )


def dump(config: Config, arguments: argparse.Namespace) -> int:
    """Print each matching notification and the DELETE it leads to, as JSON lines.

    From a temporary queue of its own, so a running listener misses nothing. Ctrl-C ends it.
    """
    endpoint, left = Endpoint(), arguments.count

    def show(_channel: Any, _method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        nonlocal left
        row: dict[str, Any] = {}
        try:
            notification = decode(body, properties)
            if not any(accepts(source, notification) for source in config.sources):
                return
            row = {
                "event_type": notification.event_type,
                **notification.metadata,
                "publisher_id": notification.publisher_id,
            }
            deletion = endpoint.deletion(notification)
            row["delete"] = deletion and f"{config.k2hr3.api_url}?{deletion.query}"
        except MalformedNotification as error:
            row["malformed"] = str(error)
        print(json.dumps(row), flush=True)
        left -= 1

    with broker(config) as connection:
        channel = connection.channel()
        name = channel.queue_declare(
            "", exclusive=True, auto_delete=True, arguments={"x-max-length": 10000}
        ).method.queue
        for source in config.sources:
            for priority in endpoint.priorities():
                channel.queue_bind(name, source.exchange, f"{source.topic}.{priority}")
        channel.basic_consume(name, show, auto_ack=True)
        try:
            while left:
                connection.process_data_events(0.5)
        except KeyboardInterrupt:
            pass
    return 0


#: What `emit` publishes: publisher, event type and payload, by instance and addresses.
SAMPLES: dict[str, tuple[str, str, Callable[[str, list[str]], Any]]] = {
    "neutron": (
        "network.sample",
        "port.delete.end",
        lambda cuk, ips: {
            "port": {
                "device_id": cuk,
                "device_owner": "compute:nova",
                "fixed_ips": [{"ip_address": ip} for ip in ips],
            }
        },
    ),
    "nova": (
        "nova-compute:sample",
        "instance.delete.end",
        lambda cuk, ips: {"nova_object.data": {"uuid": cuk, "state": "deleted"}},
    ),
    "compute": (
        "compute.sample",
        "compute.instance.delete.end",
        lambda cuk, ips: {"instance_id": cuk, "state": "deleted"},
    ),
}


def emit(config: Config, arguments: argparse.Namespace) -> int:
    """Publish a sample deletion as a service would; creates nothing."""
    publisher_id, event_type, to_payload = SAMPLES[arguments.pattern]
    deletion = Deletion(arguments.instance or str(uuid.uuid4()), tuple(arguments.ip))
    message = {
        "message_id": str(uuid.uuid4()),
        "publisher_id": publisher_id,
        "event_type": event_type,
        "priority": "INFO",
        "payload": to_payload(deletion.cuk, arguments.ip or ["192.0.2.1"]),
        "timestamp": time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime()),
    }
    properties = pika.BasicProperties(
        content_type="application/json", content_encoding="utf-8", delivery_mode=2
    )
    body = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)}).encode()
    source = next(
        (source for source in config.sources if accepts(source, decode(body, properties))), None
    )
    if source is None:
        raise Error(f"no source of the settings accepts {event_type} of {publisher_id}")
    with broker(config) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare(source.exchange, passive=True)
        channel.basic_publish(
            source.exchange, f"{source.topic}.info", body, properties, mandatory=True
        )
    print(f"published {event_type} of instance {deletion.cuk} to exchange {source.exchange}")
    return 0


def dead_letters(config: Config, arguments: argparse.Namespace) -> int:
    """List the dead letters, with reason and age.

    --replay moves each back to the queue it came from, once that is confirmed; look at the ages
    first: an instance may have the same address again by now. --drop discards them.
    """
    if arguments.replay and arguments.drop:
        print("k2hr3_osnl: dead-letters: either --replay or --drop", file=sys.stderr)
        return 2
    name, failed, progress = f"{config.queue}.dead_letter", 0, Progress()
    with broker(config) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        count = channel.queue_declare(name, passive=True).method.message_count
        for number in range(count):
            method, properties, body = cast(Any, channel.basic_get(name))
            if method is None:
                break
            headers, problem = properties.headers or {}, ""
            to = str(headers.get("x-k2hr3-queue", config.queue))
            since = _number(properties, "x-k2hr3-first-failure") or properties.timestamp
            age = f"{(time.time() - since) / 3600:.1f} h" if since else "unknown"
            if arguments.replay:
                try:
                    channel.basic_publish(
                        "",
                        to,
                        body,
                        copied_properties(properties, {"x-k2hr3-queue": to}),
                        mandatory=True,
                    )
                except (amqp.UnroutableError, amqp.NackError) as error:
                    failed, problem = failed + 1, f" not moved: {explain(error)}"
                progress.show(number + 1, count - number - 1)
            if arguments.drop or (arguments.replay and not problem):
                channel.basic_ack(method.delivery_tag)
            print(
                f"age={age} queue={to} attempts={headers.get('x-k2hr3-attempts', 0)} "
                f"reason={headers.get('x-k2hr3-reason', '')}{problem}",
                flush=True,
            )
    return int(failed > 0)


def delete(config: Config, arguments: argparse.Namespace) -> int:
    """Call the Role API by hand, to catch up after notifications were lost.

    One instance, or with - one a line from standard input, each with addresses or (all of the
    instance) without. Unknown instances are harmless. Prints the lines that failed, to be fed in
    again.
    """
    lines = [" ".join([arguments.instance, *arguments.ip])]
    if arguments.instance != "-":  # in the line an empty address would be none: all of the instance
        Deletion(arguments.instance, tuple(arguments.ip))
    elif arguments.ip:
        print("k2hr3_osnl: delete -: addresses stand in the lines", file=sys.stderr)
        return 2
    else:
        for stream in (sys.stdin, sys.stdout):  # what is no UTF-8 is printed as it came
            cast(Any, stream).reconfigure(errors="surrogateescape")
        lines = [line.strip() for line in sys.stdin if line.strip()]
    api, breaker = RoleApi(config.k2hr3), Breaker(config.k2hr3.retry_interval_seconds)
    failed, left, progress = [], deque(lines), Progress()
    while left and not breaker.open:
        cuk, *ips = left[0].split()
        try:
            _delete(api, breaker, config.k2hr3.max_retries, Deletion(cuk, tuple(ips)))
        except (MalformedNotification, RoleApiError) as error:
            print(f"k2hr3_osnl: {left[0]}: {error}", file=sys.stderr)
            failed.append(left[0])
        except KeyboardInterrupt:
            break
        left.popleft()
        progress.show(len(lines) - len(left), len(left))
    failed += left
    print("".join(f"{line}\n" for line in failed), end="")
    return int(bool(failed))


def _delete(api: RoleApi, breaker: Breaker, retries: int, deletion: Deletion) -> None:
    """Attempt a deletion until it succeeds, probing instead while K2HR3 is in trouble."""
    for again in range(retries + 1):
        error = None
        while breaker.open and not breaker.wants_probe(time.monotonic()):
            time.sleep(0.1)
        if breaker.wants_probe(time.monotonic()):
            error = _failure(api, probe())
            breaker.probed(error, time.monotonic())
        elif again:
            time.sleep(1)
        if error is None:
            error = _failure(api, deletion)
            breaker.attempted(error)
        if error is None:
            return
        if again == retries or error.status in (414, 431):
            raise error


def _failure(api: RoleApi, deletion: Deletion) -> RoleApiError | None:
    try:
        api.delete(deletion)
    except RoleApiError as error:
        return error
    return None


class Command(NamedTuple):
    """A command of the command line: what runs it, an example, and its arguments."""

    run: Callable[[Config, argparse.Namespace], int]
    example: str
    arguments: Mapping[str, Mapping[str, Any]] = {}


COMMANDS = {
    "listen": Command(listen, "k2hr3_osnl.py -c /etc/k2hr3/k2hr3_osnl.ini"),
    "drain": Command(drain, "*/5 * * * * k2hr3-osnl drain"),
    "check": Command(
        check,
        "k2hr3_osnl.py check",
        {"--json": {"action": "store_true", "help": "one JSON array instead"}},
    ),
    "dump": Command(
        dump,
        "k2hr3_osnl.py dump | jq .delete",
        {"--count": {"type": int, "default": -1, "help": "end after so many"}},
    ),
    "emit": Command(
        emit,
        "k2hr3_osnl.py emit neutron --ip 192.0.2.7",
        {
            "pattern": {"choices": SAMPLES, "help": "whose: " + ", ".join(SAMPLES)},
            "--instance": {"help": "its UUID; a random one without"},
            "--ip": {"action": "append", "default": [], "help": "an address of the port"},
        },
    ),
    "dead-letters": Command(
        dead_letters,
        "k2hr3_osnl.py dead-letters --replay",
        {
            "--replay": {"action": "store_true", "help": "move them back to where they came from"},
            "--drop": {"action": "store_true", "help": "discard them"},
        },
    ),
    "delete": Command(
        delete,
        "openstack server list --deleted --all-projects -f value -c ID | k2hr3_osnl.py delete -",
        {
            "instance": {"metavar": "UUID", "help": "the instance, or - for standard input"},
            "ip": {
                "nargs": "*",
                "metavar": "IP",
                "help": "addresses; without: all of the instance",
            },
        },
    ),
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="k2hr3_osnl.py",
        description="K2HR3 OpenStack Notification Listener: takes deleted "
        "instances out of their K2HR3 roles.",
    )
    parser.add_argument(
        "-c",
        "--config-file",
        action="append",
        metavar="FILE",
        default=[],
        help="settings, later files over earlier ones; without it, the first that "
        f"exists of {', '.join(CONFIG_FILES)}",
    )
    for flag, name in (("-d", "debug_level"), ("-l", "libs_debug_level")):
        parser.add_argument(
            flag,
            dest=name,
            choices=LEVELS,
            metavar="LEVEL",
            help=f"over {name} of the settings: {', '.join(LEVELS)}",
        )
    parser.add_argument("-f", dest="log_file", help="over log_file of the settings")
    parser.add_argument("-v", "--version", action="version", version=f"k2hr3_osnl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = inspect.getdoc(command.run) or ""
        one = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            epilog=f"example:  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument, properties in command.arguments.items():
            one.add_argument(argument, **properties)
    arguments = parser.parse_args(argv)
    files = arguments.config_file or [file for file in CONFIG_FILES if os.path.exists(file)][:1]
    try:
        config = Config.load(*files)
        flags = {
            name: getattr(arguments, name)
            for name in ("debug_level", "libs_debug_level", "log_file")
            if getattr(arguments, name)
        }
        set_up_logging(dataclasses.replace(config.default, **flags))
        return COMMANDS[arguments.command or "listen"].run(config, arguments)
    except (Error, amqp.AMQPError) as error:
        print(f"k2hr3_osnl: {explain(error)}", file=sys.stderr)
        return os.EX_CONFIG if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        os._exit(1)  # at its end the interpreter would write there again
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
