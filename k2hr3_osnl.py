#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["pika>=1.2", "urllib3>=1.26.5"]
# ///
"""K2HR3 OpenStack Notification Listener.

Takes instances that OpenStack deleted out of their K2HR3 roles: it consumes the "port deleted"
and "instance deleted" notifications of Neutron and Nova from RabbitMQ and calls DELETE on
K2HR3's Role API for each.

    Neutron, Nova ──> exchange ──> pool queue ──> decode, filter ──> DELETE ──> K2HR3 Role API
                                       ▲                │ failed
                                       │                ▼
                            first met here       <queue>.retry  (tried again until it succeeds)
                                                 <queue>.dead_letter  (for a person to look at)

Every delivery gets one verdict: ignored, done, retry or dead letter. Nothing is acked before
what replaces it is confirmed, so a crash repeats a deletion (harmless) and never loses one.

Run it:     k2hr3_osnl.py -c /etc/k2hr3/k2hr3_osnl.ini
Embed it:   from k2hr3_osnl import Config, Endpoint, Listener
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
import http.client
import io
import ipaddress
import json
import logging
import logging.handlers
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
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from ssl import SSLContext
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    TypeVar,
    cast,
)

import pika
import urllib3
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelClosed,
    ChannelClosedByBroker,
    ConnectionClosed,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)
from urllib3.connection import HTTPConnection, HTTPSConnection

__version__ = "2.0.0"
__all__ = ["Config", "ConfigError", "Deletion", "Endpoint", "Error", "Listener",
           "MalformedNotification", "Notification", "RoleApi", "RoleApiError"]

LOG = logging.getLogger("k2hr3_osnl")
T = TypeVar("T")


# --- Errors ------------------------------------------------------------------------------------

class Error(Exception):
    """What every error of this program is."""


class ConfigError(Error):
    """A setting is wrong: names file, section, option, the value and what is accepted."""


class MalformedNotification(Error):
    """A notification that no attempt can ever make good: it becomes a dead letter."""


class RoleApiError(Error):
    """An attempt at a deletion failed: what was asked, what came back, what to check.

    :param status: the HTTP status, None when there was no answer
    :param timed_out: the attempt ended because its time was over
    :param retry_after: seconds the API asked to wait, None where it did not
    """

    def __init__(self, message: str, status: int | None = None, timed_out: bool = False,
                 retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.timed_out = timed_out
        self.retry_after = retry_after


# --- Settings ----------------------------------------------------------------------------------

class Kind(NamedTuple):
    """What an option accepts, in words for the operator, and how its text is read."""

    accepts: str
    parse: Callable[[str], Any]


def whole(lowest: int, highest: int) -> Kind:
    """Whole numbers of a range, both ends included."""
    def parse(text: str) -> int:
        if not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)
    return Kind(f"a whole number from {lowest} to {highest}", parse)


def one_of(*words: str) -> Kind:
    """One of some words, in any case."""
    return Kind("one of " + ", ".join(words), lambda text: words[words.index(text.lower())])


def _parse_name(text: str) -> str:
    if not 0 < len(text.encode()) <= 200:  # AMQP's names end at 255 bytes, ours get suffixes
        raise ValueError
    return text


def _parse_rules(text: str) -> Rules:
    pairs = [pair.split(":", 1) for pair in text.split(",") if pair.strip()]
    return tuple((key.strip(), re.compile(regex.strip())) for key, regex in pairs)


def _parse_file(text: str) -> str:
    if text:
        open(text, "rb").close()
    return text


def _parse_api_url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if (url.scheme not in ("http", "https") or not url.hostname or url.port == 0
            or url.query or url.fragment or "@" in url.netloc
            or not re.fullmatch(r"[!-~]+", text)):
        raise ValueError
    return text


def _parse_transport_url(text: str) -> str:
    parse_transport_url(text)
    return text


Rules = Tuple[Tuple[str, "re.Pattern[str]"], ...]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING,
          "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL,
          "notset": logging.NOTSET}
TEXT = Kind("text", str)
NAME = Kind("a name of 1 to 200 bytes", _parse_name)
POOL = Kind("a name of at most 200 bytes, or nothing", lambda text: text and _parse_name(text))
LEVEL = one_of(*LEVELS)
BOOLEAN = Kind("true or false",
               lambda text: configparser.ConfigParser.BOOLEAN_STATES[text.lower()])
REGEX = Kind("a regular expression", lambda text: re.compile(text) if text else None)
RULES = Kind("key:regex,key:regex", _parse_rules)
FILE = Kind("a file that can be read", _parse_file)
API_URL = Kind("http[s]://host[:port]/path, without user, password or query", _parse_api_url)
TRANSPORT_URL = Kind("rabbit://user:password@host:port[,user:password@host:port]/virtual_host, "
                     "user and password %-encoded", _parse_transport_url)


def option(kind: Kind, default: Any, meaning: str, *other_names: str) -> Any:
    """An entry of the option table: a dataclass field that says how it is read and what it is for.

    :param other_names: what the predecessor or an older oslo.messaging calls the same option
    """
    return dataclasses.field(default=default, repr=kind is not TRANSPORT_URL, metadata={
        "kind": kind, "meaning": meaning, "names": other_names})


@dataclass(frozen=True)
class Default:
    """``[DEFAULT]``: a section of its own, inherited by none."""

    log_file: str = option(TEXT, "sys.stderr", "sys.stderr, sys.stdout or a file, rotated daily")
    debug_level: str = option(LEVEL, "info", "log level of this program")
    libs_debug_level: str = option(LEVEL, "warn", "log level of pika and urllib3")
    transport_url: str = option(TRANSPORT_URL, "", "used where the next section has none")


@dataclass(frozen=True)
class Source:
    """``[oslo_messaging_notifications]`` or one of its named sections: what is consumed."""

    transport_url: str = option(TRANSPORT_URL, "rabbit://guest:guest@127.0.0.1:5672/",
                                "the brokers that OpenStack publishes to")
    topic: str = option(NAME, "notifications", "routing keys are <topic>.<priority>")
    exchange: str = option(NAME, "neutron", "control_exchange of the publishing service")
    event_type: Optional[re.Pattern[str]] = option(
        REGEX, re.compile(r"^port\.delete\.end$"), "which events are deletions")
    publisher_id: Optional[re.Pattern[str]] = option(
        REGEX, re.compile(r"^network.*$"), "whose events are heard")
    context: Rules = option(RULES, (), "what values of the request context must match")
    metadata: Rules = option(RULES, (), "what message_id and timestamp must match")
    payload: Rules = option(RULES, (), "what values of the payload must match")
    pool: str = option(POOL, "k2hr3_osnl",
                       "our queue; empty: consume the services' own <topic>.<priority>")
    name: str = "oslo_messaging_notifications"


@dataclass(frozen=True)
class Rabbit:
    """``[oslo_messaging_rabbit]``: the options of oslo.messaging's RabbitMQ driver that matter."""

    ssl: bool = option(BOOLEAN, False, "TLS to the broker", "rabbit_use_ssl")
    ssl_ca_file: str = option(FILE, "", "CA of the broker; empty: encrypted but unverified",
                              "kombu_ssl_ca_certs")
    ssl_cert_file: str = option(FILE, "", "our certificate", "kombu_ssl_certfile")
    ssl_key_file: str = option(FILE, "", "its key", "kombu_ssl_keyfile")
    ssl_enforce_hostname_verification: bool = option(
        BOOLEAN, True, "the broker's certificate must name its host")
    rabbit_login_method: str = option(
        one_of("amqplain", "plain", "external"), "amqplain",
        "AMQPLAIN and PLAIN are sent as PLAIN; EXTERNAL: the certificate is the login")
    rabbit_quorum_queue: bool = option(BOOLEAN, False, "create quorum queues")
    rabbit_qos_prefetch_count: int = option(
        whole(0, 65535), 0, "unacknowledged notifications held at most; 0: 200")
    heartbeat_timeout_threshold: int = option(whole(0, 3600), 60, "seconds; 0: no heartbeat")
    rabbit_retry_interval: int = option(whole(1, 3600), 1, "first pause between connects, seconds")
    rabbit_retry_backoff: int = option(whole(0, 3600), 2, "seconds it grows by each time")
    rabbit_interval_max: int = option(whole(1, 3600), 30, "the longest such pause, seconds")

    def ssl_context(self) -> SSLContext | None:
        """The TLS context for brokers, None without `ssl`; :raises ConfigError: unusable files."""
        if not self.ssl:
            return None
        return tls_context("[oslo_messaging_rabbit] ssl_ca_file, ssl_cert_file, ssl_key_file",
                           self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file,
                           verify=bool(self.ssl_ca_file),
                           check_hostname=self.ssl_enforce_hostname_verification)


