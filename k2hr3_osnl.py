#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["pika>=1.2", "urllib3>=1.26.5"]
# ///
"""K2HR3 OpenStack Notification Listener: removes deleted instances from their K2HR3 roles.

It consumes Neutron's "port deleted" and Nova's "instance deleted" notifications from RabbitMQ
and calls DELETE on K2HR3's Role API for each:

    Neutron, Nova ─> exchange ─> <pool> ─> decode, filter ─> attempt ─> K2HR3 Role API
                                             │          when due ^ │
                                   malformed │                   │ │ failed
                                             v                   │ v
                                    <pool>.dead_letter        <pool>.retry

<pool> is our queue, by default k2hr3_osnl. Every delivery gets a verdict: ignored, done, retry or
dead letter (see "Verdicts"). If a verdict needs a copy in another queue, the delivery is acked when
the broker has confirmed the copy; otherwise it is acked at once. So a crash can repeat a deletion,
which is harmless, but it never loses one.

Run it:    k2hr3_osnl.py -c /etc/k2hr3/k2hr3_osnl.ini
Embed it:  from k2hr3_osnl import Config, Endpoint, Listener
           Listener(Config.load("k2hr3_osnl.ini"), Endpoint()).run()
"""

from __future__ import annotations

import argparse
import bz2
import configparser
import contextlib
import copy
import dataclasses
import difflib
import email.utils
import enum
import http.client
import inspect
import io
import ipaddress
import itertools
import json
import logging
import logging.handlers
import math
import os
import random
import re
import shlex
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.parse
import uuid
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, Full, SimpleQueue
from typing import Any, Callable, Deque, Dict, NamedTuple, Optional, Tuple, Union, cast

try:
    import pika
    import urllib3
    from pika import exceptions as amqp
    from pika.adapters.blocking_connection import BlockingChannel
    from urllib3.connection import HTTPConnection, HTTPSConnection
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"k2hr3_osnl: {missing}: install the package python3-{missing.name}, or pip install it"
    )

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
STARTED = time.monotonic()

# --- Errors ------------------------------------------------------------------------------------


class Error(Exception):
    """Base class of this module's errors."""


class ConfigError(Error):
    """A setting is wrong. The text names the option, its value and file, and what is expected."""


class MalformedNotification(Error):
    """This notification can never lead to a deletion, so it becomes a dead letter."""


@dataclass(eq=False)
class RoleApiError(Error):
    """An attempt failed.

    :param message: what was asked, what came back and what to check
    :param status: the HTTP status; None if there was no answer
    :param timed_out: the answer was late or incomplete
    :param may_have_acted: K2HR3 may have begun to delete, and stopped half-way
    :param retry_after: seconds from the header Retry-After; 0 if there is none. Only that of a
        probe has an effect, see `Breaker`.
    """

    message: str
    status: int | None = None
    timed_out: bool = False
    may_have_acted: bool = False
    retry_after: float = 0.0

    def __str__(self) -> str:
        return self.message

    @property
    def is_permanent(self) -> bool:
        """True if a new attempt cannot help: the request is too long for the API."""
        return self.status in (414, 431)


def printable(text: str) -> str:
    """Make text from outside safe for logs and headers: one line of ASCII, 300 characters."""
    line = re.sub(r"[^ -~]+", "?", text)
    return line if len(line) <= 300 else f"{line[:297]}..."


# --- Settings ----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of option.

    :param expected: what is expected, in words, for errors
    :param is_valid: checks the value; returns False, or raises, if it is wrong
    :param parse: makes the value from the text
    :param nearest: returns the nearest value that can be used; if it differs, there is a warning
    """

    expected: str
    is_valid: Callable[[Any], Any] = lambda value: True
    parse: Callable[[str], Any] = str
    nearest: Callable[[Any], Any] = lambda value: value

    def read(self, text: str, what: str, warnings: list[str]) -> Any:
        """Return the value that a text means.

        :param what: the option and where it is given
        :raises ConfigError: the text is wrong
        """
        # before an @ there may be a password, and anywhere in a wrong transport_url
        shown = "..." if self is TRANSPORT_URL else printable(re.sub(r"(?s)\A.*@", "...@", text))
        problem = f"{what} = {shown}: expected {self.expected}"
        try:
            given = self.parse(text)
            value = self.nearest(given)
            if not self.is_valid(value):
                raise ValueError
        except Exception:  # numbers, expressions, URLs and files raise many kinds
            raise ConfigError(problem) from None
        if value != given:
            warnings.append(f"{problem}; {value} is used")
        return value


def _whole_number(lowest: int, highest: int) -> Kind:
    """Return the kind of a number that must be within bounds."""
    return Kind(
        f"a whole number from {lowest} to {highest}",
        lambda number: lowest <= number <= highest,
        int,
    )


def _clamped_number(lowest: int, highest: int) -> Kind:
    """Return the kind of a number to which the predecessor or oslo.messaging set no bounds."""
    return _whole_number(lowest, highest)._replace(
        nearest=lambda number: min(max(number, lowest), highest)
    )


def _parse_rules(text: str) -> Rules:
    pairs = [pair.split(":", 1) for pair in text.split(",") if pair.strip()]
    rules = {key.strip(): re.compile(regex.strip()) for key, regex in pairs}
    if "" in rules or len(rules) < len(pairs):  # oslo.config refuses both, too
        raise ValueError
    return tuple(rules.items())


def _is_readable(file: str) -> bool:
    if file:
        open(file, "rb").close()
    return True


def _is_writable(file: str) -> bool:
    place = file if os.path.exists(file) else os.path.dirname(file) or "."
    is_file = "\0" not in file and not os.path.isdir(file)
    return file in STREAMS or (is_file and os.access(place, os.W_OK))


def _is_api_url(url: str) -> bool:
    host = r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
    urllib.parse.urlsplit(url).port  # noqa: B018  it raises ValueError for a wrong port
    # the path: printable ASCII without "#" and "?"
    return bool(re.fullmatch(rf"https?://{host}(:[1-9]\d{{0,4}})?(/[!-\"$->@-~]*)?", url))


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
LOG_FILE = Kind("sys.stderr, sys.stdout or a file that can be written", _is_writable)
METRICS_FILE = Kind("a file, or nothing", lambda file: "\0" not in file and not os.path.isdir(file))
FILE = Kind(f"a file that can be read by this user (uid {os.geteuid()})", _is_readable)
LEVEL = Kind(f"one of {', '.join(LEVELS)}", LEVELS.__contains__)
NAME = Kind(
    "1 to 200 printable ASCII characters without spaces", re.compile("[!-~]{1,200}").fullmatch
)
POOL = Kind(
    "up to 200 printable ASCII characters without spaces, or nothing",
    re.compile("[!-~]{0,200}").fullmatch,
)
LOGIN = Kind(
    "one of AMQPLAIN, PLAIN, EXTERNAL", re.compile("(?i:amqplain|plain|external)").fullmatch
)
BOOLEAN = Kind(
    "true or false", parse=lambda text: configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
)
REGEX = Kind("a regular expression", parse=lambda text: re.compile(text) if text else None)
RULES = Kind("key:regex,key:regex", parse=_parse_rules)
API_URL = Kind("http[s]://host[:port][/path], without user or query", _is_api_url)
TRANSPORT_URL = Kind(
    "rabbit://user:password@host:port[,user:password@host:port]/virtual_host with user and "
    "password %-encoded; for TLS set ssl in [oslo_messaging_rabbit]",
    lambda url: parse_transport_url(url),
)


class Tls(NamedTuple):
    """What a section says about TLS.

    :param options: the names of the options that name files, for errors and warnings
    :param files: the CA's certificate, our certificate and its key, each one "" if not given
    :param verifies: False if the other side's certificate would be accepted unseen
    :param risk: the warning then
    :param checks_hostname: True if ssl must check the host's name. urllib3 does it itself.
    """

    options: str
    is_on: bool
    files: tuple[str, str, str]
    verifies: bool
    risk: str
    checks_hostname: bool = False

    def context(self) -> ssl.SSLContext | None:
        """Make the TLS context of a client; None if TLS is off.

        :raises ConfigError: the files can't be used
        """
        if not self.is_on:
            return None
        ca_file, cert_file, key_file = self.files
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
            if cert_file:
                context.load_cert_chain(cert_file, key_file or None, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"{self.options} = {', '.join(filter(None, self.files))}: {error}: expected PEM "
                "files without a pass phrase"
            ) from None
        context.check_hostname = self.verifies and self.checks_hostname
        if not self.verifies:
            context.verify_mode = ssl.CERT_NONE
        return context


def option(kind: Kind, default: Any) -> Any:
    """Define an option: a field of its section's dataclass. A new option needs nothing else here.

    The comment above it is the line about it in the settings file k2hr3_osnl.ini (a test compares).
    """
    # a transport_url may hold a password
    return dataclasses.field(
        default=default, repr=kind is not TRANSPORT_URL, metadata={"kind": kind}
    )


@dataclass(frozen=True)
class Default:
    """``[DEFAULT]``: other sections do not inherit its options, except transport_url."""

    # sys.stderr, sys.stdout, or a file that is rotated daily
    log_file: str = option(LOG_FILE, "sys.stderr")
    # log level of this program
    debug_level: str = option(LEVEL, "info")
    # log level of pika and urllib3
    libs_debug_level: str = option(LEVEL, "warn")
    # figures for Prometheus, written here every 15 s
    metrics_file: str = option(METRICS_FILE, "")
    # used if the next section has none
    transport_url: str = option(TRANSPORT_URL, "")
    without_effect = ""  # options that are accepted silently, as the predecessor's


@dataclass(frozen=True)
class Source:
    """``[oslo_messaging_notifications]`` or one of its named sections: what to consume."""

    # the brokers that OpenStack publishes to
    transport_url: str = option(TRANSPORT_URL, "rabbit://guest:guest@127.0.0.1:5672/")
    # routing keys are <topic>.<priority>
    topic: str = option(NAME, "notifications")
    # control_exchange of the publishing service
    exchange: str = option(NAME, "neutron")
    # event types to accept
    event_type: Regex = option(REGEX, re.compile(r"^port\.delete\.end$"))
    # publishers to accept
    publisher_id: Regex = option(REGEX, re.compile(r"^network.*$"))
    # key:regex,key:regex that the request context must match
    context: Rules = option(RULES, ())
    # key:regex,key:regex that message_id and timestamp must match
    metadata: Rules = option(RULES, ())
    # key:regex,key:regex that the payload must match
    payload: Rules = option(RULES, ())
    # our queue; if empty, the services' queues <topic>.<priority>
    pool: str = option(POOL, "k2hr3_osnl")
    name: str = "oslo_messaging_notifications"
    without_effect = "executor allow_requeue topics driver retry"


@dataclass(frozen=True)
class Rabbit:
    """``[oslo_messaging_rabbit]``: the options of oslo.messaging's driver that are used here."""

    # TLS to the broker
    ssl: bool = option(BOOLEAN, False)
    # CA of the broker; if empty, its certificate is not verified
    ssl_ca_file: str = option(FILE, "")
    # our certificate
    ssl_cert_file: str = option(FILE, "")
    # key of our certificate
    ssl_key_file: str = option(FILE, "")
    # the broker's certificate must name its host
    ssl_enforce_hostname_verification: bool = option(BOOLEAN, True)
    # AMQPLAIN and PLAIN are sent as PLAIN
    rabbit_login_method: str = option(LOGIN, "AMQPLAIN")
    # create quorum queues
    rabbit_quorum_queue: bool = option(BOOLEAN, False)
    # limit of unacked notifications; 0 means 200
    rabbit_qos_prefetch_count: int = option(_clamped_number(0, 65535), 200)
    # seconds without an answer end a connection; 0: no heartbeat
    heartbeat_timeout_threshold: int = option(_clamped_number(0, 3600), 60)
    # seconds before connecting again
    rabbit_retry_interval: int = option(_clamped_number(1, 3600), 1)
    # seconds added to that pause after each failure
    rabbit_retry_backoff: int = option(_clamped_number(0, 3600), 2)
    # the longest such pause in seconds
    rabbit_interval_max: int = option(_clamped_number(1, 3600), 30)
    without_effect = """
        amqp_auto_delete amqp_durable_queues conn_pool_min_size conn_pool_ttl direct_mandatory_flag
        enable_cancel_on_failover fake_rabbit heartbeat_in_pthread heartbeat_rate hostname
        kombu_compression kombu_failover_strategy kombu_missing_consumer_retry_timeout
        kombu_reconnect_delay kombu_reconnect_splay kombu_reconnect_timeout kombu_ssl_version
        processname rabbit_durable_queues rabbit_ha_queues rabbit_max_retries
        rabbit_quorum_delivery_limit rabbit_quorum_max_memory_bytes rabbit_quorum_max_memory_length
        rabbit_stream_fanout rabbit_transient_queues_ttl rabbit_transient_quorum_queue
        rpc_conn_pool_size ssl_enforce_fips_mode ssl_version use_queue_manager
        """

    @property
    def prefetch(self) -> int:
        """The limit of unacked notifications. In AMQP 0 would mean no limit, so 200 is used."""
        return self.rabbit_qos_prefetch_count or 200

    @property
    def tls(self) -> Tls:
        """TLS to the broker."""
        return Tls(
            "[oslo_messaging_rabbit] ssl_ca_file, ssl_cert_file, ssl_key_file",
            self.ssl,
            (self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file),
            not self.ssl or bool(self.ssl_ca_file),
            "[oslo_messaging_rabbit] ssl without ssl_ca_file: unverified, any broker is trusted",
            self.ssl_enforce_hostname_verification,
        )


@dataclass(frozen=True)
class K2hr3:
    """``[k2hr3]``: the Role API."""

    # K2HR3's Role API
    api_url: str = option(API_URL, "https://localhost/v1/role")
    # seconds in which an attempt ends
    timeout_seconds: int = option(_clamped_number(1, 600), 60)
    # longest pause in seconds between two attempts or probes
    retry_interval_seconds: int = option(_clamped_number(1, 600), 60)
    # how often the command delete tries again; not for the daemon
    max_retries: int = option(_clamped_number(0, 1000), 5)
    # do not verify the API's certificate
    allow_self_signed_cert: bool = option(BOOLEAN, False)
    # CA of the API; if empty, those of the system
    ca_file: str = option(FILE, "")
    # our certificate
    cert_file: str = option(FILE, "")
    # key of our certificate
    key_file: str = option(FILE, "")
    # limit of attempts at a time; K2HR3 needs 1, see OPERATIONS.md
    concurrency: int = option(_whole_number(1, 256), 1)
    # a deletion that fails for so long, and 3 times, is a dead letter; 0: never
    dead_letter_after_seconds: int = option(_whole_number(0, 10**9), 0)
    without_effect = "requeue_on_error"

    @property
    def tls(self) -> Tls:
        """TLS to the API. urllib3 checks the host name; with 1.26 ssl's own check fails for IPs."""
        return Tls(
            "[k2hr3] ca_file, cert_file, key_file",
            self.api_url.startswith("https:"),
            (self.ca_file, self.cert_file, self.key_file),
            not self.allow_self_signed_cert,
            "[k2hr3] allow_self_signed_cert: any server is trusted; see ca_file",
        )


NOTIFICATIONS = "oslo_messaging_notifications"
RABBIT = "oslo_messaging_rabbit"
#: The options, one dataclass for each section. [oslo_messaging_notifications:NAME] has `Source`'s.
OPTIONS: dict[str, Any] = {
    "DEFAULT": Default,
    NOTIFICATIONS: Source,
    RABBIT: Rabbit,
    "k2hr3": K2hr3,
}
#: Defaults of sections with these names: Neutron, Nova, and Nova's legacy notifications. Nova's
#: publisher is left open, since its computes, its API and its conductor all publish deletions.
PRESETS = configparser.RawConfigParser()
PRESETS.read_string(r"""
[oslo_messaging_notifications:neutron]
exchange = neutron
topic = notifications
event_type = ^port\.delete\.end$
publisher_id = ^network.*$
[oslo_messaging_notifications:nova]
exchange = nova
topic = versioned_notifications
event_type = ^instance\.(delete\.end|update)$
publisher_id =
[oslo_messaging_notifications:compute]
exchange = nova
topic = notifications
event_type = ^compute\.instance\.(force_)?delete\.end$
publisher_id =
""")
#: Events of ports that still exist. (Nova's payloads have a state, so they need no such check.)
LIVING_PORT_EVENTS = ("port.create.end", "port.update.end")
#: From this likeness on, an unknown name is taken for one of ours with a mistake. It counts only
#: where names of other programs may stand, too.
RESEMBLING = 0.85
#: The end of the origin of an option that comes from a URL's query.
IN_QUERY = ", query of transport_url"
#: Other names of options: the predecessor's, and those of older releases of oslo.messaging.
ALIASES = {
    "retries": "max_retries",
    "rabbit_use_ssl": "ssl",
    "kombu_ssl_ca_certs": "ssl_ca_file",
    "kombu_ssl_certfile": "ssl_cert_file",
    "kombu_ssl_keyfile": "ssl_key_file",
}
#: settings[section][option]: the text, and the file or variable that it comes from.
Settings = Dict[str, Dict[str, Tuple[str, str]]]


@dataclass(frozen=True)
class Config:
    """All settings. `load` reads and checks them; an embedding program may make them in code."""

    default: Default = Default()
    sources: tuple[Source, ...] = (Source(),)
    rabbit: Rabbit = Rabbit()
    k2hr3: K2hr3 = K2hr3()
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def queue(self) -> str:
        """The first source's pool, or k2hr3_osnl. The names of our other queues begin with it."""
        return self.sources[0].pool or "k2hr3_osnl"

    @classmethod
    def load(cls, *files: str, environ: Mapping[str, str] = os.environ) -> Config:
        """Read settings files. A later file overrides an earlier one.

        Environment variables ``OS_<SECTION>__<OPTION>`` override the files. Texts are read as
        oslo.config reads them: sections without regard to case, the last of duplicate keys wins,
        surrounding quotes are removed, ``$$`` and ``\\$`` are ``$``, and ``%`` is just ``%``.

        :raises ConfigError: a file can't be read, or a value is wrong
        """
        settings: Settings = {section: {} for section in OPTIONS}
        for file in files:
            _read_file(file, settings)
        variables = _read_environment(environ, settings)
        _inherit_transport_url(settings)
        warnings = list(_apply_presets(settings))
        default, base, rabbit, k2hr3 = (
            _build_section(section, settings, table(), warnings)
            for section, table in OPTIONS.items()
        )
        sources = tuple(
            _build_section(name, settings, replace(base, name=name), warnings)
            for name in settings
            if name.startswith(f"{NOTIFICATIONS}:")
        ) or (base,)
        for source in sources:
            warnings += _check_source(source, base, settings)
        for tls in (rabbit.tls, k2hr3.tls):
            warnings += _check_tls(tls, settings)
        warnings += _unknown_sections(settings)
        warnings += [
            f"{file}: everyone can read it, and it may hold a password: chmod o-r"
            for file in files
            if os.stat(file).st_mode & 0o004
        ]
        return cls(default, sources, rabbit, k2hr3, (*files, *variables), tuple(warnings))


