"""Notifications of every spelling that JSON allows, and how oslo.messaging reads them."""

from __future__ import annotations

import json
import random
import uuid
from types import SimpleNamespace
from typing import Any

import oslo_messaging
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from oslo_messaging._drivers import amqp as oslo_amqp
from oslo_messaging._drivers.common import deserialize_msg
from oslo_messaging.notify.dispatcher import NotificationDispatcher

KEYS = st.sampled_from(["event_type", "old_event_type", "event_type\\", "uuid", "a"]) | st.text(
    max_size=5
)
EVENT_TYPES = st.sampled_from(
    ["port.delete.end", "port.update.end", "a:b", "x-y", "event_type", ""]
) | st.text(max_size=8)
TEXTS = EVENT_TYPES | st.sampled_from(
    [
        '"event_type": "x"',
        '{"event_type": "x"}',
        '\\"event_type\\": \\"x\\"',
        "\\u0065vent_type",
    ]
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
MESSAGES = st.builds(
    lambda members, more, context: {
        **more,
        **members,
        **{f"_context_{key}": value for key, value in context.items()},
        "message_id": "1",
        "timestamp": "2026-03-02",
    },
    st.fixed_dictionaries(
        {
            "event_type": EVENT_TYPES,
            "publisher_id": st.sampled_from(["network.h", "compute.h", ""]),
            "priority": st.sampled_from(["INFO", "info", "ERROR"]),
            "payload": JSON_VALUES | st.dictionaries(KEYS, EVENT_TYPES, min_size=1, max_size=2),
        }
    ),
    st.dictionaries(KEYS, JSON_VALUES, max_size=2),
    st.dictionaries(KEYS, JSON_VALUES, max_size=3),
)


def spell(value: Any, chance: random.Random) -> str:
    r"""JSON of a value: keys in any order, any white space, ``\uXXXX`` here and there."""
    space = chance.choice(["", "", " ", "\n\t"])
    if isinstance(value, str):
        share = chance.choice([0, 0, 0, 0.1, 1])
        return '"' + "".join(spell_character(each, share, chance) for each in value) + '"'
    if isinstance(value, list):
        return "[" + f",{space}".join(spell(item, chance) for item in value) + space + "]"
    if isinstance(value, dict):
        items = [
            f"{spell(key, chance)}{space}:{space}{spell(item, chance)}"
            for key, item in value.items()
        ]
        chance.shuffle(items)
        return "{" + f"{space},".join(items) + "}"
    return json.dumps(value)


def spell_character(character: str, share: float, chance: random.Random) -> str:
    r"""One character of a JSON string, as ``\uXXXX`` in a share of the cases."""
    if chance.random() >= share:
        return json.dumps(character, ensure_ascii=chance.random() < 0.5)[1:-1]
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] * 256 + units[at + 1]:04x}" for at in range(0, len(units), 2))


def spelled(message: Any, version: str | None, more: Any, chance: random.Random) -> bytes:
    """A message body, bare or in an envelope that may hold more."""
    text = spell(message, chance)
    if version:
        text = spell({**more, "oslo.version": version, "oslo.message": text}, chance)
    return text.encode()


def bodies(*versions: str | None) -> st.SearchStrategy[bytes]:
    """Message bodies, in envelopes of these versions; None: bare."""
    return st.builds(
        spelled,
        MESSAGES,
        st.sampled_from(versions),
        st.dictionaries(KEYS, JSON_VALUES, max_size=1),
        st.integers(0, 2**32).map(random.Random),  # st.randoms is 10 times slower
    )


@st.composite
def nearly(draw: st.DrawFn, *payloads: Any) -> Any:
    """One of these payloads, with some members replaced by anything."""
    payload = json.loads(json.dumps(draw(st.sampled_from(payloads))))
    port_ = payload.get("port", payload)
    places: list[tuple[Any, Any]] = [
        (payload, "port"),
        (payload, "nova_object.data"),
        (payload, "instance_id"),
        (port_, "device_id"),
        (port_, "device_owner"),
        (port_, "fixed_ips"),
        *((ip, "ip_address") for ip in port_.get("fixed_ips", [])),
        *((port_["fixed_ips"], at) for at in range(len(port_.get("fixed_ips", [])))),
    ]
    values = st.one_of(
        JSON_VALUES, st.sampled_from(["", str(uuid.uuid4()), "10.0.0.5", [], {}, None])
    )
    for holder, key in draw(st.lists(st.sampled_from(places), max_size=2)):
        holder[key] = draw(values)
    return payload


REGEXES = st.sampled_from(["", "^port", r".*\.end$", "a|x", "^$", "delete", "network", "[^a]", "1"])
DICTS = st.dictionaries(
    st.sampled_from(["event_type", "uuid", "a", "message_id", "timestamp"]), REGEXES, max_size=2
)
#: One or two of the filter's five rules; with more of them nearly nothing is accepted.
RULES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["event_type", "publisher_id"]), REGEXES),
        st.tuples(st.sampled_from(["context", "metadata", "payload"]), DICTS),
    ),
    max_size=2,
).map(dict)


def thorough(examples: int) -> hypothesis_settings:
    """So many examples, whose shrinking takes minutes and makes them no clearer."""
    return hypothesis_settings(
        deadline=None,
        database=None,
        max_examples=examples,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# The other reader


class OsloEndpoint:
    """One that remembers what the real dispatcher called it with."""

    def __init__(self, **rules: Any) -> None:
        self.filter_rule = oslo_messaging.NotificationFilter(**rules)
        self.called: tuple[Any, ...] = ()

    def info(self, *arguments: Any) -> None:
        self.called = arguments

    error = info


def dispatch(body: bytes, endpoint: OsloEndpoint) -> None:
    """Let oslo.messaging read a body and call its endpoint, if that one's filter lets it."""
    message = deserialize_msg(json.loads(body))
    context = oslo_amqp.unpack_context(message).to_dict()
    for name in ("msg_id", "reply_q", "client_timeout"):  # of RPC, no part of a notification
        context.pop(name, None)
    NotificationDispatcher([endpoint], oslo_messaging.NoOpSerializer()).dispatch(
        SimpleNamespace(ctxt=context, message=message)
    )
