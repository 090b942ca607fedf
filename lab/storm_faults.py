"""The faults of a storm as a table, and the schedule that a seed makes of them.

A fault is started and ended by functions of the storm (its parts, see `lab.storm`) and a number
that picks one of several parts. Faults overlap, but two that touch the same thing do not.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lab import role_api
from lab.role_api import RoleApi

if TYPE_CHECKING:
    from lab.storm import Storm

#: The queues of a listener, and where what a policy discards is kept for the checker.
POOL, RETRY, DEAD = "k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter"
GRAVE = "grave"
OURS = "^k2hr3_osnl"

#: Faults at the same time.
AT_ONCE = 3

#: Seconds between a fault and the next one, on average, while there may be more.
PAUSE = 3.0

#: Seconds of a fault that is over at once.
ONCE = (0.0, 0.0)

Action = Callable[["Storm", int], object]


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Args:
        name: for the history.
        weight: how often it is chosen, against the others.
        touches: what it harms. Parts with a number of their own ("listener", "network") can have
            the same fault at the same time.
        start, end: provoke it and repair it, with a number that picks among equal parts.
        seconds: how long it lasts, at least and at most.
    """

    name: str
    weight: int
    touches: str
    start: Action
    end: Action = lambda storm, which: None
    seconds: tuple[float, float] = (3, 20)


class Planned(NamedTuple):
    """One entry of a schedule, in seconds since the storm's begin."""

    begin: float
    end: float
    fault: str
    which: int


class Parts(NamedTuple):
    """What a seed's storm is made of; `concurrency` has one number for each listener."""

    nodes: int
    quorum: bool
    concurrency: tuple[int, ...]


# --- The Role API --------------------------------------------------------------------------------


def apis(storm: Storm, which: int) -> list[RoleApi]:
    """All of them, or in one of four cases that of one listener."""
    return [storm.apis[which % len(storm.parts.concurrency)]] if which % 4 == 3 else storm.apis


def set_fault(fault: role_api.Fault | None, storm: Storm, which: int) -> None:
    for api in apis(storm, which):
        api.fault = fault


def refuse(storm: Storm, which: int) -> None:
    for api in apis(storm, which):
        api.refuse()


def accept(storm: Storm, which: int) -> None:
    for api in apis(storm, which):
        api.accept()


def api_fault(
    name: str, weight: int, fault: role_api.Fault, seconds: tuple[float, float] = (3, 25)
) -> Fault:
    end = partial(set_fault, None)
    return Fault(f"api {name}", weight, "api", partial(set_fault, fault), end, seconds)


# --- The broker ----------------------------------------------------------------------------------


def on_node(action: str, storm: Storm, which: int) -> None:
    """Call a method of a broker."""
    getattr(storm.nodes[which % len(storm.nodes)], action)()


def disk_alarm(limit: int, storm: Storm, _which: int) -> None:
    storm.broker.evaluate(f"rabbit_disk_monitor:set_disk_free_limit({limit})")


def memory_alarm(on: bool, storm: Storm, _which: int) -> None:
    for each in storm.nodes:
        each.alarm(on)


def policy(definition: dict[str, Any], pattern: str, storm: Storm, _which: int) -> None:
    """A policy of others; what it discards goes to the checker's queue."""
    if "delivery-limit" in definition and not storm.parts.quorum:
        return  # a classic queue has none, and RabbitMQ then applies nothing of the policy to it
    storm.broker.policy("theirs", pattern, {**definition, "dead-letter-exchange": GRAVE})


def no_policy(storm: Storm, _which: int) -> None:
    """The end of it. A message keeps the TTL that it came with, and leaves when it is the first of
    its queue, be it long after; what has left is not safe from a broker that is killed."""
    storm.broker.policy("theirs", OURS, {"dead-letter-exchange": GRAVE})
    storm.wait(storm.now() + 2)
    storm.note_found("grave", GRAVE)