@dataclass(frozen=True)
class K2hr3:
    """``[k2hr3]``: the Role API."""

    api_url: str = option(API_URL, "https://localhost/v1/role", "K2HR3's Role API")
    timeout_seconds: int = option(whole(1, 600), 60, "an attempt ends within this")
    retry_interval_seconds: int = option(whole(1, 600), 60, "longest pause between two attempts")
    max_retries: int = option(
        whole(0, 1000), 5, "how often the command delete tries one again", "retries")
    allow_self_signed_cert: bool = option(BOOLEAN, False, "do not verify the API's certificate")
    ca_file: str = option(FILE, "", "CA of the API; empty: the system's")
    cert_file: str = option(FILE, "", "our certificate")
    key_file: str = option(FILE, "", "its key")
    concurrency: int = option(whole(1, 256), 1, "attempts at once")
    dead_letter_after_seconds: int = option(
        whole(0, 10 ** 9), 0, "a deletion that fails for so long is a dead letter; 0: never")

    def ssl_context(self) -> SSLContext:
        """The TLS context for an https API; :raises ConfigError: unusable files."""
        return tls_context("[k2hr3] ca_file, cert_file, key_file",
                           self.ca_file, self.cert_file, self.key_file,
                           verify=not self.allow_self_signed_cert, check_hostname=True)


def tls_context(options: str, ca_file: str, cert_file: str, key_file: str,
                verify: bool, check_hostname: bool) -> ssl.SSLContext:
    """A client's TLS context; `options` names the settings in a `ConfigError`."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{options}: {error}: accepted are files in PEM format, "
                          "a key without a pass phrase") from None
    context.check_hostname = verify and check_hostname
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    return context


NOTIFICATIONS = "oslo_messaging_notifications"
#: The option table, one dataclass a section; a named source's section is a Source too.
OPTIONS: dict[str, Any] = {
    "DEFAULT": Default, NOTIFICATIONS: Source, "oslo_messaging_rabbit": Rabbit, "k2hr3": K2hr3}
#: Options that the predecessor or oslo.messaging know; accepted, and of no effect here.
WITHOUT_EFFECT = {NOTIFICATIONS: ("executor", "allow_requeue", "topics", "driver", "retry"),
                  "k2hr3": ("requeue_on_error",)}


class Setting(NamedTuple):
    """The text of one option and the file or variable it stands in."""

    text: str
    origin: str


Settings = Dict[str, Dict[str, Setting]]


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
        """Our queue, whose name the retry and the dead-letter queue carry on."""
        return self.sources[0].pool or "k2hr3_osnl"

    @classmethod
    def load(cls, *files: str, environ: Mapping[str, str] = os.environ) -> Config:
        """Read settings files, later ones over earlier ones, and the environment over them.

        Read as oslo.config does: the last of duplicate keys wins, surrounding quotes go, ``$$``
        is ``$``, ``%`` is nothing special, ``OS_<SECTION>__<OPTION>`` in the environment.

        :raises ConfigError: a file can't be read, or a value is wrong
        """
        settings: Settings = {section: {} for section in OPTIONS}
        for file in files:
            _read_file(file, settings)
        sections = {section.upper(): section for section in settings}
        for variable, value in environ.items():
            prefix, mark, name = variable.upper().partition("__")
            if mark and prefix[:3] == "OS_" and prefix[3:] in sections:
                settings[sections[prefix[3:]]][name.lower()] = Setting(
                    _oslo_text(value), f"environment variable {variable}")
        warnings = list(_unknown_options(settings))

        default: Default = _section("DEFAULT", settings, Default())
        base: Source = _section(NOTIFICATIONS, settings, dataclasses.replace(
            Source(), transport_url=default.transport_url or Source.transport_url))
        named = [_section(section, settings, base) for section in settings
                 if section.startswith(NOTIFICATIONS + ":")]
        for source in named:
            if source.transport_url != base.transport_url:
                raise ConfigError(
                    f"{settings[source.name]['transport_url'].origin}: [{source.name}] "
                    f"transport_url: accepted is the one of [{NOTIFICATIONS}], which all sources "
                    "share; for another broker run a second listener")
        # the query of a transport URL overrides the driver's options, as in oslo.messaging
        for name, value in urllib.parse.parse_qsl(base.transport_url.partition("?")[2]):
            settings["oslo_messaging_rabbit"][name] = Setting(value, "query of transport_url")
        config = cls(default, tuple(named) or (base,),
                     _section("oslo_messaging_rabbit", settings, Rabbit()),
                     _section("k2hr3", settings, K2hr3()), files)
        return dataclasses.replace(config, warnings=(*warnings, *_risks(config)))


def _oslo_text(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text.replace("$$", "$")


def _read_file(file: str, settings: Settings) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="\0",
                                       empty_lines_in_values=False)
    try:
        with open(file, encoding="utf-8-sig") as lines:
            parser.read_file(lines)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: accepted is a readable file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8: accepted is UTF-8 text") from None
    except configparser.MissingSectionHeaderError as error:
        raise ConfigError(f"{file}: line {error.lineno}: accepted is a [section] first") from None
    except configparser.ParsingError as error:  # its own text quotes the line, password and all
        line = error.errors[0][0]
        raise ConfigError(f"{file}: line {line}: accepted is option = value") from None
    for section in parser.sections():
        for name, text in parser.items(section):
            settings.setdefault(section, {})[name] = Setting(_oslo_text(text), file)


def _section(section: str, settings: Settings, base: T) -> T:
    """`base` with what `settings` say of the section."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(base):  # type: ignore[arg-type]
        for name in (field.name, *field.metadata.get("names", ())):
            setting = settings[section].get(name)
            if setting is None or not field.metadata:
                continue
            kind = field.metadata["kind"]
            try:
                values[field.name] = kind.parse(setting.text)
            except (ValueError, LookupError, OSError, re.error, ConfigError):
                shown = setting.text if kind is not TRANSPORT_URL else re.sub(
                    "//.*", "//…", setting.text)
                raise ConfigError(f"{setting.origin}: [{section}] {name} = {shown}: "
                                  f"accepted is {kind.accepts}") from None
            break
    if isinstance(base, Source):
        values["name"] = section
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def _unknown_options(settings: Settings) -> Iterable[str]:
    for section, given in settings.items():
        table = section.partition(":")[0]
        if table in WITHOUT_EFFECT:
            known = [name for field in dataclasses.fields(OPTIONS[table]) if field.metadata
                     for name in (field.name, *field.metadata["names"])]
            known += WITHOUT_EFFECT[table]
            for name in sorted(given.keys() - set(known)):
                near = difflib.get_close_matches(name, known, 1, 0.0)[0]
                yield (f"{given[name].origin}: [{section}] {name}: unknown option; "
                       f"the nearest known is {near}")


def _risks(config: Config) -> Iterable[str]:
    """What the settings allow and an operator should know."""
    if config.rabbit.ssl and not config.rabbit.ssl_ca_file:
        yield "[oslo_messaging_rabbit] ssl without ssl_ca_file: encrypted but unverified"
    if config.k2hr3.allow_self_signed_cert:
        yield "[k2hr3] allow_self_signed_cert: any Role API is trusted; better is ca_file"
    if not config.rabbit.heartbeat_timeout_threshold:
        yield ("[oslo_messaging_rabbit] heartbeat_timeout_threshold = 0: "
               "a connection that stalls is never noticed")
    for source in config.sources:
        for event_type in ("port.update.end", "instance.update", "compute.instance.update"):
            if source.event_type is None or source.event_type.match(event_type):
                yield (f"[{source.name}] event_type accepts {event_type}: "
                       "living instances would lose their rights")
    for file in config.files:
        if os.stat(file).st_mode & 0o004:
            yield f"{file}: may hold a password and can be read by everyone: chmod o-r"


# --- Transport ---------------------------------------------------------------------------------

