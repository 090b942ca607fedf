"""Lives of instances on a real OpenStack, replayed through a broker to the program.

`lab/lives/README.md` says what a life is. All are replayed to four listeners at once, each with
other sources and a Role API of its own, in the order in which they were lived: a later life holds
late notifications about the instances of earlier ones.
"""

from __future__ import annotations

import copy
import json
import lzma
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika.adapters.blocking_connection import BlockingChannel

from k2hr3_osnl import (
    Config,
    Deletion,
    Endpoint,
    MalformedNotification,
    Source,
    accepts,
    decode,
)
from lab import wait_until
from lab.broker import Broker, Depth
from lab.listener import ListenerProcess, write_settings
from lab.listener import settings as listener_settings
from lab.notifier import compute_instance, instance, port
from lab.odd import DECISIVE, places
from lab.role_api import RoleApi

#: Seconds that the four listeners may need to catch up on a busy machine.
PATIENCE = 30

NEUTRON = "neutron"
NEUTRON_AND_NOVA = "neutron + nova"
#: The four listeners: the names of each one's sources.
SOURCES = {
    NEUTRON: ("neutron",),
    "nova": ("nova",),
    "compute": ("compute",),
    NEUTRON_AND_NOVA: ("neutron", "nova"),
}

#: Instance -> its addresses.
Addresses = dict[str, set[str]]


# --- What the sources can't know ----------------------------------------------------------------

#: `causes`: why an address is not a member exactly while its machine has it, and what becomes of it
#: with which sources: it is a member until its instance goes, or for ever, or is lost though its
#: machine has it. `lives`: life -> instance (the first letters of its id), address, cause.
#: Everything else is exactly right.
UNKNOWABLE = json.loads((Path(__file__).parent / "lives" / "unknowable.json").read_text())


def fates(life: str, sources: str) -> list[tuple[str, str, str | None]]:
    """The start of an instance's id, its address and what becomes of that."""
    rows = UNKNOWABLE["lives"].get(life, ())
    causes = UNKNOWABLE["causes"]
    return [(start, address, causes[cause]["fates"].get(sources)) for start, address, cause in rows]


#: The life in which the listeners are away, and the checks after which and before which they are.
AWAY = ("d3", "attached, registered", "listeners back")


# --- The lives ----------------------------------------------------------------------------------


class Life(NamedTuple):
    """A file of `lab/lives`, with its lines after the title."""

    name: str
    title: str
    steps: list[dict[str, Any]]


def message_of(step: dict[str, Any]) -> dict[str, Any]:
    """Return the notification of a step without its envelope."""
    message: dict[str, Any] = json.loads(json.loads(step["message"]["body"])["oslo.message"])
    return message


def load_lives() -> list[Life]:
    """Return all lives in the order in which they were lived."""

    def began(life: Life) -> str:
        times = [message_of(step)["timestamp"] for step in life.steps if "message" in step]
        return min(times, default="")

    lives = []
    for file in (Path(__file__).parent / "lives").glob("*.jsonl.xz"):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            title, *steps = map(json.loads, lines)
        lives.append(Life(file.name.partition(".")[0], title["title"], steps))
    return sorted(lives, key=lambda life: (began(life), life.name))


LIVES = load_lives()


def should_be_members(life: Life, checked: dict[str, Any], sources: str) -> Addresses:
    """Return the members that a life should have at one of its checks, as `UNKNOWABLE` says.

    An address that a machine has only at a later check was registered ahead of its time, which the
    recording does; it is a member.
    """
    position = life.steps.index(checked)
    alive: dict[str, list[str]] = checked["alive"]
    members: Addresses = {}
    for step in life.steps[:position]:
        if "register" in step:
            members.setdefault(step["register"], set()).update(step["addresses"])
    for cuk, addresses in members.items():
        has = set(alive.get(cuk, ()))
        for step in life.steps[position:]:
            has.update(step.get("alive", {}).get(cuk, ()))
        for start, address, fate in fates(life.name, sources):
            if not cuk.startswith(start):
                continue
            if fate == "for ever" or (fate == "until it goes" and cuk in alive):
                has.add(address)
            elif fate == "lost" and (life.name, checked["check"]) == (AWAY[0], AWAY[2]):
                has.discard(address)
        addresses &= has
    return members


# --- The replay ---------------------------------------------------------------------------------


class Marker(NamedTuple):
    """How a service says that an instance was deleted."""

    exchange: str
    routing_key: str
    publisher_id: str
    event_type: str
    payload: Callable[[str], dict[str, Any]]