def their_policy(name: str, weight: int, definition: dict[str, Any], pattern: str = OURS) -> Fault:
    start = partial(policy, definition, pattern)
    return Fault(f"policy {name}", weight, "policy", start, no_policy, (3, 10))


def take_permissions(storm: Storm, _which: int) -> None:
    storm.broker.clear_permissions("guest")


def give_permissions(storm: Storm, _which: int) -> None:
    storm.broker.set_permissions("guest")


def close_connections(storm: Storm, _which: int) -> None:
    for each in storm.broker.connections():
        if each.get("user") == "guest":
            storm.broker.close_connection(each["name"])


def delete_queue(queue: str, storm: Storm, _which: int) -> None:
    storm.delete_queue(queue)


# --- Network, listener, commands -----------------------------------------------------------------


def network(action: str) -> Action:
    """Call a method of each proxy between a listener and the broker's nodes."""

    def act(storm: Storm, which: int) -> None:
        for proxy in storm.proxies[which % len(storm.proxies)]:
            getattr(proxy, action)()

    return act


def kill(storm: Storm, which: int) -> None:
    storm.end(which % len(storm.listeners), kill=True)


def stop(storm: Storm, which: int) -> None:
    storm.end(which % len(storm.listeners), kill=False)


def start(storm: Storm, which: int) -> None:
    storm.start(which % len(storm.listeners))


def send(number: signal.Signals) -> Action:
    """Send a signal to a listener, if it runs."""

    def act(storm: Storm, which: int) -> None:
        storm.listeners[which % len(storm.listeners)].process.send_signal(number)

    return act


def step_clock(storm: Storm, which: int) -> None:
    """An hour, a day or ten seconds, forward or back."""
    seconds = (-3600, 3600, -86400, 86400, -10, 10)[which % 6]
    storm.set_clock(which % len(storm.listeners), seconds)


def clock_back(storm: Storm, which: int) -> None:
    storm.set_clock(which % len(storm.listeners), 0)


def command(name: str, storm: Storm, _which: int) -> None:
    storm.command(*name.split())


# --- The table -----------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    Fault("api down", 3, "api", refuse, accept, (3, 25)),
    api_fault("503", 3, role_api.Status(503)),
    api_fault("403", 2, role_api.Status(403)),
    api_fault("429 with Retry-After", 1, role_api.Status(429, {"Retry-After": "3"})),
    api_fault("blocked, 400", 2, role_api.Blocked(1.0)),
    api_fault("slow", 3, role_api.Slow(0.6)),
    api_fault("slower than the time-out", 2, role_api.Slow(2.5)),
    api_fault("reset", 2, role_api.Reset()),
    api_fault("hang", 3, role_api.Hang()),
    api_fault("drip", 1, role_api.Drip(0.5)),
    api_fault("closes kept-alive", 2, role_api.CloseKeptAlive(reset=True)),
    api_fault("1xx", 1, role_api.Interim(102, 0.5)),
    api_fault("keeps, 403", 3, role_api.Kept(403), (1, 4)),
    api_fault("keeps, reset", 2, role_api.Kept(None), (1, 4)),
    api_fault("keeps, time-out", 2, role_api.Kept(204, 3.0), (4, 12)),
    Fault("node stopped", 3, "node", partial(on_node, "stop"), partial(on_node, "start")),
    Fault("node killed", 4, "node", partial(on_node, "kill"), partial(on_node, "start")),
    Fault("memory alarm", 3, "alarm", partial(memory_alarm, True), partial(memory_alarm, False)),
    Fault("disk alarm", 2, "alarm", partial(disk_alarm, 10**15), partial(disk_alarm, 10**6)),
    their_policy("message-ttl", 1, {"message-ttl": 1500}),
    their_policy("message-ttl of retries", 1, {"message-ttl": 300}, RETRY),
    their_policy("max-length of retries", 1, {"max-length": 20}, RETRY),
    their_policy("reject-publish", 1, {"max-length": 5, "overflow": "reject-publish"}, RETRY),
    their_policy("reject letters", 1, {"max-length": 5, "overflow": "reject-publish"}, DEAD),
    their_policy("delivery-limit", 2, {"delivery-limit": 2}),
    Fault("permissions taken", 3, "permissions", take_permissions, give_permissions),
    Fault("connections closed", 4, "connections", close_connections, seconds=ONCE),
    Fault("pool deleted", 3, "queue", partial(delete_queue, POOL), seconds=ONCE),
    Fault("retry queue deleted", 2, "queue", partial(delete_queue, RETRY), seconds=ONCE),
    Fault("dead-letter queue deleted", 1, "queue", partial(delete_queue, DEAD), seconds=ONCE),
    Fault("network stalled", 4, "network", network("stall"), network("resume")),
    Fault("network down", 3, "network", network("refuse"), network("accept")),
    Fault("network cut", 2, "network", network("cut"), seconds=ONCE),
    Fault("listener killed", 6, "listener", kill, start, (0, 10)),
    Fault("listener stopped", 5, "listener", stop, start, (0, 10)),
    Fault("listener paused", 4, "listener", send(signal.SIGSTOP), send(signal.SIGCONT)),
    Fault("clock stepped", 3, "listener", step_clock, clock_back),
    Fault("drain", 4, "command", partial(command, "drain"), seconds=ONCE),
    Fault("replay", 3, "command", partial(command, "dead-letters --replay"), seconds=ONCE),
    Fault("list", 1, "command", partial(command, "dead-letters"), seconds=ONCE),
    Fault("delete", 3, "command", partial(command, "delete --queue -"), seconds=ONCE),
)

