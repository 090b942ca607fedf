"""Rubbish for `make faults`: mutated real notifications, and what oslo.messaging makes of them.

`bodies` mutates: hypothesis puts any JSON into any place of a real message, or takes a member away,
and a seeded random mutator then harms bytes, of the body or of the message inside the envelope.
`Expected` is the oracle, written without the program: oslo.messaging's own deserialiser,
dispatcher and NotificationFilter, and the rule for what a deletion is. One figure of oslo's is
raised: it refuses envelopes of a newer minor version than its own, 2.0, which the program reads.

It is a program of its own, so that hypothesis and oslo.messaging (which imports eventlet) stay out
of the process that measures (EVENT_TYPE is what the listener accepts, a regular expression):

    python -m lab.faults_rubbish CUK UNIQUE EVENT_TYPE COUNT VARIANTS < corpus > bodies

reads and writes one body a line, in base64, and last a line of JSON: the deletions expected.
"""

from __future__ import annotations

import base64
import copy
import ipaddress
import json
import logging
import random
import re
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Optional

import oslo_messaging
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from oslo_messaging._drivers import amqp as oslo_amqp
from oslo_messaging._drivers import common as oslo_common
from oslo_messaging.notify.dispatcher import NotificationDispatcher

from lab.odd import DECISIVE, places

#: What a DELETE names: the instance, and the addresses or None for all of it.
Named = tuple[str, Optional[tuple[str, ...]]]

#: What a mutation puts between two bytes.
INSERTED = (b'"', b"\\", b"{", b"0", b" ", b"event_type", b"\\u00e9", b"\xff", b"NaN")

EVENTS = st.sampled_from(["port.delete.end", "instance.delete.end", "instance.update"])
WORDS = st.sampled_from(
    ["deleted", "active", "INFO", "2.0", "10.0.0.9", "compute:nova", "", [], {}]
)
KEYS = st.sampled_from(["port", "fixed_ips", "ip_address", "event_type"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    PLAIN | EVENTS | WORDS,
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.text(max_size=10) | KEYS, values, max_size=3)
    ),
    max_leaves=6,
)


def variants(corpus: Sequence[bytes], count: int) -> list[bytes]:
    """So many messages, each with one member replaced or taken away, envelope included."""
    found: list[bytes] = []
    envelopes = [json.loads(body) for body in corpus]
    messages = [json.loads(each.get("oslo.message", "null")) or each for each in envelopes]
    # what decides, as often as all the rest
    paths = [
        sorted(places(each), key=lambda path: (path[-1] not in DECISIVE, len(path)))
        for each in messages
    ]
    first = [sum(path[-1] in DECISIVE for path in each) for each in paths]

    @seed(4)
    @hypothesis_settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        which=st.integers(0, len(corpus) - 1),
        place=st.integers(0),
        common=st.booleans(),
        gone=st.booleans(),
        value=JSON,
        enveloped=st.booleans(),
        version=st.sampled_from(["2.0"] * 6 + ["2.1", "1.0", "3.0", "", 2]),
    )
    def collect(
        which: int, place: int, common: bool, gone: bool, value: Any, enveloped: bool, version: Any
    ) -> None:
        message = copy.deepcopy(messages[which])
        path = paths[which][place % (len(paths[which]) if common else first[which])]
        parent = message
        for key in path[:-1]:
            parent = parent[key]
        if gone:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        text = json.dumps(message, ensure_ascii=common)
        body = json.dumps({"oslo.version": version, "oslo.message": text}) if enveloped else text
        found.append(body.encode("utf-8", "surrogatepass"))

    collect()
    return found