def _set_option(settings: Settings, section: str, name: str, text: str, origin: str) -> None:
    """Set an option to a text, as oslo.config reads it."""
    text = re.sub(r"""(?s)\A(["'])(?:(.*)\1)?\Z""", r"\2", text.strip())  # without quotes
    if text or name != "transport_url":  # oslo.messaging, too, takes an empty URL for none
        text = text.replace(r"\$", "$$").replace("$$", "$")
        settings[section][ALIASES.get(name, name)] = text, origin


def _read_file(file: str, settings: Settings) -> None:
    parser = configparser.RawConfigParser(
        strict=False, default_section="\0", empty_lines_in_values=False
    )
    try:
        with open(file, encoding="utf-8-sig") as lines:
            # section names in lower case, so that a section in two spellings is one section
            lower = (line.lower() if line.startswith("[") else line for line in lines)
            parser.read_file(lower, "settings")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        what = getattr(error, "strerror", None) or error
        if isinstance(error, configparser.Error):
            # its own text would quote the line, which may hold a password
            number = re.findall(r"line:? +(\d+)", str(error))[0]  # of the first wrong line
            what = f"line {number} is not an option = value"
        raise ConfigError(
            f"{file}: {what}: expected a text file of [section] and option = value"
        ) from None
    for name in parser.sections():
        section = "DEFAULT" if name.upper() == "DEFAULT" else name.lower()
        settings.setdefault(section, {})  # a named source may have an empty section
        for option_name, text in parser.items(name):
            _set_option(settings, section, option_name, text, file)


def _read_environment(environ: Mapping[str, str], settings: Settings) -> list[str]:
    """Set options from environment variables; return the variables that were used."""
    used = []
    for section in settings:
        for variable, text in environ.items():
            match = re.fullmatch(f"OS_{re.escape(section)}__(.*)", variable, re.I)
            if match:
                used.append(f"environment variable {variable}")
                _set_option(settings, section, match[1].lower(), text, used[-1])
    return used


def _inherit_transport_url(settings: Settings) -> None:
    """Use the URL of DEFAULT if there is no other. Set the options in the URL's query.

    oslo.messaging does the same.
    """
    given = settings[NOTIFICATIONS]
    if "transport_url" in settings["DEFAULT"]:
        given.setdefault("transport_url", settings["DEFAULT"]["transport_url"])
    url, origin = given.get("transport_url", ("", ""))
    query = urllib.parse.parse_qs(url.partition("#")[0].partition("?")[2])
    for name, texts in query.items():
        _set_option(settings, RABBIT, name, ",".join(texts), origin + IN_QUERY)


def _apply_presets(settings: Settings) -> Iterator[str]:
    """Add the presets to their sections.

    Warns about options of the unnamed section that they replace.
    """
    for section in settings.keys() & PRESETS.keys():
        for name, text in PRESETS[section].items():
            above, origin = settings[NOTIFICATIONS].get(name, (text, ""))
            if name not in settings[section] and above != text:
                yield (
                    f"{origin}: [{NOTIFICATIONS}] {name}: not used by [{section}], which has its "
                    "own; set it in that section to change it"
                )
            settings[section].setdefault(name, (text, "preset"))


def _check_source(source: Source, base: Source, settings: Settings) -> Iterator[str]:
    if source.transport_url != base.transport_url:
        raise ConfigError(
            f"{settings[source.name]['transport_url'][1]}: [{source.name}] transport_url: expected "
            f"that of [{NOTIFICATIONS}], since all sources share it; for another broker run a "
            "second listener"
        )
    if source.pool in [f"{source.topic}.{priority}" for priority in PRIORITIES]:
        given = settings[source.name].get("pool") or settings[NOTIFICATIONS]["pool"]
        raise ConfigError(
            f"{given[1]}: [{source.name}] pool = {source.pool}: this is the services' own queue; "
            "expected another name, or nothing"
        )
    for event_type in LIVING_PORT_EVENTS:
        if _matches(source.event_type, event_type):
            yield (
                f"[{source.name}] event_type accepts {event_type}: living instances would lose "
                "their rights"
            )


def _check_tls(tls: Tls, settings: Settings) -> Iterator[str]:
    try:
        tls.context()
    except ConfigError as error:
        origins = {
            origin
            for given in settings.values()
            for text, origin in given.values()
            if text and text in tls.files
        }
        raise ConfigError(f"{', '.join(sorted(origins))}: {error}") from None
    if any(tls.files) and not tls.is_on:
        yield f"{tls.options}: not used, since TLS is off; see ssl, or https in api_url"
    _, certificate, key = tls.files
    if key and not certificate:
        yield f"{tls.options}: the key is not used, since its certificate is missing"
    if not tls.verifies:
        yield tls.risk


def _build_section(section: str, settings: Settings, base: Any, warnings: list[str]) -> Any:
    """Return `base`, the dataclass of a section, changed by what the settings say.

    :raises ConfigError: a value is wrong, or an option in the query of transport_url is unknown
    """
    fields = {field.name: field for field in dataclasses.fields(base) if field.metadata}
    values = {}
    for name, (text, origin) in settings[section].items():
        if name in fields:
            kind = fields[name].metadata["kind"]
            values[name] = kind.read(text, f"{origin}: [{section}] {name}", warnings)
        elif name not in base.without_effect.split():
            likeness = RESEMBLING if section == "DEFAULT" else 0.0
            for nearest in difflib.get_close_matches(name, fields, 1, likeness):
                if origin.endswith(IN_QUERY):  # its name may be the rest of a password
                    raise ConfigError(f"{origin}: unknown option; the nearest known is {nearest}")
                warnings.append(
                    f"{origin}: [{section}] {name}: unknown; the nearest known is {nearest}"
                )
    return replace(base, **values)


def _unknown_sections(settings: Settings) -> Iterator[str]:
    for section in settings:
        table = section.partition(":")[0]
        for nearest in difflib.get_close_matches(table, OPTIONS, 1, RESEMBLING):
            if section != nearest and table != NOTIFICATIONS:
                yield f"[{section}]: unknown; the nearest known is [{nearest}]"


# --- Transport ---------------------------------------------------------------------------------

_TRANSPORT = re.compile(
    r"(?i:rabbit|kombu|amqp)://(?P<hosts>[^/?#]*)/?(?P<path>[^?#\n]*)(?:\?[^#]*)?(?:#.*)?"
)
_HOST = re.compile(
    r"(?:(?P<user>[^:\s]*)(?::(?P<password>.*))?@)?"
    r"(?:\[(?P<ipv6>[\da-fA-F:.]+(?:%[\w.-]+)?)\]"
    r"|(?P<name>[^\[\]:@\s\0]+|(?:[\da-fA-F]*:){2}[\da-fA-F:.]*))(?::(?P<port>[0-9]{1,5}))?"
)


def parse_transport_url(url: str, rabbit: Rabbit = Rabbit()) -> list[pika.ConnectionParameters]:
    """Return connection parameters for each host of a transport URL. Any one of them will do.

    https://docs.openstack.org/oslo.messaging/latest/reference/transport.html

    :raises ConfigError: the URL is wrong. The text does not show it, since it may hold a password.
    """
    wrong = ConfigError(f"transport_url: expected {TRANSPORT_URL.expected}")
    parts = _TRANSPORT.fullmatch(url)
    if parts is None:
        raise wrong
    tls = rabbit.tls.context()
    found = []
    for text in re.findall("[^,]+", parts["hosts"]) or ["localhost"]:
        host = _HOST.fullmatch(text)
        if host is None or not 0 < int(host["port"] or 5672) < 65536:
            raise wrong
        name = host["ipv6"] or host["name"]
        user, password = (
            urllib.parse.unquote(text or "guest") for text in host.group("user", "password")
        )
        credentials: Any = pika.PlainCredentials(user, password)
        if rabbit.rabbit_login_method.upper() == "EXTERNAL":
            credentials = pika.credentials.ExternalCredentials()
        found.append(
            pika.ConnectionParameters(
                name,
                int(host["port"] or 5672),
                urllib.parse.unquote(parts["path"]) or "/",
                credentials,
                heartbeat=rabbit.heartbeat_timeout_threshold,
                ssl_options=pika.SSLOptions(tls, name) if tls else None,
                socket_timeout=5,  # seconds, as for the TLS handshake and the login below
                stack_timeout=5,
                client_properties={"connection_name": f"k2hr3_osnl on {socket.gethostname()}"},
            )
        )
    return found


_SelectConnection: Any = pika.SelectConnection  # its types do not show what is needed here


class LenientConnection(_SelectConnection):  # type: ignore[misc]
    """Ignores message headers that pika can't read.

    Without this, such a message would break every new connection. Examples are a time stamp in
    milliseconds, and tables nested too deeply.
    """

    def _read_frame(self) -> Any:
        try:
            # this is all that pika's own method does
            return pika.frame.decode_frame(self._frame_buffer)
        except Exception:
            data = self._frame_buffer
            frame_type, channel, size = struct.unpack_from(">BHL", data)
            if frame_type != pika.spec.FRAME_HEADER or data[7 + size] != pika.spec.FRAME_END:
                raise
            _, _, body_size = struct.unpack_from(">HHQ", data, 7)
            return 8 + size, pika.frame.Header(channel, body_size, pika.BasicProperties())


def connect(
    hosts: list[pika.ConnectionParameters], give_up: Callable[[], bool] = lambda: False
) -> pika.BlockingConnection:
    """Connect to the first host that answers. The order is random, as oslo.messaging's is.

    :param give_up: asked before each host; True means to try no more
    :raises Error: no host answered; the text names each one and its reason
    """
    problems = []
    for host in random.sample(hosts, len(hosts)):
        try:
            if not give_up():
                return pika.BlockingConnection(host, cast(Any, LenientConnection))
        except Exception as error:  # pika also raises errors of TLS, sockets and DNS
            problems.append(f"{host.host}:{host.port}: {explain(error)}")
    raise Error("no broker reached: " + "; ".join(problems))


def policy_command(config: Config) -> str:
    """Return a command that sets a policy for our queues.

    Since only one policy holds for a queue, this one keeps those of others away.
    """
    host = parse_transport_url(config.sources[0].transport_url)[0]
    virtual_host = "" if host.virtual_host == "/" else f"-p {shlex.quote(host.virtual_host)} "
    pools = dict.fromkeys(source.pool or config.queue for source in config.sources)
    pattern = "|".join(f"^{re.escape(pool)}" for pool in pools)
    return (
        f"rabbitmqctl set_policy {virtual_host}--priority 10 --apply-to queues k2hr3_osnl "
        f'{shlex.quote(pattern)} \'{{"overflow":"reject-publish"}}\''
    )


def close_quietly(connection: pika.BlockingConnection | None) -> None:
    """Close a connection to the broker, whatever state it is in."""
    with contextlib.suppress(Exception):
        if connection and connection.is_open:
            connection.close()


#: What to check if an exchange is missing.
NO_EXCHANGE = (
    "the service makes it with its first notification: check its control_exchange, and that its "
    "driver is messagingv2"
)


def explain(error: BaseException | None) -> str:
    """Describe an error, mostly one of pika's, in one line: what came back and what to check."""
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.ProbableAccessDeniedError)):
        return f"refused: check user, password and virtual host of transport_url ({error})"
    if isinstance(error, (amqp.ConnectionClosed, amqp.ChannelClosed)):
        text = f"{error.reply_code} {error.reply_text!s}"
        return f"{text}; {NO_EXCHANGE}" if "no exchange" in text else text
    if isinstance(error, Error):
        return str(error)
    return printable(repr(error))


def refusal(
    connection: pika.BlockingConnection, request: Callable[[BlockingChannel], Any]
) -> amqp.ChannelClosedByBroker | None:
    """Make a request; return the broker's refusal, or None.

    The request gets a channel of its own, because the broker closes the channel if it refuses.
    """
    try:
        with connection.channel() as channel:
            request(channel)
    except amqp.ChannelClosedByBroker as error:
        return error
    return None


class QueueState(NamedTuple):
    """What the broker says about a queue; `refused` is its error if it says nothing else."""

    ready: int = 0
    consumers: int = 0
    refused: Optional[amqp.ChannelClosedByBroker] = None


def inspect_queue(connection: pika.BlockingConnection, queue: str) -> QueueState:
    """Ask for the state of a queue. This changes nothing."""
    try:
        with connection.channel() as channel:
            found: Any = channel.queue_declare(queue, passive=True).method
            return QueueState(found.message_count, found.consumer_count)
    except amqp.ChannelClosedByBroker as error:
        return QueueState(refused=error)


#: What a queue of ours should not be: a part of the broker's refusal, and the consequence.
UNSUITABLE_QUEUES = {
    "arg 'durable'": "not durable: a restart of the broker loses it",
    "arg 'auto_delete'": "auto-delete: with the listener it goes, and all that it holds",
    "is 'stream'": "a stream: a listener only gets what comes while it runs",
}


def unsuitable(connection: pika.BlockingConnection, queue: str) -> str:
    """Say what is wrong with the kind of a queue that exists. If nothing is, the text is empty.

    Declares it with a type that does not exist. The broker always refuses that, and so it creates
    nothing. The refusal names what the queue is.
    """
    no_type = {"x-queue-type": "none"}
    refused = refusal(
        connection, lambda channel: channel.queue_declare(queue, False, True, arguments=no_type)
    )
    for part, consequence in UNSUITABLE_QUEUES.items():
        if refused and part in str(refused.reply_text):
            return (
                f"{consequence}. Stop the listener and delete the queue, with what it holds; the "
                "listener makes a good one"
            )
    return ""


def create_queue(
    connection: pika.BlockingConnection, queue: str, queue_type: str
) -> amqp.ChannelClosedByBroker | None:
    """Create a durable queue that was missing; return the broker's refusal, or None.

    :param queue_type: "classic" or "quorum"
    """
    arguments: dict[str, Any] = {"x-queue-type": queue_type}
    if queue_type == "quorum":
        # A huge limit works everywhere. Without a limit, RabbitMQ 4.x drops a message that was
        # returned 20 times. With -1, which means "no limit" on 4.x, 3.x drops it the first time.
        arguments["x-delivery-limit"] = 2_000_000_000
    refused = refusal(
        connection, lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments)
    )
    if refused and refused.reply_code == 406:  # another listener has just created it
        refused = inspect_queue(connection, queue).refused
    return refused


# --- Notification ------------------------------------------------------------------------------

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
MAX_BYTES = 8 * 1024 * 1024  #: limit of a body, packed or unpacked; most have a few thousand
_UNPACKERS: dict[Any, Any] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
}


@dataclass(frozen=True)
class Notification:
    """What an OpenStack service published. The names are those of oslo.messaging's endpoints."""

    context: Mapping[str, Any]
    publisher_id: str
    event_type: str
    priority: str
    payload: Any
    metadata: Mapping[str, Any]


def decode(body: bytes, properties: pika.BasicProperties) -> Notification:
    """Decode a message of oslo.messaging's drivers ``messaging`` and ``messagingv2``.

    https://docs.openstack.org/oslo.messaging/latest/reference/notification_driver.html

    :raises MalformedNotification: it is not such a message; the text says why
    """
    message = _parse_json(_unpack(body, properties))
    if "oslo.version" in message and "oslo.message" in message:
        message = _open_envelope(message["oslo.version"], message["oslo.message"])
    for name in ("publisher_id", "event_type", "priority"):
        if not isinstance(message.get(name), str):
            raise MalformedNotification(f"{name} is missing or not a string")
    context = {name[9:]: value for name, value in message.items() if name.startswith("_context_")}
    return Notification(
        context,
        message["publisher_id"],
        message["event_type"],
        message["priority"].lower(),
        message.get("payload"),
        {name: message.get(name) for name in ("message_id", "timestamp")},
    )


def _unpack(body: bytes, properties: pika.BasicProperties) -> str:
    compression = (properties.headers or {}).get("compression")
    try:
        if compression and len(body) <= MAX_BYTES:
            unpacker = _UNPACKERS[compression]()
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