BY_NAME = {fault.name: fault for fault in FAULTS}

#: Faults that need the broker's help, or whose victims the broker has to move for the checker.
NEED_NODES = ("alarm", "policy", "permissions", "connections", "queue")

#: Faults of one listener of several.
OF_ONE = ("listener", "network")


# --- The schedule --------------------------------------------------------------------------------


def parts(seed: int) -> Parts:
    """Return what the storm of a seed is made of: each fourth has a cluster of three."""
    chance = random.Random(f"parts {seed}")
    nodes = 3 if seed % 4 == 0 else 1
    count = chance.choice((1, 1, 2, 3))
    concurrency = tuple(chance.choice((1, 4)) for _ in range(count))
    return Parts(nodes, nodes == 3 or chance.random() < 0.3, concurrency)


def schedule(seed: int, minutes: float) -> list[Planned]:
    """Return the faults of a seed in the order of their begin; the same ones each time."""
    chance = random.Random(f"schedule {seed}")
    listeners = len(parts(seed).concurrency)
    plan: list[Planned] = []
    now = 3.0
    while now < 60 * minutes:
        fault = chance.choices(FAULTS, [each.weight for each in FAULTS])[0]
        end = min(now + chance.uniform(*fault.seconds), 60 * minutes)
        entry = Planned(now, end, fault.name, chance.randrange(12))
        under_way = [each for each in plan if each.end > now]
        if len(under_way) < AT_ONCE and not any(
            clash(entry, each, listeners) for each in under_way
        ):
            plan.append(entry)
            now += chance.expovariate(1 / PAUSE)
        else:
            now += 0.5
    return plan


def clash(one: Planned, other: Planned, listeners: int) -> bool:
    """Tell if two faults touch the same thing, so that they must not overlap."""
    touched = {BY_NAME[one.fault].touches, BY_NAME[other.fault].touches}
    if len(touched) == 1:
        is_of_one = touched <= set(OF_ONE)
        return not is_of_one or (one.which - other.which) % listeners == 0
    return "node" in touched and bool(touched & set(NEED_NODES))


def target(entry: Planned, listeners: int) -> int | None:
    """Return the number of the listener that a fault hits; None for all, or for none of them."""
    touches = BY_NAME[entry.fault].touches
    if touches in OF_ONE or (touches == "api" and entry.which % 4 == 3):
        return entry.which % listeners
    return None