def harm(body: bytes, chance: random.Random) -> bytes:
    """Harm some bytes."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(body) + 1)
        to = min(len(body), at + chance.choice((1, 1, 2, 8, 100)))
        part = body[at:to]
        byte, inserted = bytes([chance.randrange(256)]), chance.choice(INSERTED) + part
        other = chance.choice((byte, inserted, b"", part * 2, part.swapcase()))
        rest = b"" if chance.random() < 0.05 else body[to:]  # cut off
        body = body[:at] + other + rest
    return body


def bodies(
    corpus: Sequence[bytes], cuk: str, unique: str, count: int, structured: int
) -> Iterator[bytes]:
    """So many bodies, the same ones each time but for the instances' ids.

    Args:
        corpus: real ones, which name the instance `cuk`; that is replaced by a fresh one each.
        structured: how many of the variants hypothesis makes.
    """
    chance = random.Random(4)
    seeds = [*variants(corpus, structured), *list(corpus) * (structured // len(corpus))]
    for _ in range(count):
        body = chance.choice(seeds).replace(cuk.encode(), str(uuid.uuid4()).encode())
        body = body.replace(unique.encode(), uuid.uuid4().hex.encode())
        how = chance.random()
        if how < 0.4:
            body = harm(body, chance)
        elif how < 0.7 and body.startswith(b'{"oslo.version"'):
            with suppress(ValueError, KeyError, AttributeError):
                envelope = json.loads(body)
                inner = harm(envelope["oslo.message"].encode("utf-8", "surrogatepass"), chance)
                envelope["oslo.message"] = inner.decode("utf-8", "replace")
                body = json.dumps(envelope).encode("utf-8", "surrogatepass")
        yield body


class Expected:
    """What oslo.messaging and the rules of DESIGN.md lead to: the deletions to be sent."""

    def __init__(self, event_type: str) -> None:
        self.filter_rule = oslo_messaging.NotificationFilter(
            event_type=event_type, publisher_id="^network.*$"
        )
        self.deletions: Counter[Named] = Counter()
        self._dispatcher = NotificationDispatcher([self], oslo_messaging.NoOpSerializer())
        logging.getLogger("oslo_messaging").setLevel(logging.CRITICAL)
        oslo_common._RPC_ENVELOPE_VERSION = "2.999"

    def read(self, body: bytes) -> bytes:
        """Take one body into account; returns it."""
        with suppress(Exception):  # oslo.messaging trips over it: no deletion
            message = oslo_common.deserialize_msg(json.loads(body.decode()))
            context = oslo_amqp.unpack_context(message).to_dict()
            self._dispatcher.dispatch(SimpleNamespace(ctxt=context, message=message))
        return body

    def info(
        self, _context: Any, _publisher_id: str, event_type: str, payload: Any, _metadata: Any
    ) -> None:
        """Called by oslo.messaging's dispatcher for what its filter accepts."""
        deletion = wanted(event_type, payload)
        if deletion:
            self.deletions[deletion] += 1


def wanted(event_type: str, payload: Any) -> Named | None:
    """The deletion that an event leads to."""
    if not isinstance(payload, dict):
        return None
    if "port" in payload:
        port = payload["port"]
        if not isinstance(port, dict):
            return None
        owner, cuk, ips = port.get("device_owner"), port.get("device_id"), port.get("fixed_ips")
        if not (owner is None or (isinstance(owner, str) and owner.startswith("compute:"))):
            return None
        if not isinstance(ips, list) or not ips:
            return None
        addresses: Any = [ip.get("ip_address") if isinstance(ip, dict) else None for ip in ips]
        if not all(isinstance(each, str) and is_address(each) for each in addresses):
            return None
        return canonical(cuk, tuple(addresses))
    if "port_id" in payload:
        return None
    if "nova_object.data" in payload:
        data = payload["nova_object.data"]
        if not isinstance(data, dict) or not is_deleted(event_type, data):
            return None
        return canonical(data.get("uuid"), None)
    return canonical(payload.get("instance_id"), None) if is_deleted(event_type, payload) else None


def is_deleted(event_type: str, instance: dict[str, Any]) -> bool:
    """The state of Nova's instance decides; without one, an event that says so itself."""
    if "state" not in instance:
        return event_type.endswith(".delete.end")
    return bool(instance["state"] == "deleted")


def is_address(text: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def canonical(cuk: Any, addresses: tuple[str, ...] | None) -> Named | None:
    """A UUID as K2HR3 registers it: any case, dashes in their places or none at all."""
    if not isinstance(cuk, str):
        return None
    parts = cuk.split("-")
    if [len(part) for part in parts] not in ([8, 4, 4, 4, 12], [32]):
        return None
    if not re.fullmatch("[0-9a-fA-F]{32}", "".join(parts)):
        return None
    return str(uuid.UUID(cuk)), addresses


def main() -> None:
    cuk, unique, event_type, count, structured = sys.argv[1:]
    corpus = [base64.b64decode(line) for line in sys.stdin]
    expected = Expected(event_type)
    for body in bodies(corpus, cuk, unique, int(count), int(structured)):
        print(base64.b64encode(expected.read(body)).decode())
    print(json.dumps([[*named, times] for named, times in expected.deletions.items()]))


if __name__ == "__main__":
    main()