IN_CLEAR, VERSIONED = "notifications.info", "versioned_notifications.info"
ENDED = "instance.delete.end"
MARKERS = (
    Marker("neutron", IN_CLEAR, "network.lab", "port.delete.end", lambda cuk: port(cuk, ["::1"])),
    Marker("nova", VERSIONED, "nova-compute:lab", ENDED, instance),
    Marker("nova", IN_CLEAR, "compute.lab", f"compute.{ENDED}", compute_instance),
)


def envelope(message: Any) -> dict[str, Any]:
    """Wrap a notification as oslo.messaging's driver `messagingv2` does."""
    return {"oslo.version": "2.0", "oslo.message": json.dumps(message)}


@dataclass(frozen=True)
class Listening:
    """A listener, what it listens to, and the Role API that it asks."""

    services: tuple[str, ...]
    pool: str
    api: RoleApi
    process: ListenerProcess

    def has_heard_of(self, cuk: str) -> bool:
        """Whether the Role API was asked to delete an instance by each service's notification."""
        return self.api.deletions[cuk] == len(self.services)


@dataclass
class Replay:
    """What was seen while a life was replayed, by sources."""

    #: At each check, in their order: the members of those who had registered.
    members: dict[str, list[Addresses]] = field(default_factory=dict)
    #: The DELETEs for those who had registered: instance, and addresses (None: all of it).
    requests: dict[str, list[tuple[str, tuple[str, ...] | None]]] = field(default_factory=dict)
    #: Afterwards: the depths of the retry queue and of the dead-letter queue.
    left: dict[str, list[Depth]] = field(default_factory=dict)


class Cloud:
    """A broker with the exchanges of Neutron and Nova, and a listener for each of `SOURCES`."""

    def __init__(self, broker: Broker, listeners: Mapping[str, Listening]) -> None:
        self._broker = broker
        self._listeners = listeners
        self._replays: dict[str, Replay] = {}

    def replay(self, life: Life) -> Replay:
        """Publish what a life holds, once however often it is asked for, and return what came."""
        if life.name not in self._replays:
            with closing(self._broker.amqp()) as connection:
                self._replays[life.name] = self._replay(life, connection.channel())
        return self._replays[life.name]

    def _replay(self, life: Life, channel: BlockingChannel) -> Replay:
        seen = Replay({sources: [] for sources in self._listeners})
        before = {sources: len(each.api.requests) for sources, each in self._listeners.items()}
        registered: set[str] = set()
        for step in life.steps:
            if "message" in step:
                message = step["message"]
                channel.basic_publish(
                    message["exchange"],
                    message["routing_key"],
                    message["body"].encode(),
                    pika.BasicProperties(**message["properties"]),
                )
            elif "register" in step:
                registered.add(step["register"])
                self._register(step["register"], step["addresses"])
            else:
                place = (life.name, step["check"])
                if place == (AWAY[0], AWAY[2]):
                    self._come_back(step["alive"])
                self._settle(channel)
                for sources, each in self._listeners.items():
                    members = each.api.members()
                    seen.members[sources].append(
                        {cuk: members.get(cuk, set()) for cuk in registered}
                    )
                if place == (AWAY[0], AWAY[1]):
                    self._go_away()
        for sources, each in self._listeners.items():
            seen.requests[sources] = [
                (request.cuk, request.host)
                for request in each.api.requests[before[sources] :]
                if request.cuk in registered
            ]
            # A notification is acked after its copy to another queue is confirmed.
            self._broker.wait_for_depth(each.pool, 0, timeout=PATIENCE)
        depths = wait_until(self._broker.queues, PATIENCE)
        for sources, each in self._listeners.items():
            seen.left[sources] = [
                depths[f"{each.pool}.{name}"] for name in ("retry", "dead_letter")
            ]
        return seen

    def _register(self, cuk: str, addresses: list[str]) -> None:
        for each in self._listeners.values():
            each.api.register(cuk, *addresses)

    def _settle(self, channel: BlockingChannel) -> None:
        """Wait until every listener has worked off all that was published so far.

        Each makes the deletions of its queue in order, so it is enough that each has made the
        deletion of a fresh instance that every service says was deleted now.
        """
        cuk = str(uuid.uuid4())
        for marker in MARKERS:
            message = {
                "message_id": str(uuid.uuid4()),
                "publisher_id": marker.publisher_id,
                "event_type": marker.event_type,
                "priority": "INFO",
                "payload": marker.payload(cuk),
                "timestamp": "2026-11-24 20:00:00.000000",
            }
            body = json.dumps(envelope(message)).encode()
            channel.basic_publish(marker.exchange, marker.routing_key, body)
        for sources, each in self._listeners.items():
            wait_until(partial(each.has_heard_of, cuk), PATIENCE, f"{sources} to catch up")

    def _go_away(self) -> None:
        for each in self._listeners.values():
            assert each.process.stop(PATIENCE) == 0

    def _come_back(self, alive: Mapping[str, list[str]]) -> None:
        """Have the living register anew, as they did in this life, and start the listeners."""
        for cuk, addresses in alive.items():
            self._register(cuk, addresses)
        for each in self._listeners.values():
            each.process.start()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A cloud in which all lives are replayed."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker())
        with closing(broker.amqp()) as connection:
            for marker in MARKERS:
                connection.channel().exchange_declare(marker.exchange, "topic")
        listeners = {}
        for sources, services in SOURCES.items():
            api = stack.enter_context(RoleApi())
            pool = f"k2hr3_osnl.{'.'.join(services)}"
            sections = listener_settings(broker.url(), api.url, timeout_seconds=PATIENCE)
            sections["oslo_messaging_notifications"]["pool"] = pool
            sections.update({f"oslo_messaging_notifications:{each}": {} for each in services})
            process = stack.enter_context(ListenerProcess(sections))
            listeners[sources] = Listening(services, pool, api, process)
        wait_until(
            lambda: all(
                len(broker.bindings(each.pool)) == len(each.services) for each in listeners.values()
            ),
            PATIENCE,
            "the queues of all listeners to be bound",
        )
        yield Cloud(broker, listeners)