_TRANSPORT = re.compile(r"(?:rabbit|kombu|amqp)://(?P<hosts>[^/?]*)/?(?P<path>[^?]*)(?:\?.*)?")
_HOST = re.compile(r"(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?"
                   r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\[\]:@\s]+))(?::(?P<port>\d+))?")


def parse_transport_url(url: str, rabbit: Rabbit = Rabbit()) -> list[pika.ConnectionParameters]:
    """Read oslo.messaging's transport URL, whose hosts are alternatives to fail over to.

    https://docs.openstack.org/oslo.messaging/latest/reference/transport.html

    :returns: connection parameters, one per host
    :raises ConfigError: the URL has another form; its text is not repeated, it holds a password
    """
    parts = _TRANSPORT.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in parts["hosts"].split(",") if host] if parts else []
    if parts is None or not hosts:
        raise ConfigError(f"transport_url: accepted is {TRANSPORT_URL.accepts}")
    context = rabbit.ssl_context()
    parameters = []
    for host in hosts:
        if host is None or not 0 < int(host["port"] or 5672) < 65536:
            raise ConfigError(f"transport_url: accepted is {TRANSPORT_URL.accepts}")
        name = host["ipv6"] or host["host"]
        credentials: Any = pika.PlainCredentials(
            urllib.parse.unquote(host["user"] or "guest"),
            urllib.parse.unquote(host["password"] or ("" if host["user"] else "guest")))
        if rabbit.rabbit_login_method == "external":
            credentials = pika.credentials.ExternalCredentials()
        parameters.append(pika.ConnectionParameters(
            host=name, port=int(host["port"] or 5672), credentials=credentials,
            virtual_host=urllib.parse.unquote(parts["path"]) or "/",
            heartbeat=rabbit.heartbeat_timeout_threshold,
            socket_timeout=CONNECT_SECONDS, stack_timeout=CONNECT_SECONDS,
            ssl_options=pika.SSLOptions(context, name) if context else None,
            client_properties={"connection_name": f"k2hr3_osnl {socket.gethostname()}"}))
    return parameters


#: Seconds for one host to accept, negotiate TLS and log us in.
CONNECT_SECONDS = 5


def connect(hosts: list[pika.ConnectionParameters],
            give_up: Callable[[], bool] = lambda: False) -> pika.BlockingConnection:
    """Connect to the first of the hosts that answers, tried in shuffled order as oslo does.

    :param give_up: asked before each host
    :raises Error: none answered; names each and why
    """
    problems = []
    for host in random.sample(hosts, len(hosts)):
        if give_up():
            break
        try:
            return pika.BlockingConnection(host)
        except Exception as error:  # pika lets through whatever TLS, sockets and resolvers raise
            problems.append(f"{host.host}:{host.port}: {explain(error)}")
    raise Error("no broker reached: " + "; ".join(problems))


def explain(error: BaseException | None) -> str:
    """One line about an error of pika's: what came back and what to check."""
    if isinstance(error, ProbableAuthenticationError):
        return "user or password refused: check transport_url"
    if isinstance(error, ProbableAccessDeniedError):
        return "access refused: check the virtual host in transport_url and the user's permissions"
    if isinstance(error, (ConnectionClosed, ChannelClosed)):
        return f"{error.reply_code} {error.reply_text!s}"
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


def ensure_queue(connection: pika.BlockingConnection, name: str,
                 quorum: bool | None) -> ChannelClosedByBroker | None:
    """Use a queue as it is, else create it durable; each request on a channel of its own.

    :param quorum: the type to create; None: do not create
    :returns: None, or how the broker refused
    """
    # On 3.x a limit of -1 drops at the first return, on 4.x no limit means 20: neither is "never".
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000} if quorum else {
        "x-queue-type": "classic"}
    refused = None
    for _ in range(2):  # 406 means that another listener was faster: then it exists
        refused = refusal(connection, lambda channel: channel.queue_declare(name, passive=True))
        if refused is None or refused.reply_code != 404 or quorum is None:
            return refused
        refused = refusal(connection, lambda channel: channel.queue_declare(
            name, durable=True, arguments=arguments))
        if refused is None or refused.reply_code != 406:
            return refused
    return refused


def refusal(connection: pika.BlockingConnection,
            request: Callable[[BlockingChannel], Any]) -> ChannelClosedByBroker | None:
    """Make a request on a channel of its own, which the broker closes where it refuses."""
    channel = connection.channel()
    try:
        request(channel)
        channel.close()
    except ChannelClosedByBroker as error:
        return error
    return None


# --- Notification ------------------------------------------------------------------------------

#: Bytes of a body, as it arrives and unpacked; notifications are some kilobytes.
MAX_BYTES = 8 * 1024 * 1024
PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")


@dataclass(frozen=True)
class Notification:
    """What an OpenStack service published; the fields are those of oslo.messaging's endpoints."""

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
    message = _json(_unpack(body, properties))
    if "oslo.version" in message and "oslo.message" in message:
        version, text = message["oslo.version"], message["oslo.message"]
        if not isinstance(version, str) or version.partition(".")[0] != "2":
            raise MalformedNotification(f"envelope version {version!r} is not 2.x")
        if not isinstance(text, str):
            raise MalformedNotification("oslo.message is not a text")
        message = _json(text)
    for name in ("publisher_id", "event_type", "priority"):
        if not isinstance(message.get(name), str):
            raise MalformedNotification(f"{name} is missing or not a text")
    return Notification(
        {name[9:]: value for name, value in message.items() if name.startswith("_context_")},
        message["publisher_id"], message["event_type"], message["priority"].lower(),
        message.get("payload"),
        {"message_id": message.get("message_id"), "timestamp": message.get("timestamp")})


def _unpack(body: bytes, properties: pika.BasicProperties) -> str:
    compression = (properties.headers or {}).get("compression")
    try:
        if compression == "application/x-gzip":
            unpacker: Any = zlib.decompressobj()
        elif compression == "application/x-bz2":
            unpacker = bz2.BZ2Decompressor()
        elif compression:
            raise MalformedNotification(f"compression {compression!r} is not known")
        if compression and len(body) <= MAX_BYTES:
            body = unpacker.decompress(body, MAX_BYTES + 1)
            if len(body) <= MAX_BYTES and not unpacker.eof:
                raise MalformedNotification(f"the {compression} body is cut off")
        if len(body) > MAX_BYTES:
            raise MalformedNotification(f"the body is larger than {MAX_BYTES} bytes")
        return body.decode()
    except UnicodeDecodeError:
        raise MalformedNotification("the body is not UTF-8") from None
    except (zlib.error, OSError) as error:
        raise MalformedNotification(f"the body is not {compression!r}: {error}") from None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise MalformedNotification(f"not JSON: {error}") from None
    except RecursionError:
        raise MalformedNotification("JSON nested too deep") from None
    if not isinstance(value, dict):
        raise MalformedNotification("JSON, but not an object")
    return value


_EVENT_TYPE = re.compile(rb'event_type\\?"\s*:\s*\\?"([\w.:-]+)\\?"')


def quick_event_type(body: bytes, properties: pika.BasicProperties) -> bytes | None:
    r"""The event type where a look at the raw body shows it beyond doubt, else None.

    Beyond doubt: it stands there once, and no other key can be it in disguise (any of its
    letters, or a backslash, written as ``\u00..``).
    """
    if properties.headers and "compression" in properties.headers:
        return None
    found = _EVENT_TYPE.search(body)
    if found is None or body.count(b"event_type") != 1 or rb"\u00" in body:
        return None
    return found[1]


# --- Filter ------------------------------------------------------------------------------------

def accepts(source: Source, notification: Notification) -> bool:
    """The five rules of oslo.messaging's NotificationFilter, each where it is set.

    A value that is not there or is no text does not match.
    https://docs.openstack.org/oslo.messaging/latest/reference/notification_listener.html
    """
    return (
        _matches(source.event_type, notification.event_type)
        and _matches(source.publisher_id, notification.publisher_id)
        and all(isinstance(values, dict) and _matches(regex, values.get(key))
                for rules, values in ((source.context, notification.context),
                                      (source.metadata, notification.metadata),
                                      (source.payload, notification.payload))
                for key, regex in rules))


def _matches(regex: re.Pattern[str] | None, value: Any) -> bool:
    return regex is None or (isinstance(value, str) and regex.match(value) is not None)


# --- Deletion ----------------------------------------------------------------------------------

_UUID = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.I)