def _open_envelope(version: Any, text: Any) -> dict[str, Any]:
    try:  # all 2.x are compatible, so only the major number is checked
        major, _minor = map(int, version.split(".")[:2])
    except (AttributeError, ValueError):
        major = 0
    if major != 2:
        raise MalformedNotification(f"envelope version {version!r} is not 2.x")
    if not isinstance(text, str):
        raise MalformedNotification("oslo.message is not a string")
    return _parse_json(text)


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise MalformedNotification(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise MalformedNotification("the body is JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise MalformedNotification("the body is JSON, but not an object")
    return value


#: In an envelope the message is a JSON string, in which quotes are escaped.
_EVENT_TYPE = re.compile(rb'event_type(\\?)"\s*:\s*\1"([\w.:-]{1,255})\1"')


def quick_event_type(body: bytes, properties: pika.BasicProperties) -> bytes | None:
    r"""Find the event type in the raw body: this is much faster than decoding it.

    Returns None if this quick look is not reliable: the body is compressed, has the key more than
    once, or has escapes like ``\u0065`` that could hide a key.
    """
    found = _EVENT_TYPE.search(body)
    is_reliable = (
        body.count(b"event_type") == 1
        and rb"\u00" not in body
        and "compression" not in (properties.headers or ())
    )
    return found[2] if found and is_reliable else None


# --- Filter ------------------------------------------------------------------------------------


def accepts(source: Source, notification: Notification) -> bool:
    """Apply the five rules of oslo.messaging's NotificationFilter.

    A value that is not a string never matches.
    https://docs.openstack.org/oslo.messaging/latest/reference/notification_listener.html
    """
    for name in ("context", "metadata", "payload"):
        values = getattr(notification, name)
        for key, regex in getattr(source, name):
            if not isinstance(values, dict) or not _matches(regex, values.get(key)):
                return False
    return _matches(source.event_type, notification.event_type) and _matches(
        source.publisher_id, notification.publisher_id
    )


def _matches(regex: Regex, value: Any) -> bool:
    return regex is None or (isinstance(value, str) and regex.match(value) is not None)


# --- Deletion ----------------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.I)


@dataclass(frozen=True)
class Deletion:
    """What to remove from K2HR3: some addresses of an instance, or the whole instance.

    :param cuk: the UUID of the instance, which K2HR3 calls cuk, in any spelling. It becomes lower
        case with dashes: for any other spelling K2HR3 answers 204 and removes nothing.
    :param ips: IPv4 or IPv6 addresses; without any, the whole instance is meant
    :raises MalformedNotification: not a UUID, or not an address
    """

    cuk: str
    ips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.cuk, str) or not _UUID.fullmatch(self.cuk):
            raise MalformedNotification(f"instance id {self.cuk!r} is not a UUID")
        object.__setattr__(self, "cuk", str(uuid.UUID(self.cuk)))
        for ip in self.ips:
            try:
                if not isinstance(ip, str) or "%" in ip:  # no zone such as fe80::1%eth0
                    raise ValueError
                ipaddress.ip_address(ip)
            except ValueError:
                raise MalformedNotification(f"address {ip!r} is not an IP address") from None

    @property
    def query(self) -> str:
        """The query of the DELETE.

        `host` is one JSON list: if the parameter came twice, K2HR3 would remove the whole instance.
        """
        values = {"extra": "openstack-auto-v1"}  # what OpenStack's instances register with
        if self.ips:
            values["host"] = json.dumps(self.ips, separators=(",", ":"))
        values["cuk"] = self.cuk
        return urllib.parse.urlencode(values)


def _port_deletion(payload: Mapping[str, Any], _event_type: str) -> Deletion | None:
    """Return a deletion of the port's own addresses only, since its instance may live on."""
    port = _get(payload, "port", dict) or {}
    owner = _get(port, "device_owner", str)
    device_id = _get(port, "device_id", str)
    fixed_ips = _get(port, "fixed_ips", list)
    # If there is no owner: only an instance's port has a UUID as device_id, one of DHCP has not.
    of_instance = (
        _UUID.fullmatch(device_id or "") if owner is None else owner.startswith("compute:")
    )
    if not (of_instance and device_id and fixed_ips):
        return None
    addresses: Any = [(ip if isinstance(ip, dict) else {}).get("ip_address") for ip in fixed_ips]
    return Deletion(device_id, tuple(addresses))


def _instance_deletion(id_key: str, payload: Mapping[str, Any], event_type: str) -> Deletion | None:
    """Return a deletion of the whole instance, only if its state is "deleted".

    Nova publishes delete.end also for a deletion that failed, and for some deletions only
    instance.update. So the state decides. A delete.end without any state was made by hand; it is
    accepted as a deletion.
    """
    instance = payload
    if "nova_object.data" in payload:
        instance = _get(payload, "nova_object.data", dict) or {}
    by_default = "deleted" if event_type.endswith(".delete.end") else "unknown"
    state = instance.get("state", by_default)
    if not isinstance(state, str):
        raise MalformedNotification(f"state is {state!r}, expected a string")
    return Deletion(instance.get(id_key, "")) if state == "deleted" else None


def _get(values: Mapping[str, Any], key: str, expected: type) -> Any:
    """Return the value of a key, None if it is missing or null.

    :raises MalformedNotification: the value has another type than `expected`
    """
    value = values.get(key)
    if value is not None and not isinstance(value, expected):
        raise MalformedNotification(
            f"{key} is a {type(value).__name__}, expected a {expected.__name__}"
        )
    return value


#: Payload shapes. The first key here that the payload has selects the reader, which is called as
#: reader(payload, event_type).
PAYLOAD_SHAPES: dict[str, Callable[[Any, str], Optional[Deletion]]] = {
    "port": _port_deletion,
    "port_id": lambda payload, event_type: None,  # old Neutron sends only the port's id
    "nova_object.data": partial(_instance_deletion, "uuid"),
    "instance_id": partial(_instance_deletion, "instance_id"),
}


# --- Endpoint ----------------------------------------------------------------------------------


class Endpoint:
    """Turns notifications into deletions. A subclass can support more payloads or priorities.

    As in oslo.messaging, a method is named after the priority it is for. The listener subscribes
    to ``<topic>.<priority>`` for each such method.
    """

    _warned_of_old_neutron = False

    def info(self, notification: Notification) -> Deletion | None:
        """Return the deletion that a notification leads to, None if there is nothing to delete.

        :raises MalformedNotification: the notification becomes a dead letter, as with any error
        """
        payload = notification.payload
        if not isinstance(payload, dict):
            raise MalformedNotification("payload is not an object")
        shape = next((key for key in PAYLOAD_SHAPES if key in payload), "")
        if not shape:
            raise MalformedNotification(f"payload has none of {', '.join(PAYLOAD_SHAPES)}")
        if shape == "port_id" and not self._warned_of_old_neutron:
            self._warned_of_old_neutron = True
            LOG.warning(
                "this Neutron does not say whose ports it deletes, so nothing can be deleted in "
                "K2HR3: listen to Nova's notifications instead"
            )
        return PAYLOAD_SHAPES[shape](payload, notification.event_type)

    def priorities(self) -> list[str]:
        """Return the priorities that have a method."""
        return [name for name in PRIORITIES if callable(getattr(self, name, None))]

    def deletion(self, notification: Notification) -> Deletion | None:
        """Call the method of the notification's priority; None if there is no such method."""
        if notification.priority not in self.priorities():
            return None
        deletion = getattr(self, notification.priority)(notification)
        if not isinstance(deletion, (Deletion, type(None))):
            raise MalformedNotification(f"the endpoint returned {deletion!r}, expected a Deletion")
        return deletion


# --- Role API ----------------------------------------------------------------------------------

_DELHOST_HINT = "this host may be missing in the API's delhost role, or K2HR3's store is down"
_SIZE_HINT = "too many addresses for one request"
#: What to check, by the status of the answer.
STATUS_HINTS = {
    400: _DELHOST_HINT,
    403: _DELHOST_HINT,
    404: "check the path of api_url",
    414: _SIZE_HINT,
    431: _SIZE_HINT,
}
#: K2HR3 removes a member and its index in two steps. If one step times out, the member can stay
#: without an index. Then every DELETE is answered 204 and does not remove the member. A success is
#: in doubt if it took longer than these seconds, or if it follows a 403, a reset or a time-out.
DOUBTFUL_SECONDS = 8.0
DOUBT = "K2HR3 answered 204, but may have kept a member of this instance: look at its roles"
#: Bytes. K2HR3 refuses request lines over 16 kB (Node.js's limit of a request head).
LONGEST_REQUEST_LINE = 16_000
#: What urllib3 raises if there is no answer, or one that is not HTTP.
NO_ANSWER = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
#: Those of them that come before the request is sent.
NOT_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
)
_HttpResponse: Any = http.client.HTTPResponse


class _DeadlineReader(io.RawIOBase):
    """Reads a reply under one deadline, since a socket's own time-out starts anew at each read.

    HTTPResponse takes it for the socket and calls `makefile`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
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


def _response(sock: socket.socket, *rest: Any, **options: Any) -> Any:
    return _HttpResponse(_DeadlineReader(sock), *rest, **options)


class _Connection(HTTPConnection):
    """A connection whose attempts end in time, and that is not used again after idling long."""

    idle_seconds = 4.0  # K2HR3 closes an idle connection after 5
    response_class: Any = staticmethod(_response)
    _last_used = 0.0

    def _new_conn(self) -> socket.socket:
        """Let all addresses of the host share one time-out. urllib3 gives each of them its own."""
        deadline = time.monotonic() + float(self.timeout or 0)
        problem: Exception = OSError("no address")
        try:
            addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            addresses = []
            problem = error
        for number, (*_, address) in enumerate(addresses):
            left = deadline - time.monotonic()
            # a dead address leaves time for the others
            share = max(0.01, left / (len(addresses) - number))
            try:
                sock = socket.create_connection(cast(Any, address[:2]), share)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                return sock
            except OSError as error:
                problem = error
        if isinstance(problem, socket.timeout):
            raise urllib3.exceptions.ConnectTimeoutError(f"{self._dns_host}: timed out")
        raise urllib3.exceptions.NewConnectionError(cast(Any, self), f"{self._dns_host}: {problem}")

    def connect(self) -> None:
        super().connect()
        self._last_used = time.monotonic()

    def request(self, *rest: Any, **options: Any) -> None:
        if self.sock is not None and time.monotonic() - self._last_used > self.idle_seconds:
            self.close()
        super().request(*rest, **options)
        self._last_used = time.monotonic()


class _TlsConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        try:
            super().connect()
        except socket.timeout:  # urllib3 would call it a time-out of the request
            raise urllib3.exceptions.ConnectTimeoutError(
                f"{self.host}: the TLS handshake timed out"
            ) from None


class RoleApi:
    """K2HR3's Role API over one pool of kept-alive connections; safe from any thread.

    https://k2hr3.antpick.ax/api_role.html

    :raises ConfigError: certificate files can't be used
    """

    def __init__(self, options: K2hr3) -> None:
        self._path = urllib.parse.urlsplit(options.api_url).path or "/"
        self._request = f"DELETE {options.api_url}"
        self._timeout = urllib3.Timeout(total=options.timeout_seconds)
        tls = options.tls.context()
        tls_options: Any = {"ssl_context": tls} if tls else {}
        self._pool: Any
        self._pool = urllib3.connection_from_url(
            options.api_url, maxsize=options.concurrency, **tls_options
        )
        self._pool.ConnectionCls = _TlsConnection if tls else _Connection
        if tls and options.allow_self_signed_cert:  # our own warning at start is enough
            self._pool.cert_reqs = "CERT_NONE"
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def delete(self, deletion: Deletion) -> int:
        """Make one attempt, within `timeout_seconds` after DNS has answered. Follow no redirect.

        :return: the status, 2xx

        :raises RoleApiError: any answer other than 2xx, or no answer
        """
        target = f"{self._path}?{deletion.query}"
        if len(f"DELETE {target} HTTP/1.1") > LONGEST_REQUEST_LINE:
            raise RoleApiError(f"{self._request}: not sent, {_SIZE_HINT}", status=414)
        began = time.monotonic()
        try:
            response = self._pool.urlopen(
                "DELETE",
                target,
                redirect=False,
                retries=False,
                headers={"User-Agent": f"k2hr3_osnl/{__version__}"},
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
        except NO_ANSWER as error:
            raise self._no_answer_error(error, time.monotonic() - began) from None
        status = int(response.status)
        self._release(response, is_final=status >= 200)
        if not 200 <= status < 300:
            hint = STATUS_HINTS.get(status, "redirects are not followed" if status < 400 else "")
            raise RoleApiError(
                f"{self._request}: {status}" + (hint and f": {hint}"),
                status,
                # after a 1xx nobody waits for the final answer
                may_have_acted=status == 403 or status < 200,
                retry_after=_retry_after_seconds(response.headers.get("Retry-After", "")),
            )
        return status

    def _release(self, response: Any, is_final: bool) -> None:
        """Make the connection ready for the next request, or close it; the body does not matter.

        :param is_final: False for a 1xx. A final answer follows it, which must not be read as the
            answer to the next request, so the connection is closed.
        """
        try:
            if is_final:
                response.read(65536, decode_content=False)
        except NO_ANSWER as error:
            LOG.debug(f"{self._request}: {response.status}, and then {printable(repr(error))}")
        if not response.closed:
            response.close()
        response.release_conn()

    def close_idle(self) -> None:
        """Close the connections that no attempt uses; the next attempts open them again."""
        idle = self._pool.pool
        taken = []
        with contextlib.suppress(Empty):
            while True:
                taken.append(idle.get_nowait())
        for connection in taken:
            # Full: a worker may have given one back meanwhile
            with contextlib.suppress(OSError, Full):
                if connection:
                    connection.close()
                idle.put_nowait(connection)

    def _no_answer_error(self, error: Exception, seconds: float) -> RoleApiError:
        timed_out = isinstance(error, (urllib3.exceptions.TimeoutError, socket.timeout))
        was_connected = not isinstance(error, NOT_CONNECTED)
        # K2HR3 may close an idle connection just when a request comes. Then it has not acted.
        was_idle = "RemoteDisconnected" in repr(error) and seconds < 1
        # remove the names that urllib3 gives to its own objects
        text = re.sub(r"<[^>]*>: |\w*Connection\w*\([^)]*\): ", "", str(error))
        return RoleApiError(
            f"{self._request}: {type(error).__name__}: {printable(text)}",
            timed_out=timed_out and not isinstance(error, urllib3.exceptions.NewConnectionError),
            may_have_acted=was_connected and not was_idle,
        )


def _retry_after_seconds(retry_after: str) -> float:
    """Read a Retry-After header (RFC 9110, 10.2.3) as seconds from now; 0 if it can't be read."""
    try:
        if retry_after.isdigit():
            return float(retry_after)
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, LookupError, OverflowError):
        return 0.0


class Attempted(NamedTuple):
    """The outcome of an attempt; `error` is None if it succeeded."""

    error: RoleApiError | None
    seconds: float


def make_attempt(api: RoleApi, deletion: Deletion) -> Attempted:
    """Make one attempt. No error is raised, since it would end a worker thread."""
    began = time.monotonic()
    failure = None
    try:
        api.delete(deletion)
    except RoleApiError as error:
        failure = error
    except Exception as error:
        failure = RoleApiError(f"unexpected {error!r}")
    return Attempted(failure, time.monotonic() - began)


@dataclass(frozen=True)
class Probe:
    """A job that tests whether K2HR3 works and this host may delete.

    It deletes a random UUID, which removes nothing but needs all that a real deletion needs.
    """

    deletion: Deletion = dataclasses.field(default_factory=lambda: Deletion(str(uuid.uuid4())))


class Breaker:
    """A circuit breaker. It is open while K2HR3 is in trouble: no attempts then. Not thread-safe.

    A status does not tell whether K2HR3 or this one deletion has a problem (400 may mean that the
    store is down). So after three failures in a row a probe is sent, and if it fails the breaker
    opens. While it is open, probes follow after pauses of 1, 2, 4 … seconds, or longer if the
    answer to a probe has a Retry-After. The first probe that succeeds closes it.

    :param longest: the longest pause, seconds
    """

    def __init__(self, longest: float) -> None:
        self.failures = 0  # in a row
        self.open = False
        self._longest = longest
        self._pause = 1.0
        self._probe_at = 0.0

    def count_attempt(self, error: RoleApiError | None, seconds: float) -> None:
        """Count an attempt, which took `seconds`.

        A time-out, or a failure after 5 s, counts as three: it kept K2HR3 busy for long. A
        permanent error tells nothing about K2HR3.
        """
        if error is None:
            self.failures = 0
        elif not error.is_permanent:
            self.failures += 3 if error.timed_out or seconds > 5 else 1

    def seconds_to_probe(self, now: float) -> float:
        """Return the seconds from `now` (monotonic) until a probe is due, or infinity."""
        if self.open:
            return max(0.0, self._probe_at - now)
        return 0.0 if self.needs_probe else math.inf

    @property
    def needs_probe(self) -> bool:
        """True if a probe must succeed before the next attempt."""
        return self.failures >= 3

    def is_probe_due(self, now: float) -> bool:
        """True if the next request must be a probe, at once; `now` is monotonic."""
        return self.seconds_to_probe(now) == 0

    def count_probe(self, error: RoleApiError | None, now: float, seconds: float) -> None:
        """Close if the probe succeeded, else open; `now` is monotonic.

        :param seconds: how long the probe took. The next pause is at least as long, since a probe
            may block K2HR3. So others have at least half of K2HR3's time.
        """
        self.open = error is not None
        if error is None:
            self.failures = 0
            self._pause = 1.0
        else:
            pause = max(self._pause * random.uniform(0.8, 1.2), error.retry_after)
            self._probe_at = now + max(min(pause, self._longest), seconds)
            self._pause = min(2 * self._pause, self._longest)


# --- Verdicts ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A decision about a delivery.

    :param word: what the log calls a deletion with this verdict
    :param counter: the counter in `Listener.counters` that it adds to
    :param copy_to: suffix of the queue that gets a copy before the ack; if empty, there is no copy

    A new verdict also needs its counter in `COUNTERS` and `METRICS`, and a place in
    `Drain._stop_when_done`.
    """

    word: str
    counter: str
    copy_to: str = ""


IGNORED = Verdict("ignored", "ignored")
DONE = Verdict("deleted", "deleted")
RETRY = Verdict("not deleted", "retried", ".retry")
#: K2HR3 says that it is done, but a member may be left: a person has to look.
DOUBTFUL = Verdict("deleted", "doubtful", ".dead_letter")
DEAD_LETTER = Verdict("never deleted", "dead_letters", ".dead_letter")


class Skipped(NamedTuple):
    """The outcome if no attempt was made: the reason, and the verdict that follows from it."""

    reason: str
    verdict: Verdict


class Copied(enum.Enum):
    """The publisher's answer about a copy."""

    CONFIRMED = "the broker has confirmed it"
    FAILED = "this copy could not be published"
    PAUSED = "copies are paused after another one failed"


SKIP_REMOVED = Skipped("the whole instance has been removed already", IGNORED)
SKIP_IN_TROUBLE = Skipped("K2HR3 is in trouble", RETRY)
SKIP_LATE = Skipped("K2HR3 does not keep up", RETRY)
SKIP_REDELIVERED = Skipped("the broker has delivered it before", RETRY)
SKIP_CANCELLED = Skipped("the broker cancelled its consumer", RETRY)