@pytest.mark.parametrize("life", [pytest.param(life, id=life.name) for life in LIVES])
def test_the_living_keep_their_addresses_and_the_gone_are_no_members(
    cloud: Cloud, life: Life
) -> None:
    replay = cloud.replay(life)
    checks = [step for step in life.steps if "check" in step]
    for sources, seen in replay.members.items():
        for checked, members in zip(checks, seen):
            expected = should_be_members(life, checked, sources)
            assert members == expected, f"{life.title}: {sources} at {checked['check']!r}"


@pytest.mark.parametrize("life", [pytest.param(life, id=life.name) for life in LIVES])
def test_no_life_makes_a_retry_or_a_dead_letter_or_removes_an_instance_twice(
    cloud: Cloud, life: Life
) -> None:
    replay = cloud.replay(life)
    assert replay.left == {sources: [Depth(0, 0), Depth(0, 0)] for sources in SOURCES}
    for sources, requests in replay.requests.items():
        instances = Counter(cuk for cuk, addresses in requests if addresses is None)
        assert set(instances.values()) <= {1}, sources


def test_with_neutron_and_nova_a_life_is_exactly_right_unless_a_delete_is_late() -> None:
    """Right means: the living are members with what they have, and the gone are not."""
    wrong = {
        life
        for life in UNKNOWABLE["lives"]
        for _, _, fate in fates(life, NEUTRON_AND_NOVA)
        if fate not in (None, "until it goes")
    }
    assert wrong == {AWAY[0]}


def test_a_normal_deletion_is_two_requests(cloud: Cloud) -> None:
    """One is for the port, one for the instance, of which Nova tells twice."""
    (life,) = (life for life in LIVES if life.name == "a")
    cuk = "fb5f7e23-fcc2-415d-9edb-c4b67607c362"
    assert cloud.replay(life).requests[NEUTRON_AND_NOVA] == [(cuk, ("10.1.3.182",)), (cuk, None)]


# --- Bad input ----------------------------------------------------------------------------------

MESSAGES = [message_of(step) for life in LIVES for step in life.steps if "message" in step]

#: The event types of the presets `nova` and `compute`.
ENDS = {"instance.delete.end", "compute.instance.delete.end", "compute.instance.force_delete.end"}
HEARD_OF_NOVA = ENDS | {"instance.update"}
#: What the program reads of a notification: damaged more often than the rest.
READ = {*DECISIVE, "port_id", "nova_object.data"}

#: What stands where something else is expected; `...`: nothing, the member is left out.
STRANGE = [..., None, True, 0, 1.5, "", [], {}, ["deleted"], {"state": "deleted"}]