@dataclass(frozen=True)
class Deletion:
    """What to take out of K2HR3: some addresses of an instance, or, without addresses, all of it.

    :param cuk: the instance's UUID; kept as lower case with dashes, since K2HR3 compares texts
        and answers 204 to any other spelling without removing anything
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
                ipaddress.ip_address(ip if isinstance(ip, str) else "")
            except ValueError:
                raise MalformedNotification(f"address {ip!r} is not an IP address") from None

    @property
    def query(self) -> str:
        """The query of the Role API's DELETE; `host` must not be there twice, nor empty."""
        host = {"host": json.dumps(self.ips)} if self.ips else {}
        return urllib.parse.urlencode({"extra": "openstack-auto-v1", **host, "cuk": self.cuk})


def _port_deletion(payload: Mapping[str, Any]) -> Deletion | None:
    """Of Neutron's port: its addresses only, since the instance may live on without it."""
    port = _typed(payload, "port", dict, {})
    owner = _typed(port, "device_owner", str, None)
    device_id = _typed(port, "device_id", str, "")
    fixed_ips = _typed(port, "fixed_ips", list, [])
    if (not device_id or not fixed_ips or (owner is not None and not owner.startswith("compute:"))
            or (owner is None and not _UUID.fullmatch(device_id))):
        return None
    return Deletion(device_id, tuple(
        _typed(ip if isinstance(ip, dict) else {}, "ip_address", str, "") for ip in fixed_ips))


def _typed(values: Mapping[str, Any], key: str, kind: type, missing: Any) -> Any:
    value = values.get(key)
    if value is not None and not isinstance(value, kind):
        raise MalformedNotification(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    return missing if value is None else value


#: What tells a payload's shape, and how to read it; the first that fits.
PAYLOAD_SHAPES: tuple[tuple[str, Callable[[Mapping[str, Any]], Deletion | None]], ...] = (
    ("port", _port_deletion),
    ("port_id", lambda payload: None),  # Neutron before it sent the port along
    ("nova_object.data",
     lambda payload: Deletion(_typed(payload, "nova_object.data", dict, {}).get("uuid"))),
    ("instance_id", lambda payload: Deletion(payload["instance_id"])),
)


# --- Endpoint ----------------------------------------------------------------------------------

class Endpoint:
    """Turns accepted notifications into deletions. Subclass it to know more of them.

    As with oslo.messaging's endpoints, a method is named after the priority it is for, and the
    listener subscribes to ``<topic>.<priority>`` for each such method. A method that raises
    makes the notification a dead letter.
    """

    _told_old_neutron = False

    def info(self, notification: Notification) -> Deletion | None:
        """The deletion that a notification leads to, None where it leads to none.

        :raises MalformedNotification: the payload names no instance, or has wrong types
        """
        payload = notification.payload
        if not isinstance(payload, dict):
            raise MalformedNotification("payload is not an object")
        for key, to_deletion in PAYLOAD_SHAPES:
            if key in payload:
                if key == "port_id" and not self._told_old_neutron:
                    self._told_old_neutron = True
                    LOG.warning("Neutron sends ports without their instance and addresses, nothing "
                                "can be deleted by them: use Nova's notifications instead")
                return to_deletion(payload)
        raise MalformedNotification("payload names no instance")

    def priorities(self) -> list[str]:
        """The priorities there are methods for."""
        return [name for name in PRIORITIES if callable(getattr(self, name, None))]

    def deletion(self, notification: Notification) -> Deletion | None:
        """Call the method of the notification's priority.

        :raises MalformedNotification: the method raised, whatever it was
        """
        if notification.priority not in self.priorities():
            return None
        try:
            deletion = getattr(self, notification.priority)(notification)
        except MalformedNotification:
            raise
        except Exception as error:
            raise MalformedNotification(f"the endpoint raised {error!r}") from error
        if deletion is not None and not isinstance(deletion, Deletion):
            raise MalformedNotification(f"the endpoint returned {deletion!r}, not a Deletion")
        return deletion


# --- Role API ----------------------------------------------------------------------------------

#: What to check, by the status that came back.
STATUS_HINTS = {
    400: "this host's address is not in the API's delhost role, or its store is down",
    403: "this host's address is not in the API's delhost role, or its store died meanwhile",
    404: "check the path of api_url",
    414: "too many addresses for one request",
    431: "too many addresses for one request",
}


class _DeadlineReader(io.RawIOBase):
    """Reads a reply under one deadline: urllib3's time-outs begin anew with each byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
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
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection(HTTPConnection):
    """urllib3's connection with what the Role API needs; the two kinds below share it."""

    #: K2HR3 closes a connection that is idle for 5 s, so one idle for 4 s is not used again.
    idle_seconds = 4.0
    _last_used = 0.0

    def _new_conn(self) -> socket.socket:
        """Try all addresses of the host within one time-out; urllib3 gives each one its own."""
        name, deadline = self._dns_host, time.monotonic() + float(self.timeout or 0)
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found)) or [name]
        try:
            for left in range(len(addresses) - 1, -1, -1):
                self._dns_host = addresses[-1 - left]
                self.timeout = max(0.01, deadline - time.monotonic())
                try:
                    sock = super()._new_conn()
                    sock.settimeout(max(0.01, deadline - time.monotonic()))
                    return sock
                except urllib3.exceptions.HTTPError:
                    if not left:
                        raise
        finally:
            self._dns_host = name
        raise AssertionError("unreachable")

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None and time.monotonic() - self._last_used > self.idle_seconds:
            self.close()
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        self._last_used = time.monotonic()
        return super().getresponse()

    response_class: Any = staticmethod(lambda sock, *args, **kwargs: http.client.HTTPResponse(
        cast(Any, _DeadlineReader(sock)), *args, **kwargs))


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class RoleApi:
    """K2HR3's Role API, reached over one pool of kept-alive connections. Safe from any thread.

    https://k2hr3.antpick.ax/api_role.html

    :raises ConfigError: certificate files can't be used
    """

    def __init__(self, options: K2hr3) -> None:
        url = urllib.parse.urlsplit(options.api_url)
        self._where = f"DELETE {options.api_url}"
        self._path = url.path or "/"
        self._timeout = urllib3.Timeout(total=options.timeout_seconds)
        self._headers = {"User-Agent": f"k2hr3_osnl/{__version__}", "Accept": "*/*"}
        pool: Any = urllib3.HTTPConnectionPool
        more: dict[str, Any] = {}
        if url.scheme == "https":
            pool, more = urllib3.HTTPSConnectionPool, {"ssl_context": options.ssl_context()}
            if options.allow_self_signed_cert:  # said once at start, not at each connection
                urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
                more["cert_reqs"] = "CERT_NONE"
        self._pool = pool(url.hostname, url.port, maxsize=options.concurrency, **more)
        self._pool.ConnectionCls = _TlsConnection if url.scheme == "https" else _Connection

    def delete(self, deletion: Deletion) -> None:
        """Make one attempt at a deletion, within `timeout_seconds`. No retry, no redirect.

        :raises RoleApiError: any answer but 2xx, or none
        """
        try:
            response = self._pool.urlopen(
                "DELETE", f"{self._path}?{deletion.query}", headers=self._headers, retries=False,
                redirect=False, timeout=self._timeout, preload_content=False)
            response.read(65536)
            if not response.closed:  # more of a body than is of any use
                response.close()
            response.release_conn()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            timed_out = isinstance(error, (urllib3.exceptions.TimeoutError, socket.timeout)) and (
                not isinstance(error, urllib3.exceptions.NewConnectionError))
            what = re.sub(r"<[^>]*>: |HTTPS?Connection\w*\([^)]*\): ", "", str(error))
            raise RoleApiError(f"{self._where}: {type(error).__name__}: {what}",
                               timed_out=timed_out) from None
        if not 200 <= response.status < 300:
            hint = STATUS_HINTS.get(response.status)
            if hint is None and response.status < 400:
                hint = "api_url is redirected, and redirects are not followed"
            raise RoleApiError(
                f"{self._where}: {response.status}" + (f": {hint}" if hint else ""),
                response.status, retry_after=_seconds(response.headers.get("Retry-After")))