def decide(delivery: Delivery, error: RoleApiError | None, limit: float) -> Verdict:
    """Return the verdict on a deletion after an attempt.

    :param delivery: with the attempts so far, this one included
    :param error: why the attempt failed; None if it succeeded
    :param limit: the setting `dead_letter_after_seconds`; 0 means no limit
    """
    if error is None:
        return DOUBTFUL if delivery.is_doubtful else DONE
    failing_seconds = delivery.last_failure - delivery.first_failure
    # another host's clock may have written first_failure wrong, so require three attempts
    is_over_limit = 0 < limit <= failing_seconds and delivery.attempts >= 3
    return DEAD_LETTER if error.is_permanent or is_over_limit else RETRY


# --- Consumer and delivery ---------------------------------------------------------------------


class Consumer:
    """A channel that consumes one queue, and its deliveries that are not acked yet.

    :param on_delivery: called with each delivery
    :raises amqp.ChannelClosedByBroker: the queue is missing or may not be read
    """

    def __init__(
        self,
        connection: pika.BlockingConnection,
        queue: str,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        self.queue = queue
        self._on_delivery = on_delivery
        self.is_cancelled = False  # by the broker
        self.is_evacuated = False  # its deliveries are on their way to the retry queue
        self.unfinished: dict[int, Delivery] = {}  # in the order of their delivery tags
        self.finished: list[int] = []  # delivery tags that the next flush acks
        self.channel = connection.channel()
        self.channel.basic_qos(prefetch_count=prefetch)
        self.channel.add_on_cancel_callback(self._on_cancel)
        self.consumer_tag = self.channel.basic_consume(queue, self._on_message)

    @property
    def is_open(self) -> bool:
        """True if deliveries can still be acked."""
        return bool(self.channel.is_open)

    @property
    def is_copying(self) -> bool:
        """True if copies of its deliveries are being made."""
        return any(delivery.is_being_copied for delivery in self.unfinished.values())

    def _on_message(
        self, _channel: Any, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        delivery = Delivery(self, method.delivery_tag, body, properties, self.queue)
        self.unfinished[delivery.delivery_tag] = delivery
        self._on_delivery(delivery)

    def _on_cancel(self, _frame: Any) -> None:
        self.is_cancelled = True

    def cancel(self) -> None:
        """Ask the broker for no more deliveries."""
        if self.is_open and not self.is_cancelled:
            self.channel.basic_cancel(self.consumer_tag)

    def flush(self) -> None:
        """Ack what is finished.

        One ack covers all tags before the oldest unfinished one; beyond it each tag gets its own.
        No tag may be in `finished` twice: a second ack would close the channel.
        """
        finished = self.finished
        self.finished = []
        oldest = next(iter(self.unfinished), math.inf)
        together = max((tag for tag in finished if tag < oldest), default=0)
        if together:
            self.channel.basic_ack(together, multiple=True)
        for tag in finished:
            if tag > together:
                self.channel.basic_ack(tag)


@dataclass(eq=False)
class Delivery:
    """A message that was delivered to us and is not acked yet."""

    consumer: Consumer
    delivery_tag: int
    body: bytes
    properties: pika.BasicProperties
    queue: str  # the notification queue that it first came from
    waiting_since: float = 0.0  # monotonic: when it last began to wait for a worker
    is_retry: bool = False  # it came from the retry queue
    deletion: Any = None  # the Deletion that it leads to, once it is read
    event: str = ""  # event type and message id, for the log
    attempts: int = 0  # so far, also by other listeners
    first_failure: float = 0.0  # epoch seconds
    last_failure: float = 0.0  # epoch seconds
    received: float = 0.0  # monotonic: for the metrics
    due: float = 0.0  # monotonic: the earliest time of its next attempt
    copy_at: float = 0.0  # monotonic: if its copy failed, the earliest time of the next copy
    verdict: Verdict | None = None
    reason: str = ""  # of the verdict
    is_doubtful: bool = False  # an attempt may have left a member behind, see DOUBTFUL_SECONDS
    is_being_copied: bool = False

    def read_headers(self) -> None:
        """Read the headers of a retry, which `copy_properties` wrote."""
        self.attempts = int(number_header(self.properties, "x-k2hr3-attempts"))
        self.first_failure = number_header(self.properties, "x-k2hr3-first-failure")
        self.last_failure = number_header(self.properties, "x-k2hr3-last-failure")
        self.is_doubtful = "x-k2hr3-doubt" in (self.properties.headers or {})

    def finish(self) -> None:
        """Have its consumer's next flush ack it."""
        if self.consumer.unfinished.pop(self.delivery_tag, None):
            self.consumer.finished.append(self.delivery_tag)

    def copy_properties(self) -> pika.BasicProperties:
        """Return the properties of its copy, with headers that tell what happened so far."""
        headers: dict[str, Any] = {
            "x-k2hr3-queue": self.queue,
            "x-k2hr3-attempts": self.attempts,
            "x-k2hr3-reason": self.reason,
        }
        if self.attempts:
            headers["x-k2hr3-first-failure"] = int(self.first_failure)
            headers["x-k2hr3-last-failure"] = int(self.last_failure)
        if self.is_doubtful:
            headers["x-k2hr3-doubt"] = "done" if self.verdict is DOUBTFUL else "open"
        return safe_properties(self.properties, headers)


def safe_properties(
    properties: pika.BasicProperties, headers: dict[str, Any]
) -> pika.BasicProperties:
    """Return the sender's properties, made safe for a copy: the broker must not refuse or drop it.

    Of the sender's headers only `compression` is kept: others may be too large, or of a kind that
    pika can read and not write.

    :param headers: our headers, which replace the sender's
    """
    properties = copy.copy(properties)
    compression = (properties.headers or {}).get("compression")
    is_writable = isinstance(compression, str) and 0 < len(compression) <= 255
    properties.headers = {**headers, "compression": compression} if is_writable else headers
    properties.user_id = None  # the broker refuses the id of another user
    properties.expiration = None  # the broker would drop the copy then
    properties.delivery_mode = 2
    properties.timestamp = properties.timestamp or int(time.time())  # dead-letters shows the age
    return properties


def number_header(properties: pika.BasicProperties, name: str) -> float:
    """Return a header that should be a number; 0 if it is missing, negative or anything else."""
    value: Any = (properties.headers or {}).get(name)
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 2**40 else 0.0


# --- Publisher ---------------------------------------------------------------------------------


@dataclass
class Pause:
    """A pause of copies after failures: 1, 2, 4 … seconds. A success resets it."""

    end: float = 0.0  # monotonic
    seconds: float = 0.0  # 0 after a success


@dataclass
class CopyCounts:
    """What the publisher knows about one queue."""

    begun: int = 0  # copies that are confirmed or under way
    confirmed: int = 0
    pause: Pause = dataclasses.field(default_factory=Pause)


class Publisher:
    """Publishes copies, in a daemon thread and on a connection of its own.

    While the broker is short of memory, it does not read connections that have published. Acks on
    such a connection would wait, too, so the listener's connection only consumes.

    A failure of the connection pauses all copies. A refused copy pauses only copies to its queue.
    During a pause the listener holds such deliveries unacked. The first pauses are short: if the
    consuming connection is lost, held deliveries return to their queue, and a queue with a delivery
    limit drops a message after some returns.

    :param answer: called in the publisher's thread with a delivery, and what became of its copy
    """

    longest_pause = 30.0  #: seconds
    idle_seconds = 5.0  #: after so long without a copy the connection is closed

    def __init__(
        self,
        hosts: list[pika.ConnectionParameters],
        answer: Callable[[Delivery, Copied], None],
        connect: Callable[..., pika.BlockingConnection] = connect,
        clock: Any = time,
    ) -> None:
        self._hosts = [copy.copy(host) for host in hosts]
        for host in self._hosts:
            host.heartbeat = 10
            host.blocked_connection_timeout = 10
        self._answer = answer
        self._connect = connect
        self._clock = clock
        self._copies: SimpleQueue[tuple[Delivery, str, pika.BasicProperties]] = SimpleQueue()
        self._connection_pause = Pause()
        self._copies_to: dict[str, CopyCounts] = {}
        self._connection: pika.BlockingConnection | None = None
        self._channel: Any = None

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def copies_to(self, queue: str) -> CopyCounts:
        """Return what is known about a queue."""
        return self._copies_to.setdefault(queue, CopyCounts())

    def copy(self, delivery: Delivery, queue: str) -> None:
        """Have a delivery copied to a queue; for the listener's thread."""
        self._copies.put((delivery, queue, delivery.copy_properties()))

    def _run(self) -> None:
        while True:
            try:
                self.publish_next(self.idle_seconds if self._connection else None)
            except Empty:
                self._close()

    def publish_next(self, timeout: float | None) -> None:
        """Publish the next copy and answer.

        :param timeout: seconds to wait for a copy; None means no limit
        :raises Empty: no copy came
        """
        delivery, queue, properties = self._copies.get(timeout=timeout)
        now = self._clock.monotonic()
        queue_pause = self.copies_to(queue).pause
        copied = Copied.PAUSED
        if now >= max(self._connection_pause.end, queue_pause.end):
            copied = self._publish(queue, delivery.body, properties)
        self._answer(delivery, copied)

    def _publish(self, queue: str, body: bytes, properties: pika.BasicProperties) -> Copied:
        """Publish one copy."""
        counts = self.copies_to(queue)
        began = self._clock.monotonic()
        was_open = self._channel is not None
        try:
            if self._channel is None:
                self._connection = self._connect(self._hosts)
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
            counts.begun += 1
            self._channel.basic_publish("", queue, body, properties, mandatory=True)
        except (amqp.UnroutableError, amqp.NackError) as error:
            self._connection_pause.seconds = 0  # the connection works
            self._begin_pause(counts.pause, queue, error)
        except Exception as error:
            self._close()
            # the connection was lost before this copy: try once more, on a new one
            if was_open and self._clock.monotonic() - began < 1:
                counts.begun = counts.confirmed  # this one is not under way any more
                return self._publish(queue, body, properties)
            self._begin_pause(self._connection_pause, queue, error)
        else:
            counts.confirmed += 1
            for pause in (self._connection_pause, counts.pause):
                if pause.seconds:
                    LOG.info(f"copies to {queue} are made again")
                pause.seconds = 0
            return Copied.CONFIRMED
        counts.begun = counts.confirmed
        return Copied.FAILED

    def _begin_pause(self, pause: Pause, queue: str, error: Exception) -> None:
        """Begin a pause that is longer than the last one, and log it."""
        now = self._clock.monotonic()
        # A held delivery is copied again within retry_interval_seconds, which is 600 at most. If
        # no copy was tried for so long, nothing was held any more, and this is a new problem.
        is_known = pause.seconds > 0 and now < pause.end + 600
        pause.seconds = min(2 * pause.seconds, self.longest_pause) if is_known else 1.0
        pause.end = now + pause.seconds
        LOG.log(
            logging.DEBUG if is_known else logging.ERROR,
            f"no copy to {queue}, held instead; next try in {pause.seconds:.0f} s: "
            f"{explain(error)} (check the queue, and write permission on amq.default)",
        )

    def _close(self) -> None:
        close_quietly(self._connection)
        self._connection = None
        self._channel = None


# --- Attempts ----------------------------------------------------------------------------------

Job = Union[Delivery, Probe]
Result = Tuple[Job, Union[Attempted, Skipped, Copied]]


class Snapshot(NamedTuple):
    """The state of `Attempts` at one moment, taken under its lock.

    :param results: outcomes since the last snapshot
    :param in_trouble: the breaker is open, so there are no attempts
    :param running: attempts and probes whose results are not collected yet
    :param waiting: deletions that no worker has taken yet
    """

    results: list[Result]
    in_trouble: bool
    running: int
    waiting: int


class RecentSet(OrderedDict[str, None]):
    """Remembers up to `size` texts. When it is full, it forgets the one that was added first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def add(self, text: str) -> None:
        """Add a text, and forget the oldest one if there are too many."""
        self[text] = None
        if len(self) > self._size:
            self.popitem(last=False)


class FreshQueue(Deque[Delivery]):
    """Deliveries from notification queues that wait for a worker, the oldest first.

    K2HR3 does not keep up if something has waited here for more than `hold_seconds` without a
    break. It is a break if the queue is empty and nothing was added for 0.1 s. Once K2HR3 does not
    keep up, that must last for 1 s.
    """

    def __init__(self, hold_seconds: float) -> None:
        super().__init__()
        self._hold_seconds = hold_seconds
        self._busy_since = math.inf  # monotonic: something waits here since then, without a break
        self._last_added = 0.0  # monotonic
        self._is_late = False

    def add(self, delivery: Delivery, now: float) -> None:
        """Add a delivery; `now` is monotonic."""
        if not self and not self._is_late and now - self._last_added > 0.1:
            self._busy_since = math.inf  # that was a break
        self.append(delivery)
        if delivery.verdict is None:  # else its copy failed, and it comes back every second
            self._last_added = now

    def is_overdue(self, now: float) -> bool:
        """Return True if K2HR3 does not keep up; `now` is monotonic."""
        if self:
            self._busy_since = min(self._busy_since, self[0].waiting_since)
        elif now - self._last_added > 1:
            self._busy_since = math.inf
        self._is_late = now - self._busy_since > self._hold_seconds
        if self._is_late and any(each.verdict is None for each in self):
            self._last_added = now  # more comes when these are skipped: the prefetch held it up
        return self._is_late


class Attempts:
    """What the listener's thread, the workers and the publisher share, behind one lock (a monitor).

    These are the deliveries that wait, the results, the breaker and the wake-up. The listener's
    thread submits deliveries and collects results. Each worker takes its next job itself, if the
    breaker lets it. After a failure only one job runs at a time, until one succeeds. A job counts
    as running until its result is collected. So after a failure the next job starts only when the
    listener's thread has seen that result.

    :param hold_seconds: see `FreshQueue`; while K2HR3 does not keep up, fresh deletions are skipped
    :param remembered: how many removed instances to remember; fresh deletions of them are skipped
    :param wake_at: how many results wake the listener's thread. Fewer do if one of them is urgent,
        or if a worker finds no job.
    :param wake: wakes the listener's thread; called in any thread, with the lock held
    """

    def __init__(
        self,
        breaker: Breaker,
        hold_seconds: float,
        remembered: int,
        wake_at: int,
        wake: Callable[[], None],
    ) -> None:
        self._changed = threading.Condition()
        self._breaker = breaker
        self._wake_at = wake_at
        self._wake = wake
        self._is_woken = False  # since the last `collect`
        self._is_stopped = False
        self._fresh = FreshQueue(hold_seconds)
        self._retries: Deque[Delivery] = deque()  # from the retry queue, and due
        self._held: list[Delivery] = []  # until an attempt is due, or the next copy
        self._is_retry_next = False
        self._running = 0
        self._results: list[Result] = []
        self._removed = RecentSet(remembered)  # whole instances

    # For the listener's thread

    def submit(self, delivery: Delivery, now: float) -> None:
        """Add a delivery: to be attempted, or held until it is due; `now` is monotonic.

        If a delivery already has a verdict, its copy has failed. With the verdict RETRY it is then
        attempted, if it is due and the breaker is closed. All others are copied again.
        """
        verdict = delivery.verdict
        with self._changed:
            if (delivery.copy_at if verdict else delivery.due) > now:
                self._held.append(delivery)
            elif verdict and (verdict is not RETRY or self._breaker.open or delivery.due > now):
                self._results.append((delivery, Skipped(delivery.reason, verdict)))
            elif self._breaker.open and not delivery.is_retry:
                self._results.append((delivery, SKIP_IN_TROUBLE))
            elif delivery.is_retry:
                self._retries.append(delivery)
            else:
                self._fresh.add(delivery, now)
            self._changed.notify()

    def collect(self, now: float) -> Snapshot:
        """Take the results; return them in a snapshot; `now` is monotonic."""
        with self._changed:
            self._is_woken = False
            is_overdue = self._fresh.is_overdue(now)  # asked before held ones come back
            held = self._held
            self._held = []
            for delivery in held:
                delivery.waiting_since = now
                self.submit(delivery, now)
            if is_overdue:
                self._skip_fresh(SKIP_LATE)
            results = self._results
            self._results = []
            # each finished job has exactly one such outcome
            self._running -= sum(isinstance(outcome, Attempted) for _, outcome in results)
            if self._breaker.failures:  # after a failure workers wait until nothing runs
                self._changed.notify_all()
            waiting = len(self._fresh) + len(self._retries)
            return Snapshot(results, self._breaker.open, self._running, waiting)

    def take_back(self, consumer: Consumer) -> list[Delivery]:
        """Remove and return the deliveries of one consumer that wait or are held."""
        with self._changed:
            taken = []
            for queue in (self._fresh, self._retries, self._held):
                for delivery in [each for each in queue if each.consumer is consumer]:
                    queue.remove(delivery)
                    taken.append(delivery)
            return taken

    def forget_removed(self, cuk: str) -> None:
        """Attempt deletions of an instance again, since K2HR3 may have kept a member of it."""
        with self._changed:
            self._removed.pop(cuk, None)

    def stop(self) -> None:
        """Give out no more jobs."""
        with self._changed:
            self._is_stopped = True

    # For the publisher

    def add_answer(self, delivery: Delivery, copied: Copied) -> None:
        """Add the publisher's answer about a copy."""
        with self._changed:
            self._results.append((delivery, copied))
            self._wake_listener()

    # For the workers

    def work(self, api: RoleApi) -> None:
        """Take jobs and make attempts for ever. This is the loop of a worker thread."""
        while True:
            with self._changed:
                job = self.take(time.monotonic())
                while job is None:
                    self._changed.wait(self._seconds_to_wait(time.monotonic()))
                    job = self.take(time.monotonic())
            attempted = make_attempt(api, job.deletion)
            self.report(job, attempted, time.monotonic())

    def take(self, now: float) -> Job | None:
        """Return the next job, None if there is none yet; `now` is monotonic."""
        with self._changed:
            job = self._next_job(now)
            if job is not None:
                self._running += 1
            elif self._results:
                self._wake_listener()
            return job

    def report(self, job: Job, attempted: Attempted, now: float) -> None:
        """Add the result of a job; `now` is monotonic."""
        with self._changed:
            error, seconds = attempted
            failures_before = self._breaker.failures
            if isinstance(job, Probe):
                self._breaker.count_probe(error, now, seconds)
            else:
                self._breaker.count_attempt(error, seconds)
            if self._breaker.open:
                self._skip_fresh(SKIP_IN_TROUBLE)
            if failures_before and not self._breaker.failures:  # more jobs may run now
                self._changed.notify_all()
            is_certain = error is None and seconds <= DOUBTFUL_SECONDS
            if isinstance(job, Delivery) and is_certain and not job.is_doubtful:
                self._remember(job.deletion)
            self._results.append((job, attempted))
            is_urgent = isinstance(job, Probe) or job.is_retry or error is not None
            if is_urgent or len(self._results) >= self._wake_at:
                self._wake_listener()

    # Called with the lock held

    def _next_job(self, now: float) -> Job | None:
        if self._is_stopped or (self._breaker.failures and self._running):
            return None
        if self._breaker.is_probe_due(now):
            return Probe()
        while not self._breaker.open and (self._retries or self._fresh):
            is_retry = bool(self._retries) and (self._is_retry_next or not self._fresh)
            self._is_retry_next = not is_retry
            delivery = (self._retries if is_retry else self._fresh).popleft()
            # This is not asked in submit: then an earlier event of the same deletion may still run.
            if is_retry or delivery.deletion.cuk not in self._removed:
                return delivery
            self._results.append((delivery, SKIP_REMOVED))
        return None

    def _skip_fresh(self, skipped: Skipped) -> None:
        self._results.extend((each, skipped) for each in self._fresh)
        self._fresh.clear()

    def _seconds_to_wait(self, now: float) -> float | None:
        if self._is_stopped or self._running:
            return None
        seconds = self._breaker.seconds_to_probe(now)
        return None if seconds == math.inf else seconds

    def _remember(self, removed: Deletion) -> None:
        if not removed.ips:  # the whole instance
            self._removed.add(removed.cuk)

    def _wake_listener(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._wake()


# --- Listener ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subscription:
    """A notification queue to consume. With bindings it is ours, without it is the services'."""

    queue: str
    sources: list[Source] = dataclasses.field(default_factory=list)
    bindings: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # exchange, key
    #: for each event type that was seen: True if no source accepts it
    skip_cache: dict[bytes, bool] = dataclasses.field(default_factory=dict)

    def skips(self, body: bytes, properties: pika.BasicProperties) -> bool:
        """Return True if a quick look shows that no source accepts the event."""
        if len(body) > MAX_BYTES:
            return False  # a dead letter, whatever its event
        event_type = quick_event_type(body, properties)
        if event_type is None:
            return False
        if event_type not in self.skip_cache:
            if len(self.skip_cache) > 1000:
                self.skip_cache.clear()
            self.skip_cache[event_type] = not any(
                _matches(source.event_type, event_type.decode()) for source in self.sources
            )
        return self.skip_cache[event_type]


def subscriptions(config: Config, endpoint: Endpoint) -> list[Subscription]:
    """Return the queues to consume. Sources with the same queue share one consumer."""
    found: dict[str, Subscription] = {}
    for source in config.sources:
        for priority in endpoint.priorities():
            routing_key = f"{source.topic}.{priority}"
            queue = source.pool or routing_key
            subscription = found.setdefault(queue, Subscription(queue))
            subscription.sources.append(source)
            if source.pool:
                subscription.bindings.append((source.exchange, routing_key))
    return list(found.values())


def first_queue(
    config: Config, subscribed: list[Subscription], properties: pika.BasicProperties
) -> str:
    """Return the notification queue that a copy first came from.

    A stranger may have written the header. If it names no queue that the listener consumes for
    notifications, the retry queue is returned.
    """
    named: Any = (properties.headers or {}).get("x-k2hr3-queue")
    is_ours = named in [each.queue for each in subscribed]
    return str(named) if is_ours else config.queue + RETRY.copy_to


class Troubles:
    """Logs each trouble once, until it is over. Not thread-safe."""

    def __init__(self) -> None:
        self._subjects: set[str] = set()

    def begin(self, subject: str, level: int, text: str) -> None:
        """Log a trouble with a subject; at debug level if it is known."""
        LOG.log(logging.DEBUG if subject in self._subjects else level, text)
        self._subjects.add(subject)

    def end(self, subject: str, text: str) -> bool:
        """Log that the trouble with a subject is over; return False if there was none."""
        if subject not in self._subjects:
            return False
        self._subjects.remove(subject)
        LOG.info(text)
        return True


class Doubts:
    """Logs, once for each instance, that K2HR3 may have kept a member (see DOUBTFUL_SECONDS).

    Ten of them a minute are logged, the rest as one line with their number. Instances in doubt are
    remembered here, too, because a delivery that comes again knows nothing of its last attempt.

    :param size: how many instances to remember
    """

    def __init__(self, size: int) -> None:
        self.in_doubt = RecentSet(size)  # an attempt may have left a member behind
        self.told = RecentSet(size)  # there is a dead letter, or one is being copied
        self._minute_ends = 0.0  # monotonic
        self._count = 0  # letters in this minute

    def tell(self, cuk: str, now: float) -> None:
        """Log that an instance gets a dead letter; `now` is monotonic."""
        self.told.add(cuk)
        self.flush(now)
        self._count += 1
        if self._count <= 10:
            LOG.warning(f"dead letter instance={cuk}: {DOUBT}")

    def flush(self, now: float) -> None:
        """When a minute is over, log how many were not logged; `now` is monotonic."""
        if now < self._minute_ends:
            return
        if self._count > 10:
            LOG.warning(f"{self._count - 10} more dead letters: {DOUBT}")
        self._minute_ends = now + 60
        self._count = 0


class QueueWatch:
    """Watches whether queues of ours, or deletions in the retry queue, disappear without us.

    A policy of the broker may drop them (message-ttl, max-length), and no error says so. While
    nobody consumes the retry queue, it must still hold what it held at the last look. It must also
    hold the copies that were confirmed since then. Copies that were under way at the last look do
    not count, since that look may have counted them.
    """

    def __init__(self) -> None:
        #: ready messages in each queue that was there at the last look
        self.ready: dict[str, int] = {}
        self._last = QueueState(consumers=1)  # the last look; with a consumer it is not compared
        self._begun = 0  # copies that were confirmed or under way when it was answered

    def expected(self, confirmed: int) -> int:
        """Return how many deletions the retry queue must hold at least, if nobody consumes it.

        :param confirmed: all copies to it that were confirmed so far
        """
        return self._last.ready + confirmed - self._begun

    def compare(self, state: QueueState, confirmed: int, begun: int) -> int:
        """Compare a look at the retry queue with the last one; return how many are missing.

        :param confirmed: all copies to it that were confirmed before this look
        :param begun: these, and the copies confirmed or under way when this look was answered
        """
        missing = max(0, self.expected(confirmed) - state.ready)
        is_unconsumed = not self._last.consumers and not state.consumers
        self._last = state
        self._begun = begun
        return missing if is_unconsumed else 0

    def interrupt(self) -> None:
        """Do not compare the next look with the last one, since we consume the queue in between."""
        self._last = QueueState(consumers=1)


class Session:
    """A connection to the broker and its consumers, used by the listener's thread.

    When it ends, the broker delivers again what is not acked. Other threads use it only to wake the
    listener's thread.
    """

    def __init__(
        self, connection: pika.BlockingConnection, subscriptions: list[Subscription]
    ) -> None:
        self.connection = connection
        self.subscriptions = subscriptions
        self.consumers: list[Consumer] = []
        self.next_set_up = 0.0  # monotonic: when to look for missing queues and bindings again
        self.next_tick = 0.0  # monotonic: when to call `Listener.on_tick` again

    def consumer_of(self, queue: str) -> Consumer | None:
        """Return the working consumer of a queue, or None."""
        for consumer in self.consumers:
            if consumer.queue == queue and not consumer.is_cancelled:
                return consumer
        return None


#: The counters of `Listener.counters` that the log shows, in its order. `METRICS` has them, too.
COUNTERS = (
    "deleted",
    "failed",
    "ignored",
    "retried",
    "dead_letters",
    "doubtful",
    "succeeded",
    "vanished",
)
#: The text of `metrics_file`. A line for each queue follows it.
METRICS = (
    f"""\
# HELP k2hr3_osnl_build_info The version of the program.
# TYPE k2hr3_osnl_build_info gauge
k2hr3_osnl_build_info{{version="{__version__}"}} 1
"""
    + """\
# HELP k2hr3_osnl_deliveries_total Deliveries by verdict.
# TYPE k2hr3_osnl_deliveries_total counter
k2hr3_osnl_deliveries_total{verdict="ignored"} %(ignored)d
k2hr3_osnl_deliveries_total{verdict="deleted"} %(deleted)d
k2hr3_osnl_deliveries_total{verdict="doubtful"} %(doubtful)d
k2hr3_osnl_deliveries_total{verdict="retried"} %(retried)d
k2hr3_osnl_deliveries_total{verdict="dead_letters"} %(dead_letters)d
# HELP k2hr3_osnl_attempts_total Attempts to delete by outcome.
# TYPE k2hr3_osnl_attempts_total counter
k2hr3_osnl_attempts_total{outcome="succeeded"} %(succeeded)d
k2hr3_osnl_attempts_total{outcome="failed"} %(failed)d
# HELP k2hr3_osnl_vanished_retries_total Deletions that left the retry queue, not through us.
# TYPE k2hr3_osnl_vanished_retries_total counter
k2hr3_osnl_vanished_retries_total %(vanished)d
# HELP k2hr3_osnl_breaker_open 1 while K2HR3 is in trouble and no attempts are made.
# TYPE k2hr3_osnl_breaker_open gauge
k2hr3_osnl_breaker_open %(breaker_open)d
# HELP k2hr3_osnl_waiting_deliveries Deliveries that are here and not finished.
# TYPE k2hr3_osnl_waiting_deliveries gauge
k2hr3_osnl_waiting_deliveries %(waiting)d
# HELP k2hr3_osnl_oldest_waiting_seconds How long the oldest of them has been here.
# TYPE k2hr3_osnl_oldest_waiting_seconds gauge
k2hr3_osnl_oldest_waiting_seconds %(oldest)d
# HELP k2hr3_osnl_last_success_timestamp_seconds When an attempt last succeeded; 0 if none has.
# TYPE k2hr3_osnl_last_success_timestamp_seconds gauge
k2hr3_osnl_last_success_timestamp_seconds %(last_success)d
# HELP k2hr3_osnl_queue_ready_messages Messages ready in a queue when the listener last looked.
# TYPE k2hr3_osnl_queue_ready_messages gauge
"""
)


class Listener:
    """Consumes notifications, calls the Role API for their deletions, and acks what is finished.

    While its channel is open, a delivery that is not acked is in exactly one of these places:

    - waiting for a worker, or held until it is due or its copy may be made again: in `Attempts`
    - being attempted or skipped: a worker has it, or its result is not collected yet
    - being copied: the publisher has it, or its answer is not collected yet
    - finished: its tag is in `Consumer.finished`, and the next flush acks it

    During a stop it can be in none of them: a copy that fails then is not made again.

    When a channel closes, the broker delivers again what is not acked. What waits here is dropped.
    What a worker or the publisher has goes on, and the result is logged and counted. If it then
    needs a copy, only a delivery in doubt gets one (see `Doubts`).

    These threads work here:

    - The thread that calls `run` only waits. At the end it logs the last doubts.
    - The listener's thread, which `run` starts, receives, decides and acks. It calls the endpoint
      and `on_tick`. It owns the session, the counters, the troubles, the watch and the doubts. Only
      it changes a delivery.
    - The workers make attempts, and only read a delivery.
    - The publisher makes copies, and only reads a delivery.

    Workers and publisher share with the listener's thread: `Attempts`, the publisher's queue of
    copies, its counts of them, and `_session`, to wake that thread. Any thread may call `stop`,
    `status` and `counts`.

    :param endpoint: turns notifications into deletions
    :param connect: connects to the broker; called like the function `connect`
    :param clock: has the functions `monotonic`, `time` and `sleep` of the module `time`
    :raises ConfigError: certificate files can't be used
    """

    #: If fresh deletions wait for longer without a break, they move to the retry queue, and so do
    #: all that come, see `FreshQueue`.
    hold_seconds = 30.0
    remembered = 10_000  #: how many removed instances to remember, see `Attempts`
    #: True: attempt retries before they are due, and also those that the broker delivered before
    _attempts_at_once = False
    exit_code = 0  #: of the process if a second signal ends it

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint | None = None,
        connect: Callable[..., pika.BlockingConnection] = connect,
        clock: Any = time,
    ) -> None:
        self.config = config
        self.endpoint = endpoint or Endpoint()
        self.role_api = RoleApi(config.k2hr3)
        self.counters: Counter[str] = Counter()
        self.on_tick: Callable[[], None] = lambda: None  # called about twice a second
        hosts = parse_transport_url(config.sources[0].transport_url, config.rabbit)
        self._connect = partial(connect, hosts)
        self._clock = clock
        self._attempts = Attempts(
            Breaker(config.k2hr3.retry_interval_seconds),
            self.hold_seconds,
            self.remembered,
            wake_at=max(1, config.rabbit.prefetch // 2),
            wake=self._wake,
        )
        self._publisher = Publisher(hosts, self._attempts.add_answer, connect, clock)
        self._session: Session | None = None  # None while there is no connection
        self._snapshot = Snapshot([], False, 0, 0)  # what `Attempts` last told
        self._stopping = threading.Event()
        self._troubles = Troubles()
        self._watch = QueueWatch()
        self._doubts = Doubts(self.remembered)

    def run(self) -> None:
        """Listen until `stop` is called. Returns at most `timeout_seconds` + 1 s after that.

        A running attempt ends within that time. If the broker stalls, the listener's thread may not
        end in time. Then it is left behind. An error that ends that thread is raised here.
        """
        errors: list[BaseException] = []

        def listen() -> None:
            try:
                self._listen()
            except BaseException as error:
                errors.append(error)

        listening = threading.Thread(target=listen, name="listener", daemon=True)
        listening.start()
        try:
            while listening.is_alive() and not self._stopping.is_set():
                self._stopping.wait(1)
        finally:
            self.stop()
            listening.join(self.config.k2hr3.timeout_seconds + 1)
            self._doubts.flush(math.inf)
        for error in errors:
            raise error

    def _listen(self) -> None:
        """Start the other threads. Then listen until `stop` is called: the listener's thread.

        After any failure of the broker it connects again.
        """
        self._publisher.start()
        for _ in range(self.config.k2hr3.concurrency):
            work = partial(self._attempts.work, self.role_api)
            threading.Thread(target=work, name="worker", daemon=True).start()
        rabbit = self.config.rabbit
        pause = rabbit.rabbit_retry_interval
        while not self._stopping.is_set():
            try:
                with self._connected() as session:
                    self._set_up(session)
                    pause = rabbit.rabbit_retry_interval
                    while not self._stopping.is_set():
                        self._loop_once(session)
                    self._finish(session)
            except (amqp.AMQPError, OSError, Error) as error:
                self._tell_of_broker(explain(error))
                self.role_api.close_idle()  # they may take the descriptors that connecting needs
            except Exception:  # only `stop` ends the listener
                LOG.exception("unexpected error; connecting again")
            self._wait(pause)
            pause = min(pause + rabbit.rabbit_retry_backoff, rabbit.rabbit_interval_max)

    def stop(self) -> None:
        """End `run` when the running attempts have ended. Safe from any thread."""
        self._stopping.set()
        self._attempts.stop()

    def status(self) -> str:
        """Return state and counters, for a person. Safe from any thread."""
        state = "listening"
        if self._session is None:
            state = "connecting"
        elif self._snapshot.in_trouble:
            state = "K2HR3 in trouble"
        return f"{state}: {self.counts()}"

    def counts(self) -> str:
        """Return the counters, for a person. Safe from any thread."""
        return " ".join(f"{name}={self.counters[name]}" for name in COUNTERS)

    def metrics(self) -> str:
        """Return the text of `metrics_file`. For `on_tick`, and after `run` has ended."""
        consumers = list(self._session.consumers) if self._session else []
        # a thread that `run` left behind may still change them, so copy before looking
        received = [each.received for one in consumers for each in list(one.unfinished.values())]
        now = self._clock.monotonic()
        figures = Counter(self.counters)
        figures["breaker_open"] = int(self._snapshot.in_trouble)
        figures["waiting"] = len(received)
        figures["oldest"] = int(now - min(received, default=now))
        return METRICS % figures + "".join(
            f"k2hr3_osnl_queue_ready_messages{{queue={json.dumps(queue)}}} {ready}\n"
            for queue, ready in self._watch.ready.items()
        )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Session]:
        session = Session(self._connect(self._must_stop), subscriptions(self.config, self.endpoint))
        self._session = session
        self._troubles.end("login", "the broker accepts our login again")
        self._troubles.end("broker", "the broker answers again")
        LOG.info("connected to the broker")
        try:
            yield session
        finally:
            self._session = None
            for consumer in list(session.consumers):
                self._drop(session, consumer)
            close_quietly(session.connection)

    def _must_stop(self) -> bool:
        self.on_tick()  # connecting may take long
        return self._stopping.is_set()

    def _tell_of_broker(self, problem: str) -> None:
        if not self._stopping.is_set():
            subject = "login" if "check user" in problem else "broker"  # as `explain` says
            self._troubles.begin(subject, logging.ERROR, f"{problem}; connecting again")

    def _wait(self, seconds: float) -> None:
        """Wait before connecting again, and go on collecting results."""
        end = self._clock.monotonic() + seconds
        while self._clock.monotonic() < end and not self._stopping.wait(0.2):
            self._collect()
            self.on_tick()

    def _wake(self) -> None:
        """Have `process_data_events` return. Safe from any thread."""
        session = self._session
        # if the connection is lost, the listener's thread will see that
        with contextlib.suppress(Exception):
            if session:
                session.connection.add_callback_threadsafe(lambda: None)

    # While connected

    def _loop_once(self, session: Session) -> None:
        """Receive, collect results, decide and ack. About twice a second, call `on_tick`."""
        # The workers have enough to do for 10 ms, and reading less often saves a third of the CPU.
        if self._snapshot.waiting > 50 and self._snapshot.running:
            self._clock.sleep(0.01)
        session.connection.process_data_events(0.5)
        self._collect()
        now = self._clock.monotonic()
        if now >= session.next_tick:
            session.next_tick = now + 0.5
            if now >= session.next_set_up:
                self._set_up(session)
            self._doubts.flush(now)
            self.on_tick()
        if self._snapshot.in_trouble:
            self._leave_retry_queue(session)
        self._tend_consumers(session)

    def _finish(self, session: Session) -> None:
        """Let running attempts and copies end, ack, and close.

        The broker delivers the rest again, to any listener.
        """
        for consumer in session.consumers:
            consumer.cancel()
        is_busy = True
        while is_busy:
            session.connection.process_data_events(0.1)
            self._collect()
            self._tend_consumers(session)
            is_copying = any(consumer.is_copying for consumer in session.consumers)
            is_busy = is_copying or self._snapshot.running > 0
        session.connection.close()

    def _tend_consumers(self, session: Session) -> None:
        """Ack what is finished, and deal with consumers that the broker closed or cancelled."""
        for consumer in list(session.consumers):
            try:
                if consumer.finished and consumer.is_open:
                    consumer.flush()
            except amqp.AMQPChannelError:
                pass  # the channel is closed, which is handled below
            if not consumer.is_open:  # pika raises nothing when the broker closes a channel
                reason = explain(getattr(consumer.channel, "_closing_reason", None))
                LOG.warning(f"channel of {consumer.queue} was closed, opening another: {reason}")
                self._drop(session, consumer)
            elif consumer.is_cancelled and not self._stopping.is_set():
                self._evacuate(session, consumer)

    def _drop(self, session: Session, consumer: Consumer) -> None:
        """Forget a consumer and its deliveries: the broker delivers them again."""
        session.consumers.remove(consumer)
        session.next_set_up = 0.0
        self._attempts.take_back(consumer)
        for delivery in consumer.unfinished.values():
            # Its letter may be lost, since it is not confirmed. The delivery comes again, and the
            # next success must make a letter again.
            if delivery.verdict is DOUBTFUL:
                self._doubts.told.pop(delivery.deletion.cuk, None)

    def _close_consumer(self, session: Session, consumer: Consumer) -> None:
        consumer.flush()
        consumer.channel.close()
        self._drop(session, consumer)

    def _evacuate(self, session: Session, consumer: Consumer) -> None:
        """Move the deliveries of a cancelled consumer to the retry queue, then close it.

        This is needed because the broker can't deliver them again if their queue was deleted. Those
        that are being attempted or copied end as usual; the last call then closes the consumer.
        """
        if not consumer.is_evacuated:
            consumer.is_evacuated = True
            LOG.warning(
                f"the broker cancelled the consumer of {consumer.queue}; its deliveries move to "
                f"{self._queue_for(RETRY)}"
            )
            self._set_up(session)  # the retry queue may be the one that was deleted
            for delivery in self._attempts.take_back(consumer):
                reason = delivery.reason or SKIP_CANCELLED.reason
                self._conclude(delivery, delivery.verdict or RETRY, reason)
        if not consumer.unfinished:
            self._close_consumer(session, consumer)

    def _leave_retry_queue(self, session: Session) -> None:
        """Stop consuming the retry queue, since other listeners may reach K2HR3.

        Copies that are being made end first.
        """
        consumer = session.consumer_of(self._queue_for(RETRY))
        if consumer is None or not consumer.is_open:
            return
        if not consumer.is_copying:
            self._close_consumer(session, consumer)
            self._watch_retry_queue(session)  # from this look on, missing deletions are noticed

    # Receive

    def _on_notification(self, subscription: Subscription, delivery: Delivery) -> None:
        if subscription.skips(delivery.body, delivery.properties):
            self._settle(delivery, IGNORED)
        else:
            self._receive(delivery, subscription.sources)

    def _on_retry(self, delivery: Delivery) -> None:
        assert self._session
        delivery.is_retry = True
        delivery.queue = first_queue(self.config, self._session.subscriptions, delivery.properties)
        delivery.read_headers()
        self._receive(delivery, [])

    def _receive(self, delivery: Delivery, sources: list[Source]) -> None:
        """Submit a delivery, or conclude it."""
        now = self._clock.monotonic()
        delivery.waiting_since = now
        delivery.received = now
        if not self._read(delivery, sources):
            return
        if delivery.is_retry and not self._attempts_at_once:
            delivery.due = now + self._seconds_until_due(delivery)
        returns = number_header(delivery.properties, "x-delivery-count")
        # A retry may have been returned once, since listeners themselves return retries, see
        # _leave_retry_queue and _is_empty.
        if delivery.is_retry and (returns < 2 or self._attempts_at_once):
            returns = 0
        if returns:  # its queue may drop it after some more; a copy starts at zero
            self._on_skipped(delivery, SKIP_REDELIVERED)
        else:
            self._attempts.submit(delivery, now)

    def _read(self, delivery: Delivery, sources: list[Source]) -> bool:
        """Find the deletion of a delivery. If there is none, conclude it and return False."""
        try:
            notification = decode(delivery.body, delivery.properties)
            message_id = notification.metadata["message_id"]
            delivery.event = printable(f"event={notification.event_type} message_id={message_id}")
            if delivery.is_retry or any(accepts(source, notification) for source in sources):
                delivery.deletion = self.endpoint.deletion(notification)
        except MalformedNotification as error:
            self._conclude(delivery, DEAD_LETTER, str(error))
        except Exception as error:
            self._conclude(delivery, DEAD_LETTER, f"the endpoint raised {error!r}")
        else:
            if delivery.deletion is None and delivery.is_retry:
                self._conclude(delivery, DEAD_LETTER, "a retry that leads to no deletion")
            elif delivery.deletion is None:
                self._conclude(delivery, IGNORED)
        return delivery.deletion is not None

    def _seconds_until_due(self, delivery: Delivery) -> float:
        longest = self.config.k2hr3.retry_interval_seconds
        pause = min(2.0 ** min(delivery.attempts, 10), longest)
        seconds = delivery.last_failure + pause - float(self._clock.time())
        # the clock may be wrong, here or on the host that wrote last_failure
        return min(seconds, longest)

    # Decide

    def _collect(self) -> None:
        """Collect the results of workers and publisher, and decide."""
        self._snapshot = self._attempts.collect(self._clock.monotonic())
        for job, outcome in self._snapshot.results:
            if isinstance(job, Probe):
                assert isinstance(outcome, Attempted)
                self._on_probe(outcome.error)
            elif isinstance(outcome, Attempted):
                self._on_attempted(job, outcome)
            elif isinstance(outcome, Skipped):
                self._on_skipped(job, outcome)
            else:
                self._on_copied(job, outcome)

    def _on_probe(self, error: RoleApiError | None) -> None:
        if error:
            self._troubles.begin(
                "K2HR3",
                logging.ERROR,
                f"K2HR3 is in trouble, deletions wait in {self._queue_for(RETRY)}: {error}",
            )
        elif self._troubles.end("K2HR3", "K2HR3 is back") and self._session:
            self._session.next_set_up = 0.0  # consume the retry queue again

    def _on_attempted(self, delivery: Delivery, attempted: Attempted) -> None:
        self._count(delivery, attempted)
        error = attempted.error
        verdict = decide(delivery, error, self.config.k2hr3.dead_letter_after_seconds)
        self._log_attempt(delivery, verdict, attempted)
        if verdict is DOUBTFUL and delivery.deletion.cuk in self._doubts.told:
            verdict = DONE  # one letter for an instance is enough
        # If the channel is closed, the broker delivers it again, so it needs no copy. But only this
        # process knows of a doubt, so a delivery in doubt is copied all the same.
        if delivery.consumer.is_open or delivery.is_doubtful or not verdict.copy_to:
            self._conclude(delivery, verdict, str(error or DOUBT))

    def _on_skipped(self, delivery: Delivery, skipped: Skipped) -> None:
        if delivery.consumer.is_open:
            self._conclude(delivery, skipped.verdict, delivery.reason or skipped.reason)

    def _count(self, delivery: Delivery, attempted: Attempted) -> None:
        """Note an attempt in its delivery, in the counters and in the doubts."""
        error = attempted.error
        delivery.attempts += 1
        is_slow = error is None and attempted.seconds > DOUBTFUL_SECONDS
        if is_slow or (error and error.may_have_acted):
            self._doubts.in_doubt.add(delivery.deletion.cuk)
        delivery.is_doubtful |= delivery.deletion.cuk in self._doubts.in_doubt
        if delivery.is_doubtful:  # if it comes again, it must lead to a dead letter
            self._attempts.forget_removed(delivery.deletion.cuk)
        if error is None:
            self.counters["succeeded"] += 1
            self.counters["last_success"] = int(self._clock.time())  # for `METRICS` only
            return
        self.counters["failed"] += 1
        delivery.last_failure = self._clock.time()
        delivery.first_failure = delivery.first_failure or delivery.last_failure
        delivery.due = self._clock.monotonic() + self._seconds_until_due(delivery)

    def _log_attempt(self, delivery: Delivery, verdict: Verdict, attempted: Attempted) -> None:
        ips = printable(",".join(delivery.deletion.ips) or "all")
        text = (
            f"{verdict.word} instance={delivery.deletion.cuk} host={ips} {delivery.event} "
            f"attempts={delivery.attempts} ms={1000 * attempted.seconds:.0f}"
        )
        if attempted.error:
            LOG.warning(f"{text}: {attempted.error}")
        else:
            LOG.info(text)

    def _conclude(self, delivery: Delivery, verdict: Verdict, reason: str = "") -> None:
        """Carry out a verdict: ack the delivery, or have it copied first."""
        is_new = delivery.verdict is not verdict
        delivery.verdict = verdict
        delivery.reason = printable(reason)
        if is_new and verdict is DEAD_LETTER:
            LOG.warning(f"dead letter {delivery.event} from {delivery.queue}: {delivery.reason}")
        if is_new and verdict is DOUBTFUL:
            self._doubts.tell(delivery.deletion.cuk, self._clock.monotonic())
        if verdict.copy_to:
            delivery.is_being_copied = True
            self._publisher.copy(delivery, self._queue_for(verdict))
        else:
            self._settle(delivery, verdict)

    def _settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """Count the verdict of a delivery, and let the next flush ack it."""
        self.counters[verdict.counter] += 1
        delivery.finish()

    def _on_copied(self, delivery: Delivery, copied: Copied) -> None:
        delivery.is_being_copied = False
        if copied is Copied.CONFIRMED:
            assert delivery.verdict
            self._settle(delivery, delivery.verdict)
        elif self._stopping.is_set():
            pass  # the broker delivers it again; to try for ever would not let the program end
        elif self._session and delivery.consumer.is_open:
            now = self._clock.monotonic()
            # If its own copy failed, it waits long, since the message may be the problem. If copies
            # were only paused, it waits for 1 s.
            is_own = copied is Copied.FAILED
            delivery.copy_at = now + (self.config.k2hr3.retry_interval_seconds if is_own else 1.0)
            self._attempts.submit(delivery, now)
            # look for a missing queue soon
            self._session.next_set_up = min(self._session.next_set_up, now + 5)
        elif delivery.verdict is DOUBTFUL:  # as in _drop: it comes again, and needs a letter then
            self._doubts.told.pop(delivery.deletion.cuk, None)

    # Queues and consumers

    def _queue_for(self, verdict: Verdict) -> str:
        return self.config.queue + verdict.copy_to

    def _set_up(self, session: Session) -> None:
        """Set up queues, bindings and consumers that are missing.

        Repeats in 5 s if something is missing, else in 30 s, because the broker does not tell that
        an exchange was deleted and made again, which loses our binding.
        """
        self._watch_retry_queue(session)
        found = list(self._set_up_all(session))
        session.next_set_up = self._clock.monotonic() + (30.0 if all(found) else 5.0)

    def _watch_retry_queue(self, session: Session) -> None:
        """Look at the retry queue; log how many deletions have disappeared from it.

        A look that may be wrong is not compared.
        """
        queue = self._queue_for(RETRY)
        copies = self._publisher.copies_to(queue)
        confirmed = copies.confirmed
        state = inspect_queue(session.connection, queue)
        begun = copies.begun
        is_suspect = self._watch.expected(confirmed) > 0 and state.ready == 0
        if state.refused or (is_suspect and not self._is_empty(queue)):
            return
        missing = self._watch.compare(state, confirmed, begun)
        if missing:
            self.counters["vanished"] += missing
            LOG.error(
                f"{missing} deletions left {queue} and not through this listener: a policy of the "
                "broker, a purge, a drain or another listener. To keep policies of others away: "
                f"{policy_command(self.config)}"
            )

    def _is_empty(self, queue: str) -> bool:
        """Return True if a queue is really empty. A quorum queue without a leader also reports 0.

        It uses a connection of its own, because the broker closes the connection if such a queue
        is asked for a message.
        """
        try:
            with contextlib.closing(self._connect()) as connection:
                # what it gets goes back when the connection closes
                method, _, _ = cast(Any, connection.channel().basic_get(queue))
                return method is None
        except (amqp.AMQPError, OSError, Error) as error:
            LOG.debug(f"looking into {queue}: {explain(error)}")
            return False

    def _set_up_all(self, session: Session) -> Iterator[bool]:
        """Set up one thing after the other; yield for each whether it is there."""
        queue_type = "quorum" if self.config.rabbit.rabbit_quorum_queue else "classic"
        yield self._ensure(session, self._queue_for(DEAD_LETTER), queue_type)
        has_retry_queue = self._ensure(session, self._queue_for(RETRY), queue_type)
        yield has_retry_queue
        for each in session.subscriptions:
            is_there = self._ensure(session, each.queue, queue_type if each.bindings else "")
            yield is_there
            if is_there:
                receive = partial(self._on_notification, each)
                yield self._consume(session, each.queue, self.config.rabbit.prefetch, receive)
                for exchange, routing_key in each.bindings:
                    yield self._bind(session, each.queue, exchange, routing_key)
        if has_retry_queue and self._may_retry():
            self._watch.interrupt()
            concurrency = self.config.k2hr3.concurrency
            yield self._consume(session, self._queue_for(RETRY), concurrency, self._on_retry)

    def _may_retry(self) -> bool:
        return not self._snapshot.in_trouble

    def _ensure(self, session: Session, queue: str, create: str) -> bool:
        """Check a queue, and create it if it is missing; return True if it is there.

        :param create: the type to create, "classic" or "quorum"; if empty, do not create it
        """
        state = inspect_queue(session.connection, queue)
        refused = state.refused
        if refused and refused.reply_code == 404:
            consumer = session.consumer_of(queue)
            if consumer:  # a busy broker may delete a queue without cancelling its consumer
                consumer.is_cancelled = True
            if create and self._watch.ready.pop(queue, None) is not None:
                LOG.error(
                    f"queue {queue} was deleted, with all that it held, by hand or by a policy "
                    "(expires); it is created again. To keep policies of others away: "
                    f"{policy_command(self.config)}"
                )
            if create:
                refused = create_queue(session.connection, queue, create)
        if refused is None:
            problem = ""
            if create and queue not in self._watch.ready:
                problem = unsuitable(session.connection, queue)
            if problem:
                LOG.warning(f"queue {queue} is {problem}")
            self._watch.ready[queue] = state.ready
        return self._report(f"queue {queue}", f"configure permission on {queue}", refused)

    def _bind(self, session: Session, queue: str, exchange: str, routing_key: str) -> bool:
        refused = refusal(
            session.connection,
            lambda channel: channel.queue_bind(queue, exchange, routing_key),
        )
        needs = f"read permission on {exchange}, write permission on {queue}"
        return self._report(f"exchange {exchange}, {routing_key}", needs, refused)

    def _consume(
        self, session: Session, queue: str, prefetch: int, receive: Callable[[Delivery], None]
    ) -> bool:
        if session.consumer_of(queue):
            return True
        refused = None
        try:
            consumer = Consumer(session.connection, queue, prefetch, receive)
            session.consumers.append(consumer)
        except amqp.ChannelClosedByBroker as error:
            refused = error
        return self._report(f"consumer of {queue}", f"read permission on {queue}", refused)

    def _report(self, what: str, needs: str, refused: amqp.ChannelClosedByBroker | None) -> bool:
        """Log a refusal by the broker, or that it is over; return True if there is none.

        :param what: what is set up
        :param needs: the permission to check after a 403
        """
        if refused is None:
            self._troubles.end(what, f"{what}: recovered")
            return True
        hint = f"; needs {needs}" if refused.reply_code == 403 else ""
        text = f"{what}: {explain(refused)}{hint}; trying again every 5 s"
        self._troubles.begin(what, logging.WARNING, text)
        return False


# --- Process -----------------------------------------------------------------------------------

CONFIG_FILES = (
    "./k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.ini",
    "/etc/k2hr3/k2hr3_osnl.conf",
    "/etc/k2hr3/k2hr3-osnl.conf",
    "/usr/local/etc/k2hr3/k2hr3_osnl.ini",
    "/usr/local/etc/k2hr3/k2hr3_osnl.conf",
    "/usr/local/etc/k2hr3/k2hr3-osnl.conf",
)


class LogFile(logging.handlers.TimedRotatingFileHandler):
    """A log file that is rotated daily. If a record can't be written, standard error gets it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print the record and the reason."""
        print(f"{self.baseFilename}: {sys.exc_info()[1]}: {self.format(record)}", file=sys.stderr)


def set_up_logging(default: Default) -> None:
    """Log as ``[DEFAULT]`` says.

    :raises ConfigError: the log file can't be written
    """
    handler: logging.Handler
    if default.log_file in STREAMS:
        is_stdout = default.log_file == "sys.stdout"
        handler = logging.StreamHandler(sys.stdout if is_stdout else sys.stderr)
    else:
        try:
            handler = LogFile(
                default.log_file,
                when="midnight",
                backupCount=31,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise ConfigError(
                f"[DEFAULT] log_file = {printable(default.log_file)}: {error.strerror}: expected "
                f"{LOG_FILE.expected}"
            ) from None
    libraries = LEVELS[default.libs_debug_level]
    logging.basicConfig(
        handlers=[handler],
        format="%(asctime)s %(levelname)s %(message)s",
        level=libraries,
        force=True,
    )
    LOG.setLevel(LEVELS[default.debug_level])
    if libraries > logging.DEBUG:  # pika logs many lines about one error; ours is enough
        logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


def notify_systemd(state: str) -> None:
    """Tell systemd the state, if it has started this process; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            notify.sendto(state.encode(), re.sub("^@", "\0", address))
    except OSError as error:
        LOG.debug(f"NOTIFY_SOCKET {address}: {error}")


class Reporter:
    """Reports how a listener is: to systemd, and in `metrics_file` to Prometheus."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._troubles = Troubles()
        self._next_write = 0.0  # monotonic

    def tick(self) -> None:
        """Report. The listener's loop calls this, so an old file means that the loop is stuck."""
        notify_systemd(f"WATCHDOG=1\nSTATUS={self._listener.status()}")
        now = time.monotonic()
        if now >= self._next_write:
            self._next_write = now + 15
            self.write_metrics()

    def write_metrics(self) -> None:
        """Write `metrics_file`, if it is set.

        A new file is written beside it and then renamed, so that nobody reads half of it.
        """
        file = self._listener.config.default.metrics_file
        if not file:
            return
        try:
            with open(f"{file}.new", "w") as new:
                os.fchmod(new.fileno(), 0o644)  # others must read it, so the umask does not count
                new.write(self._listener.metrics())
            os.replace(f"{file}.new", file)
            self._troubles.end(file, f"metrics_file {file} is written again")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            self._troubles.begin(file, logging.WARNING, f"metrics_file {file}: {error}")


SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


def run_process(listener: Listener) -> None:
    """Run a listener as this process, under signals.

    SIGTERM and SIGINT stop it, SIGHUP opens the log file again, SIGUSR1 logs the counters. One
    thread waits for these signals and all others block them, so they interrupt nothing. systemd
    is told READY before there is a connection, so that a start does not fail without a broker.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_obey_signals, args=[listener], daemon=True).start()
    notify_systemd("READY=1")
    LOG.info(
        f"k2hr3_osnl {__version__}, settings: {', '.join(listener.config.files) or 'defaults'}"
    )
    for warning in listener.config.warnings:
        LOG.warning(warning)
    listener.run()
    LOG.info(f"stopped: {listener.counts()}")


def _obey_signals(listener: Listener) -> None:
    is_stopping = False
    while True:
        number = signal.sigwait(SIGNALS)
        if number == signal.SIGUSR1:
            LOG.info(f"counters, {listener.status()}")
        elif number == signal.SIGHUP:
            _reopen_log_files()
        elif is_stopping:
            os._exit(listener.exit_code)
        else:
            is_stopping = True
            notify_systemd("STOPPING=1")
            listener.stop()


def _reopen_log_files() -> None:
    for handler in logging.getLogger().handlers:
        try:
            handler.close()  # the next record opens the file again
        except OSError as error:  # the disk is full; what was buffered is lost
            print(f"log_file: {error}", file=sys.stderr)


# --- Commands ----------------------------------------------------------------------------------


def listen(config: Config, _arguments: argparse.Namespace) -> int:
    """Listen until SIGTERM or SIGINT: the daemon.

    A second signal ends it at once. No failure of the broker or of K2HR3 ends it. SIGHUP reopens
    the log file, SIGUSR1 logs the counters.

    example:  k2hr3_osnl.py -c /etc/k2hr3/k2hr3_osnl.ini
    """
    listener = Listener(config)
    reporter = Reporter(listener)
    listener.on_tick = reporter.tick
    run_process(listener)
    reporter.write_metrics()
    return 0


class Drain(Listener):
    """A listener that ends by itself, for the command `drain`.

    It differs from a listener in this:

    - it attempts retries before they are due, and also those that the broker delivered before
    - it consumes the retry queue last: it counts what is ready there, and takes no more than that
    - on each tick it stops if all is done, or if nothing goes on; with empty notification queues
      also if K2HR3 is in trouble
    - if a second signal ends it, the exit code is 75
    """

    exit_code = os.EX_TEMPFAIL
    _attempts_at_once = True

    def __init__(
        self,
        config: Config,
        connect: Callable[..., pika.BlockingConnection] = connect,
        clock: Any = time,
    ) -> None:
        super().__init__(config, connect=connect, clock=clock)
        self.on_tick = self._stop_when_done
        self.is_done = False  # it took all that it had to take
        self.is_bound = True  # no binding to an exchange has failed
        self.has_new_retries = False  # a retry came after they were counted
        self._settled = 0  # deliveries, at the last tick
        self._settled_at = clock.monotonic()  # when that last changed
        self._retries_left: int | None = None  # None: not counted yet
        self._empty_looks = 0  # ticks in a row at which nothing was left

    def _may_retry(self) -> bool:
        return bool(self._retries_left) and super()._may_retry()

    def _on_retry(self, delivery: Delivery) -> None:
        if self._retries_left:
            self._retries_left -= 1
            super()._on_retry(delivery)
        else:
            self.has_new_retries = True
            # it is never acked, so it returns to its queue at the end
            del delivery.consumer.unfinished[delivery.delivery_tag]

    def _bind(self, session: Session, queue: str, exchange: str, routing_key: str) -> bool:
        is_bound = super()._bind(session, queue, exchange, routing_key)
        self.is_bound = self.is_bound and is_bound
        return is_bound

    def _drop(self, session: Session, consumer: Consumer) -> None:
        if consumer.queue == self._queue_for(RETRY) and self._retries_left is not None:
            self._retries_left += len(consumer.unfinished)  # they come again
        super()._drop(session, consumer)

    def _stop_when_done(self) -> None:
        session = self._session
        now = self._clock.monotonic()
        if not session or not all(
            session.consumer_of(each.queue) for each in session.subscriptions
        ):
            if now > self._settled_at + 30:
                LOG.error("for 30 s there was no broker, or no notification queue to consume")
                self.stop()
            return
        # a failed attempt alone is no progress: if its copy fails, too, it is made again for ever
        verdicts = (IGNORED, DONE, DOUBTFUL, RETRY, DEAD_LETTER)
        settled = sum(self.counters[verdict.counter] for verdict in verdicts)
        if settled != self._settled:
            self._settled = settled
            self._settled_at = now
        elif now > self._settled_at + self.config.k2hr3.timeout_seconds + self.hold_seconds:
            LOG.error("some deliveries could be neither deleted nor copied; they go back")
            self.stop()
        left = sum(len(consumer.unfinished) for consumer in session.consumers)
        for each in session.subscriptions:
            left += inspect_queue(session.connection, each.queue).ready
        attempts = self.counters["succeeded"] + self.counters["failed"]
        show_progress(attempts, left + (self._retries_left or 0))
        # Twice: a message on its way is neither ready at the broker nor unfinished here.
        self._empty_looks = self._empty_looks + 1 if left == 0 else 0
        if self._empty_looks >= 2:
            self._go_on_or_stop(session)

    def _go_on_or_stop(self, session: Session) -> None:
        """Go on with the retry queue, or stop, now that the notification queues are empty."""
        if self._snapshot.in_trouble:
            self.stop()
            return
        # a quorum queue without a leader says 0, too
        if not all(self._is_empty(each.queue) for each in session.subscriptions):
            return
        retry_queue = self._queue_for(RETRY)
        ready = inspect_queue(session.connection, retry_queue).ready
        if ready == 0 and not self._is_empty(retry_queue):
            return
        # not counted yet, or other listeners took the rest
        if self._retries_left is None or ready == 0:
            self._retries_left = ready
            self._empty_looks = 0
            session.next_set_up = 0.0
        if self._retries_left == 0:
            self.is_done = True
            self.stop()


def show_progress(done: int, left: int) -> None:
    """Show how many are done and left, and the rate, if standard error is a terminal."""
    if sys.stderr.isatty():
        rate = done / (time.monotonic() - STARTED)
        # the next line that is printed overwrites it
        print(f"{done} done, {left} left, {rate:.0f}/s", end="\r", file=sys.stderr, flush=True)


#: The commands know the payloads of OpenStack only.
ENDPOINT = Endpoint()
#: Errors that a command reports in one line.
FAILURES = (Error, amqp.AMQPError)


def tell(text: str, level: int = logging.CRITICAL) -> None:
    """Print a line for the user of a command on standard error, if the log level permits it."""
    if LOG.isEnabledFor(level):
        print(f"k2hr3_osnl: {text}", file=sys.stderr, flush=True)


def open_connection(config: Config) -> pika.BlockingConnection:
    """Connect to the broker of the settings, for a command.

    :raises Error: no broker reached
    """
    return connect(parse_transport_url(config.sources[0].transport_url, config.rabbit))


def publish(
    connection: pika.BlockingConnection,
    exchange: str,
    routing_key: str,
    body: bytes,
    properties: pika.BasicProperties,
) -> None:
    """Publish a message and wait until the broker has confirmed it.

    It gets a channel of its own, because the broker closes the channel if it refuses.

    :raises Error: no queue takes it
    :raises amqp.AMQPError: the broker refuses it, or the connection is lost
    """
    with connection.channel() as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        except (amqp.UnroutableError, amqp.NackError):
            raise Error(
                f"no queue takes {routing_key} of exchange {exchange or '(default)'}: it is "
                "missing, not bound or full; the listener makes and binds its own when it starts"
            ) from None


def ready_in(connection: pika.BlockingConnection, queue: str) -> int:
    """Return how many messages are ready in a queue; 0 if it does not exist.

    :raises amqp.ChannelClosedByBroker: the broker does not tell
    """
    state = inspect_queue(connection, queue)
    if state.refused and state.refused.reply_code != 404:
        raise state.refused
    return state.ready


def drain(config: Config, _arguments: argparse.Namespace) -> int:
    """Handle all that is queued, then end: for cron.

    Takes the notification queues until they are empty. Then attempts each deletion in the retry
    queue once. The exit code is 75 if an attempt failed, something is left, or an exchange is
    missing, else 0.

    example:  */5 * * * * k2hr3-osnl drain
    """
    listener = Drain(config)
    run_process(listener)
    if listener.is_done and listener.is_bound:
        # Only now, so the age of the file is the time since a run took all there was.
        Reporter(listener).write_metrics()
        if not listener.has_new_retries and not listener.counters["failed"]:
            with open_connection(config) as connection:
                # if some are ready, they were moved there meanwhile
                if ready_in(connection, config.queue + RETRY.copy_to) == 0:
                    return 0
    return os.EX_TEMPFAIL


#: A line of `check`: ok, warn or fail; what was looked at; the finding and what to do about it.
Row = Tuple[str, str, str]
#: What to do about a failed part of `check`: the first text that the error matches.
HINTS = {
    "broker": {
        "ACCESS_REFUSED": "user or password is wrong",
        "vhost": "the virtual host is wrong, or this user has no permissions on it",
        "WRONG_VERSION": f"this port answers without TLS: use its TLS port, or [{RABBIT}] ssl = no",
        "IncompatibleProtocol": f"if this port wants TLS: [{RABBIT}] ssl = yes",
        "CERTIFICATE_VERIFY": f"check [{RABBIT}] ssl_ca_file, and the broker's certificate",
        "": "check transport_url, and that the broker runs",
    },
    "Role API": {
        "WRONG_VERSION|TLS handshake": "if this port answers without TLS: http: in api_url",
        "Disconnected|reset|BadStatus": "if this port wants TLS: https: in api_url",
        "CERTIFICATE_VERIFY": "check ca_file, and the API's certificate",
        r": [2-5]\d\d": "see the log of K2HR3",
        "": "check api_url, and that K2HR3 runs",
    },
}
BY_SERVICE = "the service makes it with its first notification"
BY_LISTENER = "the listener makes it when it starts"
_FORCED = ("instance.update", "compute.instance.force_delete.end")
#: Gaps: an event that is heard, those of which one is needed beside it, and what happens without.
GAPS = (
    (
        "port.delete.end",
        ("instance.delete.end", "compute.instance.delete.end", *_FORCED),
        "only Neutron is heard: an instance whose port was made beforehand (by Heat, Terraform, "
        f"--port) stays a member of its roles for ever; add [{NOTIFICATIONS}:nova]",
    ),
    (
        "instance.delete.end",
        _FORCED,
        "instance.delete.end is heard and instance.update is not: an instance that is "
        "force-deleted while its host is down stays a member of its roles for ever; let event_type "
        "accept both",
    ),
    (
        "compute.instance.delete.end",
        _FORCED,
        "compute.instance.delete.end is heard and compute.instance.force_delete.end is not: an "
        "instance that is force-deleted while its host is down stays a member of its roles for "
        "ever; let event_type accept both",
    ),
)


def check(config: Config, arguments: argparse.Namespace) -> int:
    """Check settings, broker, queues and Role API, and say what to do. Changes nothing.

    Prints a line for each: ok, warn or fail. The Role API is asked to delete a random UUID, which
    removes nothing. The exit code is 1 if anything failed, with --strict also if anything warns:
    use that once after an installation, not as a periodic probe.

    example:  k2hr3_osnl.py check
    """
    rows: list[dict[str, Any]] = []
    for result, what, text in _findings(config):
        rows.append({"result": result, "what": what, "text": text})
        if not arguments.json:
            print(f"{result:4}  {what}: {text}", flush=True)
    if arguments.json:
        effective = dataclasses.asdict(config)
        for section in (effective["default"], *effective["sources"]):
            section["transport_url"] = re.sub(":[^,/?]*@", ":…@", section["transport_url"])
        rows[0]["effective"] = effective
        print(json.dumps(rows, indent=1, default=lambda regex: regex.pattern))
    bad = ("fail", "warn") if arguments.strict else ("fail",)
    return int(any(row["result"] in bad for row in rows))


def _findings(config: Config) -> Iterator[Row]:
    yield "ok", "settings", ", ".join(config.files) or "no file found, defaults are used"
    for warning in config.warnings:
        yield "warn", "settings", warning
    for event_type, needed, text in GAPS:
        heard = [
            each
            for each in (event_type, *needed)
            if any(_matches(source.event_type, each) for source in config.sources)
        ]
        if heard == [event_type]:
            yield "warn", "sources", text
    yield from _in_time("broker", 20, _check_broker(config))
    yield from _in_time("Role API", 10, _check_role_api(config.k2hr3))


def _in_time(what: str, seconds: float, part: Iterator[Row]) -> list[Row]:
    """Return the rows of a part of `check` that are there at a deadline. An error is a row, too.

    The part runs in a thread, because nothing else bounds a resolver or a broker that hangs.
    """
    rows: list[Row] = []

    def run() -> None:
        try:
            for row in part:
                rows.append(row)
        except Exception as error:
            text = explain(error)
            hint = next(HINTS[what][word] for word in HINTS[what] if re.search(word, text))
            rows.append(("fail", what, f"{text}; {hint}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    late = ("fail", what, f"no answer within {seconds} s; {HINTS[what]['']}, and DNS")
    return [*rows, late] if thread.is_alive() else rows


def _check_broker(config: Config) -> Iterator[Row]:
    retry_queue = config.queue + RETRY.copy_to
    with open_connection(config) as connection:
        impl = cast(Any, connection)._impl  # pika offers no other way to the server's properties
        host = impl.params
        user = getattr(host.credentials, "username", "of the certificate")
        version = impl.server_properties.get("version")
        text = f"RabbitMQ {version}, user {user}, virtual host {host.virtual_host}"
        yield "ok", "broker", f"{host.host}:{host.port}, {text}"
        for exchange in dict.fromkeys(source.exchange for source in config.sources):
            declare = partial(BlockingChannel.exchange_declare, exchange=exchange, passive=True)
            refused = refusal(connection, declare)
            if refused:
                yield "fail", f"exchange {exchange}", explain(refused)
            else:
                yield "ok", f"exchange {exchange}", "there"
        for each in subscriptions(config, ENDPOINT):
            yield from _check_queue(connection, each.queue, is_ours=bool(each.bindings))
            for _, routing_key in each.bindings:
                yield from _check_default_queue(connection, routing_key)
                # AMQP tells neither bindings nor which policy holds for a queue
                show = f"rabbitmqctl list_bindings -p {shlex.quote(host.virtual_host)}"
                text = f"not visible here; the listener makes it; shown by: {show} | grep "
                yield "ok", f"binding of {each.queue}", f"{text}{routing_key}"
        yield from _check_queue(connection, retry_queue, waiting="they wait for K2HR3")
        text = f"not visible here; set by: {policy_command(config)}"
        yield "ok", f"policy of {retry_queue}", text
        hint = "they need a person: see the command dead-letters"
        yield from _check_queue(connection, config.queue + DEAD_LETTER.copy_to, waiting=hint)


def _check_default_queue(connection: pika.BlockingConnection, queue: str) -> Iterator[Row]:
    """Warn if a queue of the services has messages that nobody consumes."""
    state = inspect_queue(connection, queue)
    if state.ready and not state.consumers:
        yield (
            "warn",
            f"queue {queue}",
            f"{state.ready} ready and no consumer: it grows until the broker stops for lack of "
            "memory or disk. Either consume it (set pool to nothing), or limit it: rabbitmqctl "
            "set_policy "
            f"{queue} '^{re.escape(queue)}$' '{{\"max-length\": 10000}}' --apply-to queues",
        )


def _check_queue(
    connection: pika.BlockingConnection, queue: str, is_ours: bool = True, waiting: str = ""
) -> Iterator[Row]:
    """Check a queue that the listener consumes or copies to.

    :param is_ours: the listener makes it, and not a service
    :param waiting: if given, the queue should be empty, and this is what to say of its messages;
        otherwise it should have a consumer
    """
    what = f"queue {queue}"
    ready, consumers, refused = inspect_queue(connection, queue)
    if refused and refused.reply_code == 404:
        yield "warn", what, f"missing; {BY_LISTENER if is_ours else BY_SERVICE}"
        return
    if refused:
        yield "fail", what, explain(refused)
        return
    problem = is_ours and unsuitable(connection, queue)
    if problem:
        yield "warn", what, problem
    text = f"{ready} ready, {consumers} consumers"  # consumers may hold others unacked
    if bool(ready) if waiting else not consumers:
        yield "warn", what, f"{text}; {waiting or 'no listener runs'}"
    else:
        yield "ok", what, text


def _check_role_api(options: K2hr3) -> Iterator[Row]:
    began = time.monotonic()
    status = RoleApi(options).delete(Probe().deletion)
    milliseconds = 1000 * (time.monotonic() - began)
    if status == 204:
        yield "ok", "Role API", f"{options.api_url}, {milliseconds:.0f} ms"
    else:
        text = "K2HR3 answers 204, so something else may answer here; check api_url"
        yield "warn", "Role API", f"{options.api_url}: {status}; {text}"


def dump(config: Config, arguments: argparse.Namespace) -> int:
    """Print each matching notification and the DELETE that it leads to, as JSON lines.

    It has a temporary queue of its own, so a running listener loses nothing. Ctrl-C ends it.

    example:  k2hr3_osnl.py dump | jq .delete
    """
    if arguments.count is not None and not 0 < arguments.count <= sys.maxsize:
        raise UsageError("dump: --count: expected a whole number from 1 on")
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # pika can't be interrupted in a request
    with open_connection(config) as connection:
        channel = connection.channel()
        bounded = {"x-max-length": 10000}
        queue = channel.queue_declare("", exclusive=True, arguments=bounded).method.queue
        refused = [
            refusal(
                connection,
                partial(
                    BlockingChannel.queue_bind,
                    queue=queue,
                    exchange=source.exchange,
                    routing_key=f"{source.topic}.info",
                ),
            )
            for source in config.sources
        ]
        for problem in filter(None, refused):
            tell(explain(problem))
        if all(refused):
            return 1
        rows = (
            describe(config, config.sources, body, properties)
            for _, properties, body in channel.consume(queue, auto_ack=True)
        )
        for row in itertools.islice(filter(None, rows), arguments.count):
            print(json.dumps(row), flush=True)
    return 0


def describe(
    config: Config, sources: Iterable[Source], body: bytes, properties: pika.BasicProperties
) -> dict[str, Any]:
    """Describe a notification and the DELETE it leads to; empty if no source accepts it."""
    row: dict[str, Any] = {}
    try:
        notification = decode(body, properties)
        if not any(accepts(source, notification) for source in sources):
            return {}
        row = {"event_type": notification.event_type, **notification.metadata}
        row["publisher_id"] = notification.publisher_id
        deletion = ENDPOINT.deletion(notification)
        row["delete"] = None
        if deletion:
            row["instance"] = deletion.cuk
            row["host"] = ",".join(deletion.ips) or "all"
            row["delete"] = f"{config.k2hr3.api_url}?{deletion.query}"
    except MalformedNotification as error:
        row["malformed"] = str(error)
    return row


#: Notifications for `emit`, as the services publish them.
SAMPLES = {
    "neutron": """{
        "message_id": "%(id)s", "timestamp": "%(time)s", "priority": "INFO",
        "publisher_id": "network.sample",
        "event_type": "port.delete.end",
        "payload": {
            "port": {"device_id": "%(cuk)s", "device_owner": "compute:nova", "fixed_ips": %(ips)s}
        }
    }""",
    "nova": """{
        "message_id": "%(id)s", "timestamp": "%(time)s", "priority": "INFO",
        "publisher_id": "nova-compute:sample",
        "event_type": "instance.delete.end",
        "payload": {"nova_object.data": {"uuid": "%(cuk)s", "state": "deleted"}}
    }""",
    "compute": """{
        "message_id": "%(id)s", "timestamp": "%(time)s", "priority": "INFO",
        "publisher_id": "compute.sample",
        "event_type": "compute.instance.delete.end",
        "payload": {"instance_id": "%(cuk)s", "state": "deleted"}
    }""",
}


def sample_message(pattern: str, deletion: Deletion) -> tuple[bytes, pika.BasicProperties]:
    """Return body and properties of a notification as a service publishes it."""
    message = SAMPLES[pattern] % {
        "id": uuid.uuid4(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime()),
        "cuk": deletion.cuk,
        "ips": json.dumps([{"ip_address": ip} for ip in deletion.ips]),
    }
    body = json.dumps({"oslo.version": "2.0", "oslo.message": message}).encode()
    return body, pika.BasicProperties(
        content_type="application/json", content_encoding="utf-8", delivery_mode=2
    )


def emit(config: Config, arguments: argparse.Namespace) -> int:
    """Publish a sample deletion as a service would. Creates no exchange or queue.

    The instance is random by default. A real one would be deleted from its roles.

    example:  k2hr3_osnl.py emit neutron --ip 192.0.2.7
    """
    ips = arguments.ip or ["192.0.2.1"]
    deletion = Deletion(arguments.instance or str(uuid.uuid4()), tuple(ips))
    body, properties = sample_message(arguments.pattern, deletion)
    sample = decode(body, properties)
    what = f"{sample.event_type} of {sample.publisher_id}"
    source = next((each for each in config.sources if accepts(each, sample)), None)
    if source is None:
        section = f"[{NOTIFICATIONS}:{arguments.pattern}]"
        raise Error(f"no source of the settings accepts {what}: add {section}, or see its options")
    with open_connection(config) as connection:
        publish(connection, source.exchange, f"{source.topic}.info", body, properties)
    print(
        f"published {what} to exchange {source.exchange}\n"
        f"It has arrived when the listener logs: deleted instance={deletion.cuk}\n"
        "If that line does not come within seconds: run check; then run dump, and emit beside it."
    )
    return 0


#: Our headers that a dead letter keeps while it stays one; True for numbers.
LETTER_HEADERS = {
    "x-k2hr3-queue": False,
    "x-k2hr3-attempts": True,
    "x-k2hr3-first-failure": True,
    "x-k2hr3-last-failure": True,
    "x-k2hr3-reason": False,
    "x-k2hr3-doubt": False,
}


def dead_letters(config: Config, arguments: argparse.Namespace) -> int:
    """List the dead letters, one per line. Each one moves to the end of its queue.

    A queue with a delivery limit would drop letters that are only read and given back.

    --replay moves each letter back to the queue that it came from. It moves the letter to the retry
    queue if that queue is not one of ours, or if K2HR3 may have carried out an attempt. Letters
    whose deletion is done stay: a person has to look at the roles. Look at the ages first: by now
    the instance may have the same address again. --drop discards the letters. Both handle exactly
    the letters that they list, and say how many. The exit code is 1 if some could not be moved.

    example:  k2hr3_osnl.py dead-letters --replay
    """
    if arguments.replay and arguments.drop:
        raise UsageError("dead-letters: either --replay or --drop")
    if arguments.instance:
        arguments.instance = Deletion(arguments.instance).cuk
    counts: Counter[str] = Counter()
    with open_connection(config) as connection:
        channel = connection.channel()
        count = ready_in(connection, config.queue + DEAD_LETTER.copy_to)
        for left in reversed(range(count)):
            counts[_handle_letter(config, channel, arguments).partition(" (")[0]] += 1
            show_progress(count - left, left)
    told = ", ".join(f"{count} {result}" for result, count in counts.items() if result)
    tell(told or "none", logging.INFO)
    return int("not moved" in counts)


def _handle_letter(config: Config, channel: BlockingChannel, arguments: argparse.Namespace) -> str:
    """List, move or drop the first dead letter; return what happened, "" if it is not asked for."""
    queue = config.queue + DEAD_LETTER.copy_to
    method, properties, body = cast(Any, channel.basic_get(queue))
    if method is None:
        return ""
    ours = _our_headers(properties)
    letter = _letter(config, body, properties, ours)
    doubt = ours.get("x-k2hr3-doubt")
    to = queue
    result = "listed"
    if arguments.instance not in (None, letter["instance"]):
        result = ""
    elif arguments.drop:
        result = "dropped"
        to = ""
    elif arguments.replay and doubt == "done":
        result = "left as done"  # it needs a person, not another attempt
    elif arguments.replay:
        to = first_queue(config, subscriptions(config, ENDPOINT), properties)
        ours = {"x-k2hr3-queue": to}
        if doubt:  # the listener reads this header only in the retry queue
            to = config.queue + RETRY.copy_to
            ours["x-k2hr3-doubt"] = doubt
        result = f"moved to {to}"
    try:
        if to:
            publish(channel.connection, "", to, body, safe_properties(properties, ours))
            channel.basic_ack(method.delivery_tag)
    except FAILURES as error:
        result = f"not moved ({explain(error)})"
    letter["result"] = result
    if result and arguments.json:
        letter["body"] = body.decode(errors="backslashreplace")
        print(json.dumps(letter), flush=True)
    elif result:
        print(*(f"{name}={letter[name]}" for name in letter), flush=True)
    if not to:  # not earlier: if the line could not be printed, nobody would know of the letter
        channel.basic_ack(method.delivery_tag)
    return result


def _letter(
    config: Config, body: bytes, properties: pika.BasicProperties, ours: dict[str, Any]
) -> dict[str, Any]:
    """Describe a dead letter. A stranger may have written it, so its texts are made printable."""
    known = describe(config, [Source(event_type=None, publisher_id=None)], body, properties)
    since = ours.get("x-k2hr3-first-failure") or properties.timestamp
    texts = ("instance", "host", "event_type", "message_id")
    return {
        **{name: printable(str(known.get(name, ""))) for name in texts},
        "age_hours": round((time.time() - since) / 3600, 1) if since else None,
        **{name: ours.get(f"x-k2hr3-{name}", "") for name in ("attempts", "queue", "reason")},
    }


def _our_headers(properties: pika.BasicProperties) -> dict[str, Any]:
    """Return our headers of a dead letter, bounded: a stranger may have written them."""
    headers: Any = properties.headers or {}
    return {
        name: int(number_header(properties, name)) if is_number else printable(str(headers[name]))
        for name, is_number in LETTER_HEADERS.items()
        if name in headers
    }


def delete(config: Config, arguments: argparse.Namespace) -> int:
    """Call the Role API by hand, to catch up after notifications were lost.

    Deletes one instance. With -, reads one per line from standard input: its UUID, followed by
    addresses if only these are meant. Unknown instances are harmless. Says on standard error what
    it did. Prints the lines that failed, so that they can be fed in again; the exit code is 1 then.

    With --queue it does not call the Role API: it puts each deletion into the retry queue, and the
    listener makes it. While more than 100 wait there, it does nothing; the exit code is 75 then.

    example:  k2hr3-osnl-catch-up --since 3h | k2hr3_osnl.py delete --queue -
    """
    lines = _lines(arguments)
    left = dict(enumerate(lines))
    breaker = Breaker(config.k2hr3.retry_interval_seconds)
    word = "queued" if arguments.queue else "deleted"
    with contextlib.ExitStack() as stack:
        if arguments.queue:
            connection = stack.enter_context(open_connection(config))
            queue = config.queue + RETRY.copy_to
            if ready_in(connection, queue) > 100:
                tell("more than 100 deletions wait already")
                return os.EX_TEMPFAIL
            make = partial(_queue_deletion, connection, queue)
        else:
            make = partial(_delete, RoleApi(config.k2hr3), breaker, config.k2hr3.max_retries)
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for number, line in enumerate(lines):
            if breaker.open:
                break
            if _make(make, word, line):
                del left[number]
            show_progress(number + 1, len(lines) - number - 1)
    if arguments.instance == "-":
        tell(f"{len(lines) - len(left)} {word}, {len(left)} not", logging.INFO)
    for line in left.values():
        print(line)
    return int(bool(left))


def _make(make: Callable[[Deletion], None], word: str, line: str) -> bool:
    """Make the deletion of a line and say so; return False if that failed."""
    try:
        cuk, *ips = line.split()
        make(Deletion(cuk, tuple(ips)))
    except FAILURES as error:
        tell(f"{printable(line)}: {explain(error)}")
        return False
    tell(f"{word} instance={cuk} host={printable(','.join(ips) or 'all')}", logging.INFO)
    return True


def _lines(arguments: argparse.Namespace) -> list[str]:
    """Return the deletions to make, each one as a line of UUID and addresses."""
    if arguments.instance != "-":
        # Checked here: an empty address would vanish in a line, and then the whole instance would
        # be deleted.
        Deletion(arguments.instance, tuple(arguments.ip))
        return [" ".join([arguments.instance, *arguments.ip])]
    if arguments.ip:
        raise UsageError("delete -: write the addresses into the lines of standard input")
    for stream in (sys.stdin, sys.stdout):  # bytes that are not UTF-8 are printed unchanged
        cast(Any, stream).reconfigure(errors="surrogateescape")
    return [line.strip() for line in sys.stdin if line.strip()]


def _queue_deletion(connection: pika.BlockingConnection, queue: str, deletion: Deletion) -> None:
    """Put a deletion into the retry queue, as a notification that any listener can read."""
    body, properties = sample_message("neutron" if deletion.ips else "nova", deletion)
    properties.headers = {"x-k2hr3-queue": queue, "x-k2hr3-reason": "by the command delete"}
    publish(connection, "", queue, body, properties)


def _delete(api: RoleApi, breaker: Breaker, retries: int, deletion: Deletion) -> None:
    """Attempt a deletion until it succeeds or no retries are left. In trouble, send probes first.

    :raises RoleApiError: the last error, when no retry is left or none can help
    """
    for number in range(retries + 1):
        error = None
        if breaker.needs_probe:
            time.sleep(breaker.seconds_to_probe(time.monotonic()))
            error, seconds = make_attempt(api, Probe().deletion)
            breaker.count_probe(error, time.monotonic(), seconds)
        elif number:
            time.sleep(1)
        if error is None:
            error, seconds = make_attempt(api, deletion)
            breaker.count_attempt(error, seconds)
        if error is None:
            return
        if number == retries or error.is_permanent:
            raise error


# --- Command line ------------------------------------------------------------------------------


class UsageError(Error):
    """The command line is wrong in a way that argparse does not notice."""


def _flag(text: str) -> dict[str, Any]:
    return {"action": "store_true", "help": text}


#: The functions of the commands, and their arguments for argparse. A command is named like its
#: function, with dashes. The function's docstring is what --help shows.
COMMANDS: dict[Callable[..., int], dict[str, dict[str, Any]]] = {
    listen: {},
    drain: {},
    check: {
        "--json": _flag("print one JSON array instead, with the effective settings"),
        "--strict": _flag("the exit code is 1 also if anything warns"),
    },
    dump: {"--count": {"type": int, "metavar": "N", "help": "end after N notifications"}},
    emit: {
        "pattern": {"choices": SAMPLES, "help": f"the service to imitate: {', '.join(SAMPLES)}"},
        "--instance": {"metavar": "UUID", "help": "the instance; random by default"},
        "--ip": {"action": "append", "help": "an address of the port"},
    },
    dead_letters: {
        "--json": _flag("print JSON lines instead, with the bodies"),
        "--instance": {"metavar": "UUID", "help": "only the letters of this instance"},
        "--replay": _flag("move them back to where they came from"),
        "--drop": _flag("discard them"),
    },
    delete: {
        "--queue": _flag("let the listener make the deletions"),
        "instance": {"metavar": "UUID", "help": "the instance, or - for standard input"},
        "ip": {
            "nargs": "*",
            "default": [],  # without it argparse calls the addresses required, too
            "metavar": "IP",
            "help": "addresses to remove; without any, the whole instance",
        },
    },
}
#: The end of `--help`.
EPILOG = """\
k2hr3_osnl.py COMMAND --help explains a command.

exit codes:
  0   done, or stopped by a signal
  1   failed; check: something fails; dead-letters, delete: some could not be moved or deleted
  2   the command line is wrong
  75  drain: an attempt failed or something is left; delete --queue: too many wait already
  78  a setting is wrong
  130 ended by Ctrl-C

environment:
  OS_<SECTION>__<OPTION>  overrides an option of the settings files, as OS_K2HR3__API_URL does
  NOTIFY_SOCKET           set by systemd: listen tells it its state
"""


def _general_options(**layout: Any) -> argparse.ArgumentParser:
    """Return a parser of the options that may stand before and after the command."""
    parser = argparse.ArgumentParser(**layout, add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "-c",
        "--config-file",
        action="append",
        metavar="FILE",
        help="a settings file; later ones win over earlier ones. By default the first that exists "
        f"of {', '.join(CONFIG_FILES)}",
    )
    for flag, name in (("-d", "debug_level"), ("-l", "libs_debug_level")):
        text = f"overrides {name} of the settings: {', '.join(LEVELS)}"
        parser.add_argument(flag, dest=name, choices=LEVELS, metavar="LEVEL", help=text)
    parser.add_argument("-f", dest="log_file", help="overrides log_file of the settings")
    return parser


def _parse(argv: list[str] | None) -> tuple[dict[str, Any], argparse.Namespace]:
    """Return the general options that are given, and the arguments with the command's function."""
    layout: Any = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    general = _general_options(**layout)
    layout["parents"] = [general]
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(**layout, description=description, epilog=EPILOG)
    parser.add_argument("-v", "--version", action="version", version=f"k2hr3_osnl {__version__}")
    parser.set_defaults(function=listen)
    commands = parser.add_subparsers(title="commands, listen by default", metavar="COMMAND")
    parser.usage = "%(prog)s [OPTIONS] [COMMAND [OPTIONS]]"  # now, so that no command inherits it
    for function, command_arguments in COMMANDS.items():
        name = function.__name__.replace("_", "-")
        text = inspect.getdoc(function) or ""
        summary = text.partition("\n")[0]
        subparser = commands.add_parser(name, **layout, help=summary, description=text)
        subparser.set_defaults(function=function)
        for argument, properties in command_arguments.items():
            subparser.add_argument(argument, **properties)
    found, rest = general.parse_known_args(argv)
    return vars(found), parser.parse_args(rest)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options, arguments = _parse(argv)
    existing = list(filter(os.path.exists, CONFIG_FILES))
    try:
        config = Config.load(*options.pop("config_file", existing[:1]))
        set_up_logging(replace(config.default, **options))
        return int(arguments.function(config, arguments))
    except FAILURES as error:
        tell(explain(error))
        if isinstance(error, UsageError):
            return 2
        return os.EX_CONFIG if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        os._exit(1)  # at a normal exit Python would write to the closed pipe again
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