def instance_of(message: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a notification of Nova's that describes the instance."""
    payload: dict[str, Any] = message["payload"]
    found: dict[str, Any] = payload.get("nova_object.data", payload)
    return found


def instance_id(message: dict[str, Any]) -> str:
    """Return the instance id in a notification of Nova's."""
    described = instance_of(message)
    return str(described.get("uuid") or described["instance_id"])


def is_deleted(message: dict[str, Any]) -> bool:
    """Whether the instance's state in a notification of Nova's is `deleted`."""
    return bool(instance_of(message)["state"] == "deleted")


def by_kind(messages: Iterable[dict[str, Any]]) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """Sort what is heard at all by event type and whether Nova's state is `deleted`.

    So a rare kind (a deletion that failed) can be damaged as often as the others.
    """
    kinds: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for message in messages:
        event_type = message["event_type"]
        if event_type in HEARD_OF_NOVA:
            kinds.setdefault((event_type, is_deleted(message)), []).append(message)
        elif event_type == "port.delete.end":
            kinds.setdefault((event_type, True), []).append(message)
    return kinds


KINDS = by_kind(MESSAGES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, ...]:
    """The sources of all three services, as their presets make them."""
    services = ("neutron", "nova", "compute")
    file = tmp_path_factory.mktemp("settings") / "k2hr3_osnl.ini"
    write_settings(file, {f"oslo_messaging_notifications:{each}": {} for each in services})
    return Config.load(str(file), environ={}).sources


def deletion(sources: tuple[Source, ...], body: dict[str, Any]) -> Deletion | None:
    """Return the deletion that a body leads to, None where it is ignored or a dead letter."""
    with suppress(MalformedNotification):
        notification = decode(json.dumps(body).encode(), pika.BasicProperties())
        if any(accepts(source, notification) for source in sources):
            return Endpoint().deletion(notification)
    return None


def test_novas_notification_is_a_deletion_exactly_if_the_state_is_deleted(
    sources: tuple[Source, ...],
) -> None:
    for message in MESSAGES:
        if message["event_type"].partition(".")[0] in ("instance", "compute"):
            heard = message["event_type"] in HEARD_OF_NOVA
            expected = Deletion(instance_id(message)) if heard and is_deleted(message) else None
            assert deletion(sources, envelope(message)) == expected
    # both formats tell of two deletions that failed
    failed = [KINDS["instance.delete.end", False], KINDS["compute.instance.delete.end", False]]
    assert [len(each) for each in failed] == [2, 2]


def test_a_missing_state_is_taken_for_deleted_in_a_delete_end_only(
    sources: tuple[Source, ...],
) -> None:
    """The one case in which less in a notification can delete more; hand-made ones have no state.

    Nova's own always have one.
    """
    for original in MESSAGES:
        if original["event_type"] in HEARD_OF_NOVA:
            message = copy.deepcopy(original)
            del instance_of(message)["state"]
            at_its_word = original["event_type"].endswith(".delete.end")
            expected = Deletion(instance_id(original)) if at_its_word else None
            assert deletion(sources, envelope(message)) == expected


def damage(draw: st.DrawFn, value: Any, place: tuple[Any, ...]) -> None:
    """Take out what is at a place, or put nothing, or something of another type, in its stead."""
    *way, last = place
    with suppress(LookupError, TypeError):  # an earlier damage took the place away
        for key in way:
            value = value[key]
        old = value[last]
        strange = [each for each in STRANGE if not each or type(each) is not type(old)]
        chosen = draw(st.sampled_from([*strange, [old]]))
        if chosen is ...:
            del value[last]
        else:
            value[last] = chosen


@st.composite
def damaged(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A notification of a life, and its body after one to four damages."""
    original = draw(st.sampled_from(KINDS[draw(st.sampled_from(list(KINDS)))]))
    message = copy.deepcopy(original)
    anywhere = list(places(original))
    read = [place for place in anywhere if place[-1] in READ or "fixed_ips" in place]
    where = st.sampled_from(read) | st.sampled_from(anywhere)
    for place in draw(st.lists(where, min_size=1, max_size=3)):
        damage(draw, message, place)
    body = envelope(message)
    if draw(st.integers(0, 9)) == 0:
        damage(draw, body, (draw(st.sampled_from(list(body))),))
    return original, body


@settings(max_examples=2000, deadline=None)
@given(damaged())
def test_bad_input_never_deletes_more_and_never_of_somebody_else(
    sources: tuple[Source, ...], case: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    original, body = case
    meant = deletion(sources, envelope(original))
    made = deletion(sources, body)
    if made is None:
        return
    if meant is None:  # only a deletion that failed, without its state; see above
        assert original["event_type"].endswith(".delete.end")
        assert "state" not in instance_of(json.loads(body["oslo.message"]))
        assert made == Deletion(instance_id(original))
    else:
        assert made.cuk == meant.cuk
        assert bool(made.ips) == bool(meant.ips)  # without addresses it is the whole instance
        assert set(made.ips) <= set(meant.ips)