def _seconds(retry_after: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for (RFC 9110, 10.2.3)."""
    try:
        if retry_after is None or retry_after.isdigit():
            return float(retry_after) if retry_after else None
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def probe() -> Deletion:
    """A deletion that harms nobody and succeeds only if K2HR3 is well and this host may delete."""
    return Deletion(str(uuid.uuid4()))


class Breaker:
    """Tells a K2HR3 in trouble from deletions that fail on their own. Open: no attempts.

    A 400 says nothing about a deletion (K2HR3 answers it when its store is down), so after three
    failures in a row a probe asks. While open, probes follow after 1, 2, 4 … seconds.

    :param longest: the longest pause between two probes, seconds
    """

    def __init__(self, longest: float) -> None:
        self.failures = 0
        self.open = False
        self._longest = longest
        self._pause = 1.0
        self._probe_at = 0.0

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self.failures = 0

    def failed(self, error: RoleApiError) -> None:
        """An attempt failed. A time-out counts as three: each costs K2HR3 its whole time."""
        self.failures += 3 if error.timed_out else 1

    def wants_probe(self, now: float) -> bool:
        """Whether the next request must be a probe; `now` is monotonic."""
        return now >= self._probe_at if self.open else self.failures >= 3

    def probed(self, error: RoleApiError | None, now: float) -> None:
        """A probe succeeded (`error` None) or failed."""
        self.open = error is not None
        if error is None:
            self.failures, self._pause = 0, 1.0
            return
        pause = max(self._pause * random.uniform(0.8, 1.2), error.retry_after or 0.0)
        self._probe_at = now + min(pause, self._longest)
        self._pause = min(2 * self._pause, self._longest)


# --- Listener ----------------------------------------------------------------------------------

class Consumer:
    """A channel that consumes one queue, and its deliveries that are not acked yet.

    :raises ChannelClosedByBroker: the queue is missing, or may not be read
    """

    def __init__(self, connection: pika.BlockingConnection, queue: str, prefetch: int,
                 on_message: Callable[..., None]) -> None:
        self.queue = queue
        self.cancelled = False
        self.unfinished: dict[int, Delivery] = {}  # in the order of their tags
        self.finished: list[int] = []
        self.channel = connection.channel()
        self.channel.basic_qos(prefetch_count=prefetch)
        self.channel.add_on_cancel_callback(self._on_cancel)
        self.consumer_tag = self.channel.basic_consume(queue, partial(on_message, self))

    def _on_cancel(self, _method: Any) -> None:
        self.cancelled = True

    def flush(self) -> None:
        """Ack what is finished: one ack for all before the oldest unfinished, single ones beyond.

        A `multiple` ack of a tag that is acked already would close the channel, so its tag is
        always one that is not.
        """
        if not self.finished:
            return
        oldest = next(iter(self.unfinished), None)
        together = max((tag for tag in self.finished if oldest is None or tag < oldest), default=0)
        singly = [tag for tag in self.finished if tag > together]
        self.finished.clear()
        if together:
            self.channel.basic_ack(together, multiple=True)
        for tag in singly:
            self.channel.basic_ack(tag)


@dataclass(eq=False)
class Delivery:
    """A message in our hands: unacked until a deletion or a confirmed copy replaces it."""

    consumer: Optional[Consumer]  # None for a probe
    tag: int
    body: bytes
    properties: pika.BasicProperties
    deletion: Optional[Deletion] = None
    event_type: str = ""
    message_id: str = ""
    retry: bool = False  # it came from the retry queue
    queue: str = ""  # the notification queue it first came from
    attempts: int = 0
    first_failure: float = 0.0  # epoch seconds
    last_failure: float = 0.0
    since: float = 0.0  # monotonic: waits here since
    due: float = 0.0  # monotonic: nothing is done with it earlier
    copy_to: str = ""  # where its copy must go, once that is decided
    reason: str = ""

    @property
    def open(self) -> bool:
        """Whether it can still be settled; else the broker delivers it again."""
        return self.consumer is not None and self.consumer.channel.is_open

    def finish(self) -> None:
        """Have it acked by its consumer's next flush."""
        if self.consumer and self.consumer.unfinished.pop(self.tag, None):
            self.consumer.finished.append(self.tag)

    def copy_properties(self) -> pika.BasicProperties:
        """The sender's properties for a copy, without what is the broker's or would lose it."""
        properties = copy.copy(self.properties)
        headers = {name: value for name, value in (properties.headers or {}).items()
                   if name not in ("CC", "BCC") and not name.lower().startswith("x-")}
        headers.update({"x-k2hr3-queue": self.queue, "x-k2hr3-attempts": self.attempts,
                        "x-k2hr3-reason": self.reason})
        if self.attempts:
            headers.update({"x-k2hr3-first-failure": int(self.first_failure),
                            "x-k2hr3-last-failure": int(self.last_failure)})
        properties.headers = headers
        properties.delivery_mode = 2
        properties.user_id = None  # the broker takes only the publishing connection's own
        properties.expiration = None  # else the copy would be dropped when it is over
        return properties


class Attempted(NamedTuple):
    """A worker's result: `made` is False where it handed the delivery back unattempted."""

    delivery: Delivery
    made: bool
    error: Optional[RoleApiError]
    milliseconds: float


class Copied(NamedTuple):
    """The publisher's result: None, or why there is no copy."""

    delivery: Delivery
    error: Optional[str]


class Publisher:
    """A thread that owns the connection on which copies are published.

    Not the consuming one: a connection that has published is not read in a memory alarm, and
    even its acks would hang. A stall here holds up copies and nothing else.

    :param answer: called with each result, from this thread
    """

    #: Seconds without copying after a failure, and after which an idle connection is closed.
    pause_seconds, idle_seconds = 30.0, 5.0

    def __init__(self, hosts: list[pika.ConnectionParameters],
                 answer: Callable[[Copied], None]) -> None:
        self._hosts = [copy.copy(host) for host in hosts]
        for host in self._hosts:  # a stalled connection is noticed after three heartbeats
            host.heartbeat = host.blocked_connection_timeout = 10
        self._answer = answer
        self._copies: queue.SimpleQueue[tuple[Delivery, str, pika.BasicProperties]] = (
            queue.SimpleQueue())
        self._paused_until: dict[str, float] = {}  # by queue; "" is all of them
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None

    def start(self) -> None:
        """Start the thread, which never ends."""
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def copy(self, delivery: Delivery) -> None:
        """Have a delivery copied to its `copy_to`."""
        self._copies.put((delivery, delivery.copy_to, delivery.copy_properties()))

    def _run(self) -> None:
        while True:
            try:
                delivery, to, properties = self._copies.get(
                    timeout=self.idle_seconds if self._connection else None)
            except queue.Empty:
                self._close()
                continue
            paused = max(self._paused_until.get("", 0.0), self._paused_until.get(to, 0.0))
            error: str | None = "copying is paused"
            if time.monotonic() >= paused:
                error = self._publish(to, delivery.body, properties)
            self._answer(Copied(delivery, error))

    def _publish(self, to: str, body: bytes, properties: pika.BasicProperties) -> str | None:
        try:
            if self._channel is None:
                self._connection = connect(self._hosts)
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
            self._channel.basic_publish("", to, body, properties, mandatory=True)
            return None
        except (UnroutableError, NackError) as error:
            what = "is missing" if isinstance(error, UnroutableError) else "refused it"
            problem = f"the queue {what}"
            self._paused_until[to] = time.monotonic() + self.pause_seconds
        except Exception as error:
            problem = explain(error)
            self._paused_until[""] = time.monotonic() + self.pause_seconds
            self._close()
        LOG.error("could not copy to %s, nothing is copied there for %d s and the originals are "
                  "held: %s (needs write permission on amq.default)",
                  to, self.pause_seconds, problem)
        return problem

    def _close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        try:
            if connection and connection.is_open:
                connection.close()
        except Exception as error:
            LOG.debug("closing the publishing connection: %s", explain(error))


@dataclass(frozen=True)
class Subscription:
    """A notification queue, the sources that share it, and what it is bound to."""

    queue: str
    ours: bool
    sources: tuple[Source, ...]
    bindings: tuple[tuple[str, str], ...]  # exchange, routing key
    skipped: dict[bytes, bool]  # event type -> whether every source refuses it

    def skips(self, body: bytes, properties: pika.BasicProperties) -> bool:
        """Whether the message is another event, as far as a quick look can tell."""
        if len(body) > MAX_BYTES:
            return False
        event_type = quick_event_type(body, properties)
        if event_type is None:
            return False
        skip = self.skipped.get(event_type)
        if skip is None:
            skip = not any(_matches(source.event_type, event_type.decode())
                           for source in self.sources)
            if len(self.skipped) < 1000:
                self.skipped[event_type] = skip
        return skip


def subscriptions(config: Config, endpoint: Endpoint) -> list[Subscription]:
    """What a listener consumes: sources that share a queue become one consumer."""
    sources: dict[str, list[Source]] = {}
    bindings: dict[str, list[tuple[str, str]]] = {}
    for source in config.sources:
        for priority in endpoint.priorities():
            key = f"{source.topic}.{priority}"
            name = source.pool or key
            sources.setdefault(name, []).append(source)
            bindings.setdefault(name, [])
            if source.pool:
                bindings[name].append((source.exchange, key))
    return [Subscription(name, bool(bindings[name]), tuple(dict.fromkeys(sharing)),
                         tuple(dict.fromkeys(bindings[name])), {})
            for name, sharing in sources.items()]


class Listener:
    """Consumes notifications, makes their deletions, and settles each delivery.

    One thread, the one that calls `run`, owns all state and the consuming connection. Worker
    threads make attempts, the publisher makes copies; both answer through one queue.

    :param endpoint: turns notifications into deletions
    :raises ConfigError: certificate files can't be used
    """

    #: A fresh deletion that waited here so long moves to the retry queue, seconds.
    hold_seconds = 30.0
    #: Deletions a worker is given ahead while all goes well: it need not wait for this thread.
    ahead = 8

    def __init__(self, config: Config, endpoint: Endpoint | None = None) -> None:
        self.config = config
        self.endpoint = endpoint or Endpoint()
        self.role_api = RoleApi(config.k2hr3)
        self.counters: Counter[str] = Counter()
        self.on_tick: Callable[[str], None] = lambda status: None
        self.retry_queue = f"{config.queue}.retry"
        self.dead_letter_queue = f"{config.queue}.dead_letter"
        self.state = "starting"
        self._hosts = parse_transport_url(config.sources[0].transport_url, config.rabbit)
        self._subscriptions = subscriptions(config, self.endpoint)
        self._stopping = threading.Event()
        self._breaker = Breaker(config.k2hr3.retry_interval_seconds)
        self._work: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Attempted | Copied] = queue.SimpleQueue()
        self._publisher = Publisher(self._hosts, self._answer)
        self._with_workers = 0  # deliveries that workers have not given back
        self._halt = False  # workers hand back what they have not begun
        self._woken = False
        self._connection: pika.BlockingConnection | None = None
        self._consumers: list[Consumer] = []
        self._pending: Deque[Delivery] = deque()  # fresh deletions
        self._due: Deque[Delivery] = deque()  # deletions to be tried again now
        self._held: list[Delivery] = []  # wait until they are due
        self._retry_turn = False
        self._next_tick = self._next_look = 0.0
        self._said: dict[str, str] = {}

    # run and stop

    def run(self) -> None:
        """Listen until `stop`. Whatever happens to the broker, connect again and go on."""
        self._publisher.start()
        for number in range(self.config.k2hr3.concurrency):
            threading.Thread(target=self._attempt, name=f"worker-{number}", daemon=True).start()
        rabbit = self.config.rabbit
        pause = rabbit.rabbit_retry_interval
        while not self._stopping.is_set():
            try:
                self._connection = connect(self._hosts, self._stopping.is_set)
                self._say("broker", logging.INFO, "connected to the broker")
                self._next_look = 0.0
                pause = rabbit.rabbit_retry_interval
                while not self._stopping.is_set():
                    self._turn()
                self._finish()
            except (AMQPError, OSError, Error) as error:
                if not self._stopping.is_set():
                    self._say("broker", logging.ERROR, f"{explain(error)}; connecting again")
            except Exception:  # nothing may end the listener but a person
                LOG.exception("unexpected, connecting again")
            self._forget()
            until = time.monotonic() + pause
            pause = min(pause + rabbit.rabbit_retry_backoff, rabbit.rabbit_interval_max)
            while time.monotonic() < until and not self._stopping.wait(0.2):
                self._collect()
                self._tell()

    def stop(self) -> None:
        """End `run` when the running attempts have ended. Safe from any thread."""
        self._stopping.set()

    def _turn(self) -> None:
        """Receive, collect results, decide, give out work, ack: once for all that is there."""
        assert self._connection
        self._connection.process_data_events(0.5)
        self._collect()
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + 0.5
            self._tick(now)
        self._give_out(now)
        self._settle()

    def _settle(self) -> None:
        for consumer in list(self._consumers):
            try:
                if consumer.channel.is_open:
                    consumer.flush()
            except AMQPChannelError as error:
                LOG.debug("acking on %s: %s", consumer.queue, explain(error))
            # process_data_events returns normally after the broker closed a channel
            if not consumer.channel.is_open:
                reason = explain(getattr(consumer.channel, "_closing_reason", None))
                LOG.warning("consuming %s again, its channel was closed: %s",
                            consumer.queue, reason)
                self._drop(consumer)
            elif consumer.cancelled:
                self._evacuate(consumer)

    def _finish(self) -> None:
        """Let running attempts end, settle, close: the broker gives the rest to others."""
        assert self._connection
        self._halt = True
        for consumer in self._consumers:
            if consumer.channel.is_open and not consumer.cancelled:
                consumer.channel.basic_cancel(consumer.consumer_tag)
        while self._with_workers:
            self._connection.process_data_events(0.1)
            self._collect()
        self._settle()
        self._connection.close()

    def _forget(self) -> None:
        """Drop a connection and what came over it, which the broker delivers again."""
        connection, self._connection = self._connection, None
        for consumer in list(self._consumers):
            self._drop(consumer)
        if connection and connection.is_open:
            try:
                connection.close()
            except Exception as error:
                LOG.debug("closing the connection: %s", explain(error))

    def _drop(self, consumer: Consumer) -> None:
        self._consumers.remove(consumer)
        self._take_back(consumer)
        self._next_look = 0.0

    def _take_back(self, consumer: Consumer) -> list[Delivery]:
        """Its deliveries that no other thread has, no longer waiting here."""
        taken = [delivery for delivery in (*self._pending, *self._due, *self._held)
                 if delivery.consumer is consumer]
        self._pending = deque(d for d in self._pending if d.consumer is not consumer)
        self._due = deque(d for d in self._due if d.consumer is not consumer)
        self._held = [d for d in self._held if d.consumer is not consumer]
        return taken

    def _evacuate(self, consumer: Consumer) -> None:
        """Its queue was deleted, so what we hold is all there is: move it to the retry queue."""
        if consumer.consumer_tag:
            consumer.consumer_tag = ""
            LOG.warning("the broker cancelled the consumer of %s, what it delivered moves to %s",
                        consumer.queue, self.retry_queue)
            self._look(time.monotonic())
            for delivery in self._take_back(consumer):
                self._move(delivery, delivery.copy_to or self.retry_queue, "its queue was deleted")
        if not consumer.unfinished:
            consumer.channel.close()
            self._consumers.remove(consumer)

    # receive and decide

    def _on_notification(self, subscription: Subscription, consumer: Consumer, _channel: Any,
                         method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if subscription.skips(body, properties):
            self.counters["ignored"] += 1
            consumer.finished.append(method.delivery_tag)
            return
        delivery = Delivery(consumer, method.delivery_tag, body, properties,
                            queue=subscription.queue, since=time.monotonic())
        consumer.unfinished[delivery.tag] = delivery
        if not self._understand(delivery, subscription.sources):
            return
        if _number(properties, "x-delivery-count"):
            # A quorum queue may drop it at its next return; a copy starts at zero.
            self._move(delivery, self.retry_queue, "the broker delivered it before")
        else:
            self._pending.append(delivery)

    def _on_retry(self, consumer: Consumer, _channel: Any, method: Any,
                  properties: pika.BasicProperties, body: bytes) -> None:
        now = time.monotonic()
        delivery = Delivery(
            consumer, method.delivery_tag, body, properties, retry=True, since=now,
            queue=str((properties.headers or {}).get("x-k2hr3-queue", self.config.queue)),
            attempts=int(_number(properties, "x-k2hr3-attempts")),
            first_failure=_number(properties, "x-k2hr3-first-failure"),
            last_failure=_number(properties, "x-k2hr3-last-failure"))
        consumer.unfinished[delivery.tag] = delivery
        if not self._understand(delivery, None):
            return
        wait = self._backoff(delivery) - (time.time() - delivery.last_failure)
        if delivery.last_failure and wait > 0:
            # where a clock was wrong, not longer than the longest pause
            delivery.due = now + min(wait, self.config.k2hr3.retry_interval_seconds)
            self._held.append(delivery)
        else:
            self._due.append(delivery)

    def _understand(self, delivery: Delivery, sources: tuple[Source, ...] | None) -> bool:
        """Find the deletion a message leads to; where there is none, settle it.

        :param sources: whose filters decide; None: it was accepted before
        """
        try:
            notification = decode(delivery.body, delivery.properties)
            delivery.event_type = _printable(notification.event_type)
            delivery.message_id = _printable(str(notification.metadata["message_id"]))
            if sources is None or any(accepts(source, notification) for source in sources):
                delivery.deletion = self.endpoint.deletion(notification)
        except Exception as error:  # MalformedNotification, or what nobody thought of
            self._dead_letter(delivery, str(error) or repr(error))
            return False
        if delivery.deletion is None and delivery.retry:
            self._dead_letter(delivery, "it leads to no deletion")
        elif delivery.deletion is None:
            self.counters["ignored"] += 1
            delivery.finish()
        return delivery.deletion is not None

    def _backoff(self, delivery: Delivery) -> float:
        """Seconds between a deletion's last failure and its next attempt."""
        return min(2.0 ** min(delivery.attempts, 10), self.config.k2hr3.retry_interval_seconds)

    def _tick(self, now: float) -> None:
        """What time brings about; twice a second."""
        while self._pending and now - self._pending[0].since > self.hold_seconds:
            self._move(self._pending.popleft(), self.retry_queue,
                       f"waited {self.hold_seconds:.0f} s for K2HR3")
        held, self._held = self._held, []
        for delivery in held:
            if now < delivery.due or (self._breaker.open and not delivery.copy_to):
                self._held.append(delivery)
            elif self._breaker.open or delivery.copy_to == self.dead_letter_queue:
                self._move(delivery, delivery.copy_to, delivery.reason)
            else:
                delivery.since, delivery.copy_to = now, ""
                self._due.append(delivery)
        if now >= self._next_look:
            self._look(now)
        self._tell()

    # give out work and take results

    def _give_out(self, now: float) -> None:
        if self._breaker.open:
            for delivery in self._pending:
                self._move(delivery, self.retry_queue, "K2HR3 is in trouble")
            self._held.extend(self._due)
            self._pending.clear()
            self._due.clear()
            self._give_back()
        if not self._with_workers:
            self._halt = False
        if self._breaker.wants_probe(now):
            if not self._with_workers:
                self._hand_over(Delivery(None, 0, b"", pika.BasicProperties(), probe()))
            return
        if self._breaker.open or self._halt:
            return
        most = 1 if self._breaker.failures else self.config.k2hr3.concurrency * self.ahead
        while self._with_workers < most and (self._due or self._pending):
            self._retry_turn = not self._retry_turn
            first, second = ((self._due, self._pending) if self._retry_turn
                             else (self._pending, self._due))
            self._hand_over((first or second).popleft())

    def _give_back(self) -> None:
        """Leave the retry queue to a listener that reaches K2HR3, once all it gave us is idle."""
        for consumer in self._consumers:
            if consumer.queue == self.retry_queue and consumer.channel.is_open and all(
                    delivery in self._held for delivery in consumer.unfinished.values()):
                consumer.flush()
                consumer.channel.close()
                self._drop(consumer)
                return

    def _hand_over(self, delivery: Delivery) -> None:
        self._with_workers += 1
        self._work.put(delivery)

    def _attempt(self) -> None:
        """A worker thread: one attempt after the other."""
        while True:
            delivery = self._work.get()
            began = time.monotonic()
            error: RoleApiError | None = None
            too_old = not delivery.retry and began - delivery.since > self.hold_seconds
            made = delivery.consumer is None or not (self._halt or too_old)
            if made:
                try:
                    assert delivery.deletion
                    self.role_api.delete(delivery.deletion)
                except RoleApiError as failure:
                    error = failure
                except Exception as failure:  # a worker must not die of what nobody thought of
                    error = RoleApiError(f"unexpected {failure!r}")
                if error:
                    self._halt = True
            self._answer(Attempted(delivery, made, error, 1000 * (time.monotonic() - began)))

    def _answer(self, result: Attempted | Copied) -> None:
        """Give a result to the listener's thread. Called from the others."""
        self._results.put(result)
        connection = self._connection
        if connection is None or self._woken or (
                result.error is None and self._work.qsize() > self.ahead // 2):
            return  # it looks anyway, or there is work enough until more is ready
        self._woken = True
        try:
            connection.add_callback_threadsafe(lambda: None)
        except AMQPError:
            pass  # lost: the listener's thread knows

    def _collect(self) -> None:
        self._woken = False
        while not self._results.empty():
            result = self._results.get()
            if isinstance(result, Copied):
                self._copied(result)
            else:
                self._with_workers -= 1
                self._attempted(result)

    def _attempted(self, result: Attempted) -> None:
        delivery, error = result.delivery, result.error
        if delivery.consumer is None:
            self._probed(error)
            return
        if not result.made:
            if delivery.open:
                (self._due if delivery.retry else self._pending).appendleft(delivery)
            return
        assert delivery.deletion
        line = (f"instance={delivery.deletion.cuk} host={','.join(delivery.deletion.ips) or 'all'} "
                f"event={delivery.event_type} message_id={delivery.message_id} "
                f"attempts={delivery.attempts + 1} ms={result.milliseconds:.0f}")
        if error is None:
            self.counters["deleted"] += 1
            self._breaker.succeeded()
            LOG.info("deleted %s", line)
            delivery.finish()
            return
        self.counters["failed"] += 1
        LOG.warning("not deleted %s: %s", line, error)
        delivery.attempts += 1
        delivery.last_failure = time.time()
        delivery.first_failure = delivery.first_failure or delivery.last_failure
        too_long = error.status in (414, 431)
        if not too_long:
            self._breaker.failed(error)
        if self._stopping.is_set() or not delivery.open:
            return  # unacked, so the broker delivers it again
        limit = self.config.k2hr3.dead_letter_after_seconds
        if too_long or 0 < limit <= delivery.last_failure - delivery.first_failure:
            self._dead_letter(delivery, str(error))
        else:
            self._move(delivery, self.retry_queue, str(error))

    def _probed(self, error: RoleApiError | None) -> None:
        self._breaker.probed(error, time.monotonic())
        if error:
            self._say("K2HR3", logging.ERROR, f"K2HR3 is in trouble, deletions wait in "
                      f"{self.retry_queue} until it is back: {error}")
        elif "K2HR3" in self._said:
            self._well("K2HR3", "K2HR3 is back")
            self._next_look = 0.0

    def _move(self, delivery: Delivery, to: str, reason: str) -> None:
        """Have a delivery copied to one of our own queues, after which it is acked."""
        delivery.copy_to, delivery.reason = to, _printable(reason)
        self._publisher.copy(delivery)

    def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        LOG.warning("dead letter event=%s message_id=%s from %s: %s", delivery.event_type,
                    delivery.message_id, delivery.queue, _printable(reason))
        self._move(delivery, self.dead_letter_queue, reason)

    def _copied(self, result: Copied) -> None:
        delivery = result.delivery
        if result.error is None:
            dead = delivery.copy_to == self.dead_letter_queue
            self.counters["dead_letters" if dead else "retried"] += 1
            delivery.finish()
        elif delivery.open:
            now = time.monotonic()
            delivery.due = now + self._backoff(delivery)
            self._held.append(delivery)
            self._next_look = min(self._next_look, now + 1)  # its queue may be missing

    # queues and consumers

    def _look(self, now: float) -> None:
        """See that our queues, bindings and consumers are there; what is missing is looked for
        again in 5 s. Bindings are made again every 30 s: that an exchange was deleted and made
        again is signalled by nothing.
        """
        assert self._connection
        quorum = self.config.rabbit.rabbit_quorum_queue
        well = True
        for name in (self.retry_queue, self.dead_letter_queue):
            well &= self._check(name, f"configure permission on {name}",
                                ensure_queue(self._connection, name, quorum))
        for subscription in self._subscriptions:
            name = subscription.queue
            prefetch = self.config.rabbit.rabbit_qos_prefetch_count or 200
            well &= self._check(name, f"configure permission on {name}", ensure_queue(
                self._connection, name, quorum if subscription.ours else None)) and self._consume(
                    name, prefetch, partial(self._on_notification, subscription))
            for exchange, key in subscription.bindings:
                well &= self._check(
                    f"{name} to {exchange} {key}",
                    f"write permission on {name}, read permission on {exchange}",
                    refusal(self._connection, partial(_bind, name, exchange, key)))
        if not self._breaker.open:
            well &= self._consume(self.retry_queue, self.config.k2hr3.concurrency, self._on_retry)
        self._next_look = now + (30.0 if well else 5.0)

    def _consume(self, name: str, prefetch: int, on_message: Callable[..., None]) -> bool:
        assert self._connection
        if any(consumer.queue == name and not consumer.cancelled for consumer in self._consumers):
            return True
        refused = None
        try:
            self._consumers.append(Consumer(self._connection, name, prefetch, on_message))
        except ChannelClosedByBroker as error:
            refused = error
        return self._check(f"consumer of {name}", f"read permission on {name}", refused)

    def _check(self, what: str, needs: str, refused: ChannelClosedByBroker | None) -> bool:
        if refused is None:
            self._well(what, f"{what}: is there")
            return True
        hint = f" (needs {needs})" if refused.reply_code == 403 else ""
        self._say(what, logging.WARNING,
                  f"{what}: {explain(refused)}{hint}; looking again every 5 s")
        return False

    def _say(self, topic: str, level: int, text: str) -> None:
        """Log what is new about a topic, once."""
        if self._said.get(topic) != text:
            self._said[topic] = text
            LOG.log(level, text)

    def _well(self, topic: str, text: str) -> None:
        """Log that what was said of a topic is over."""
        if self._said.pop(topic, None):
            LOG.info(text)

    def status(self) -> str:
        """State and counters, for a person. Safe from any thread."""
        state = ("connecting" if self._connection is None else
                 "K2HR3 in trouble" if self._breaker.open else "listening")
        names = ("deleted", "failed", "ignored", "retried", "dead_letters")
        return f"{state}: " + " ".join(
            [f"{name}={self.counters[name]}" for name in names]
            + [f"waiting={len(self._pending) + len(self._due) + len(self._held)}"])

    def _tell(self) -> None:
        self.on_tick(self.status())


def _bind(name: str, exchange: str, key: str, channel: BlockingChannel) -> None:
    channel.queue_bind(name, exchange, key)


def _number(properties: pika.BasicProperties, header: str) -> float:
    value = (properties.headers or {}).get(header)
    return value if isinstance(value, (int, float)) and 0 <= value < 2 ** 40 else 0


def _printable(text: str) -> str:
    """One short line of a text that strangers wrote."""
    return re.sub(r"[^ -~]+", "?", text)[:300]


# --- Commands ----------------------------------------------------------------------------------

CONFIG_FILES = ("./k2hr3_osnl.ini", "/etc/k2hr3/k2hr3_osnl.ini", "/etc/k2hr3/k2hr3_osnl.conf",
                "/etc/k2hr3/k2hr3-osnl.conf")
EX_CONFIG = 78


class LogFile(logging.handlers.TimedRotatingFileHandler):
    """The log file: rotated daily, reopened on SIGHUP, and not fatal when the disk is full."""

    def __init__(self, path: str) -> None:
        super().__init__(path, when="midnight", backupCount=31, encoding="utf-8",
                         errors="backslashreplace")

    def reopen(self) -> None:
        """Open the path again, for a logrotate that moved the file away."""
        with self.lock or threading.RLock():
            with contextlib.suppress(OSError):  # what could not be written can't be now
                cast(Any, self.stream).close()
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:
        print(f"{self.baseFilename}: {sys.exc_info()[1]}: {self.format(record)}", file=sys.stderr)


def set_up_logging(default: Default) -> logging.Handler:
    """Log as `[DEFAULT]` says; :raises ConfigError: the log file can't be written."""
    handler: logging.Handler
    if default.log_file in ("sys.stderr", "sys.stdout", ""):
        handler = logging.StreamHandler(
            sys.stdout if default.log_file == "sys.stdout" else sys.stderr)
    else:
        try:
            handler = LogFile(default.log_file)
        except OSError as error:
            raise ConfigError(f"[DEFAULT] log_file = {default.log_file}: {error.strerror}: "
                              "accepted is a file that can be written") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().handlers = [handler]
    level = LEVELS[default.libs_debug_level]
    logging.getLogger().setLevel(level)
    LOG.setLevel(LEVELS[default.debug_level] or logging.DEBUG)
    # pika logs one refused connection as seven errors; ours says it in one line
    logging.getLogger("pika").setLevel(level if level == logging.DEBUG else logging.CRITICAL + 1)
    return handler


def notify_systemd(state: str) -> None:
    """Tell systemd, where it listens: https://www.freedesktop.org/software/systemd/man/sd_notify"""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
            notify_socket.setblocking(False)
            notify_socket.sendto(state.encode(),
                                 "\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        LOG.debug("NOTIFY_SOCKET %s: %s", address, error)


def listen(config: Config) -> int:
    """The daemon: until SIGTERM or SIGINT; a second one, or a deadline, ends it at once."""
    handler = set_up_logging(config.default)
    listener = Listener(config)
    for warning in config.warnings:
        LOG.warning(warning)
    # All threads block these, and one waits for them: no lock, no call is ever interrupted.
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_obey, args=(signals, listener, handler), name="signals",
                     daemon=True).start()
    listener.on_tick = lambda status: notify_systemd(f"WATCHDOG=1\nSTATUS={status}")
    notify_systemd("READY=1")
    LOG.info("k2hr3_osnl %s, settings: %s", __version__, ", ".join(config.files) or "defaults")
    listener.run()
    LOG.info("stopped: %s", listener.status())
    return 0


def _obey(signals: set[signal.Signals], listener: Listener, handler: logging.Handler) -> None:
    stopping = False
    while True:
        number = signal.sigwait(signals)
        if number == signal.SIGUSR1:
            LOG.info("counters %s", listener.status())
        elif number == signal.SIGHUP and isinstance(handler, LogFile):
            try:
                handler.reopen()
            except OSError as error:
                print(f"log_file: {error}", file=sys.stderr)
        elif number in (signal.SIGTERM, signal.SIGINT):
            if stopping:
                os._exit(0)
            stopping = True
            notify_systemd("STOPPING=1")
            listener.stop()
            # neither a stalled broker nor a hanging K2HR3 holds us: the broker redelivers
            seconds = listener.config.k2hr3.timeout_seconds + 1
            deadline = threading.Timer(seconds, os._exit, (0,))
            deadline.daemon = True
            deadline.start()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="k2hr3_osnl.py", description="K2HR3 OpenStack Notification Listener: takes deleted "
        "instances out of their K2HR3 roles.")
    parser.add_argument("-c", "--config-file", action="append", metavar="FILE",
                        help="settings, later files over earlier ones; without: the first that "
                        f"exists of {', '.join(CONFIG_FILES)}")
    parser.add_argument("-d", dest="debug_level", choices=LEVELS, metavar="LEVEL",
                        help=f"log level: {', '.join(LEVELS)}")
    parser.add_argument("-l", dest="libs_debug_level", choices=LEVELS, metavar="LEVEL",
                        help="log level of pika and urllib3")
    parser.add_argument("-f", dest="log_file", metavar="LOG_FILE", help="write the log there")
    parser.add_argument("-v", "--version", action="version", version=f"k2hr3_osnl {__version__}")
    parser.add_argument("command", nargs="?", default="listen", choices=["listen"])
    arguments = parser.parse_args(argv)
    files = arguments.config_file or [file for file in CONFIG_FILES if os.path.exists(file)][:1]
    try:
        config = Config.load(*files)
        given = {name: value for name, value in vars(arguments).items()
                 if name in ("debug_level", "libs_debug_level", "log_file") and value}
        config = dataclasses.replace(
            config, default=dataclasses.replace(config.default, **given))
        return listen(config)
    except ConfigError as error:
        print(f"k2hr3_osnl: {error}", file=sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
