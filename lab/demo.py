"""`make demo`: instances leave a cloud and their role, with K2HR3's API up and then with it down.

Broker, notifications, listener and every figure are real; only the Role API is a stand-in. Ends
with exit code 1, and says why, where anything is not as the story has it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import sys
import textwrap
import time
import urllib.parse
import uuid
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import psutil

from lab import wait_until
from lab.broker import Broker
from lab.listener import PROGRAM, ListenerProcess
from lab.notifier import Notifier, instance, noise, port
from lab.role_api import Request, RoleApi, Status

#: Seconds that any one thing may take, on a slow machine.
PATIENCE = 30.0
QUEUE, RETRY, DEAD_LETTER = "k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter"
QUEUES = {
    QUEUE: "notifications to come",
    RETRY: "deletions that wait for K2HR3",
    DEAD_LETTER: "what no deletion can be made of",
    "notifications.info": "the services' own, nobody reads it",
    "versioned_notifications.info": "the services' own, nobody reads it",
}
COLOURS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}


class Service(NamedTuple):
    """How an OpenStack service notifies."""

    exchange: str
    topic: str
    publisher: str
    everyday: tuple[str, ...]  # what its noise begins with


SERVICES = {
    "neutron": Service("neutron", "notifications", "network.controller-1", ("port", "network")),
    "nova": Service("nova", "versioned_notifications", "nova-compute:compute-017", ("instance",)),
}


class Event(NamedTuple):
    """A notification of an instance, and the DELETE that it leads to."""

    service: str
    event_type: str
    payload: dict[str, Any]
    says: str
    host: tuple[str, ...] | None = None  # the addresses of the DELETE, None for all of them


class Demo:
    """The parts, and what is told of them: seconds since the start, who, and what."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.width = max(80, min(100, shutil.get_terminal_size((96, 24)).columns))
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.coloured = sys.stdout.isatty() and not plain
        self.last_line = ""
        self.names: dict[str, str] = {}  # of the instances, by cuk
        self.answered: dict[str, list[Request]] = defaultdict(list)  # by cuk
        self.ignorable = 0  # notifications that the listener has to ignore
        self.broker = Broker()
        self.api = RoleApi(on_end=self.on_end)
        self.notifiers: dict[str, Notifier] = {}
        self.listener: ListenerProcess

    # Telling

    def show(self, *lines: str) -> None:
        """Print lines, all in one go, and never two empty ones in a row."""
        text = ""
        for line in lines:
            text += f"{line}\n" if line or self.last_line else ""
            self.last_line = line
        print(text, end="", flush=True)

    def paint(self, colour: str, text: str) -> str:
        return f"\033[{COLOURS[colour]}m{text}\033[0m" if self.coloured and colour else text

    def tell(self, who: str, text: str, colour: str = "", at: float | None = None) -> None:
        seconds = self.paint("dim", f"{(at or time.monotonic()) - self.began:6.2f}")
        lines = [
            self.paint(colour, part)
            for line in text.splitlines()
            for part in textwrap.wrap(line, self.width - 20, break_on_hyphens=False)
        ]
        self.show(f"{seconds}  {who:<12}{lines[0]}", *(f"{'':20}{line}" for line in lines[1:]))

    def chapter(self, title: str, text: str) -> None:
        line = "─" * self.width
        self.show("", self.paint("bold", title), line, *textwrap.wrap(text, self.width), "")

    def table(self, head: str, rows: Iterable[str]) -> None:
        seconds = self.paint("dim", f"{time.monotonic() - self.began:6.2f}")
        indented = (f"{'':10}{row}".rstrip() for row in rows)
        self.show("", f"{seconds}  {self.paint('bold', head)}", *indented, "")

    def show_members(self) -> None:
        members = self.api.members()
        left = [(name, cuk) for cuk, name in self.names.items() if cuk in members]
        rows = [f"{name:<8}{cuk}  {', '.join(sorted(members[cuk]))}" for name, cuk in left]
        self.table(f"Members of the role: {len(members) or 'none'}", rows)

    def show_queues(self) -> None:
        depths = self.broker.queues()
        rows = [f"{depths[name].total:>3}  {name:<30}{meaning}" for name, meaning in QUEUES.items()]
        self.table("Messages in the queues, those that a consumer holds included", rows)

    def show_log(self, pattern: str, colour: str = "") -> str:
        """Wait for `pattern` in the listener's log, and show the newest line that has it."""
        line = self.listener.wait_for_log(f".*{pattern}.*", PATIENCE)[-1]
        self.tell("listener", line.split(" ", 2)[2], colour)  # without date and time
        return line

    def on_end(self, request: Request) -> None:
        """Tell of a request that the Role API has answered; called on its thread."""
        query = urllib.parse.parse_qsl(urllib.parse.urlsplit(request.target).query)
        rest = " ".join(f"{name}={value}" for name, value in query if name != "cuk")
        whose = self.names.get(request.cuk or "", "nobody")
        text = f"{request.status} {request.method} cuk={request.cuk} ({whose})\n  {rest}"
        self.tell("Role API", text, "green" if request.status == 204 else "red", request.ended)
        self.answered[request.cuk or ""].append(request)

    # Doing

    def register(self, *names: str) -> list[str]:
        """Make new members of the role; returns their cuks."""
        cuks = [str(uuid.uuid4()) for _ in names]
        for name, cuk in zip(names, cuks):
            self.names[cuk] = name
            number = len(self.names) + 10
            self.api.register(cuk, f"10.0.0.{number}", f"2001:db8::{number}")
        self.show_members()
        return cuks

    def publish_everyday(self, rounds: int) -> None:
        """Have each service say what is no deletion."""
        for name, service in SERVICES.items():
            events = [each for each in noise() if each[0].startswith(service.everyday)]
            kinds = ", ".join(event_type for event_type, _ in events)
            self.tell(name, f"publishes {rounds} × {kinds}", "dim")
            self.notifiers[name].notify_many(events * rounds)
            self.ignorable += len(events) * rounds

    def port_deleted(self, cuk: str) -> Event:
        """Neutron deleted the port that Nova had made for this instance."""
        host = tuple(sorted(self.api.members()[cuk]))
        says = "names the addresses of its port"
        return Event("neutron", "port.delete.end", port(cuk, host), says, host)

    def instance_events(self, cuk: str, state: str, *event_types: str) -> list[Event]:
        """Nova's notifications of an instance in this state."""
        payload = instance(cuk, state=state)
        return [Event("nova", each, payload, f"state {state}") for each in event_types]

    def deletion(self, cuk: str) -> list[Event]:
        """All of an instance's deletion, in the order of a real cloud."""
        return [
            self.port_deleted(cuk),
            *self.instance_events(cuk, "deleted", "instance.update", "instance.delete.end"),
        ]

    def publish(self, cuk: str, event: Event) -> None:
        whose = self.names[cuk]
        self.tell(event.service, f"{event.event_type} of {whose}: {event.says}", "cyan")
        self.notifiers[event.service].notify(event.event_type, event.payload)

    def publish_heard(self, cuk: str, event: Event) -> None:
        """Publish what leads to a DELETE, and see that it is right."""
        asked = len(self.answered[cuk])
        self.publish(cuk, event)
        deleted = f"DELETE for {self.names[cuk]}"
        wait_until(lambda: len(self.answered[cuk]) > asked, PATIENCE, deleted)
        request = self.answered[cuk][-1]
        assert (request.method, request.extra) == ("DELETE", "openstack-auto-v1"), request.target
        assert request.host == event.host, f"host is not {event.host}: {request.target}"

    def publish_ignored(self, cuk: str, event: Event, why: str) -> None:
        """Publish what leads to no DELETE, and see that it does not."""
        asked = len(self.api.requests)
        self.publish(cuk, event)
        self.broker.wait_for_depth(QUEUE, 0, timeout=PATIENCE)
        assert len(self.api.requests) == asked, f"{event.event_type} led to a request"
        self.tell("Role API", f"no request: {why}", "dim")
        self.ignorable += 1

    def set_up(self, stack: contextlib.ExitStack) -> None:
        """Start everything; `stack` ends it."""
        self.chapter(
            "A cloud, and the listener beside it",
            "RabbitMQ and the notifications are real; the listener is started as a user starts it.",
        )
        self.tell("RabbitMQ", "starts, a private one")
        stack.enter_context(self.broker)
        version = self.broker.evaluate("rabbit_misc:version()").strip('"')
        self.tell("RabbitMQ", f"{version} is ready at {self.broker.address}")
        stack.enter_context(self.api)
        self.tell("Role API", f"{self.api.url}, a stand-in for K2HR3's")
        version = importlib.metadata.version("oslo.messaging")
        url = self.broker.url()
        sections: dict[str, dict[str, object]] = {}
        sections["oslo_messaging_notifications"] = {"transport_url": url}
        for name, service in SERVICES.items():
            made = Notifier(url, service.exchange, [service.topic], publisher_id=service.publisher)
            self.notifiers[name] = stack.enter_context(made)
            where = f"exchange {service.exchange}, topic {service.topic}"
            self.tell(name, f"oslo.messaging {version}, {where}")
            sections[f"oslo_messaging_notifications:{name}"] = {}
        sections["k2hr3"] = {"api_url": self.api.url, "retry_interval_seconds": 2}
        self.publish_everyday(1)  # makes the exchanges; nobody listens yet
        self.ignorable = 0
        self.listener = stack.enter_context(ListenerProcess(sections))
        written = self.listener.settings
        self.table(f"python {PROGRAM.name} -c {written}", written.read_text().strip().splitlines())
        self.show_log("connected")
        bound = f"{len(SERVICES)} bindings of {QUEUE}"
        wait_until(lambda: len(self.broker.bindings(QUEUE)) == len(SERVICES), PATIENCE, bound)

    def with_the_api_up(self) -> None:
        self.chapter(
            "Two instances are deleted, and one is not",
            "Nova made the port of web-1, so Neutron says whose it was. The port of db-1 was made "
            "beforehand, so only Nova tells. The deletion of mail-1 fails: Nova publishes "
            "delete.end all the same, but the state is active. A DELETE without host takes out "
            "all of an instance.",
        )
        web, db, mail = self.register("web-1", "db-1", "mail-1")
        self.publish_everyday(20)
        *heard, last = self.deletion(web)
        for event in heard:
            self.publish_heard(web, event)
        self.publish_ignored(web, last, "all of web-1 was removed before")

        unbound = port("", self.api.members()[db], device_owner="")
        freed = Event("neutron", "port.update.end", unbound, "its port belongs to nobody now")
        self.publish_ignored(db, freed, "it does not say whose the port was")
        _, update, last = self.deletion(db)
        self.publish_heard(db, update)
        self.publish_ignored(db, last, "all of db-1 was removed before")

        (failed,) = self.instance_events(mail, "active", "instance.delete.end")
        self.publish_ignored(mail, failed, "mail-1 is active, it keeps its rights")

        self.show_members()
        assert set(self.api.members()) == {mail}, "mail-1 should be the only member"
        self.listener.wait_for_log("INFO .*deleted instance=", PATIENCE, count=3)
        self.listener.process.send_signal(signal.SIGUSR1)
        line = self.show_log("counters")
        figures = f"deleted=3 failed=0 ignored={self.ignorable} "
        assert figures in line, f"it should be {figures}"
        assert len(self.api.requests) == 3, f"{len(self.api.requests)} requests instead of 3"

    def with_the_api_down(self) -> None:
        self.chapter(
            "Two more are deleted, with the Role API down",
            "After three failures in a row the listener makes no more attempts. It asks whether "
            "K2HR3 is well, by deleting a random id that is nobody's, until it is. Then "
            "it makes all that waited: a DELETE of what is gone does no harm.",
        )
        (web,) = self.register("web-2")
        (mail,) = (cuk for cuk, name in self.names.items() if name == "mail-1")
        self.tell("Role API", "goes down: 503 to everything", "yellow")
        self.api.fault = Status(503)
        for event in self.deletion(web):
            self.publish_heard(web, event)
        self.show_log("K2HR3 is in trouble", "yellow")
        for event in self.deletion(mail):
            self.publish(mail, event)
        self.publish_everyday(20)
        self.broker.wait_for_depth(RETRY, 6, timeout=PATIENCE)
        self.broker.wait_for_depth(QUEUE, 0, timeout=PATIENCE)
        self.show_queues()
        assert set(self.api.members()) == {web, mail}, "members went while the API was down"

        def third() -> bool:
            return len(self.answered.keys() - self.names.keys()) == 3

        wait_until(third, PATIENCE, "a third question whether K2HR3 is well")
        self.tell("Role API", "is repaired", "yellow")
        self.api.fault = None
        self.show_log("K2HR3 is back", "yellow")
        self.listener.wait_for_log("INFO .*deleted instance=", PATIENCE, count=9)
        self.show_members()
        assert not self.api.members(), "members are left"
        assert self.api.deleted >= set(self.names), "not all were answered 204"

    def end(self) -> None:
        self.chapter("The end", "Nothing waits, and SIGTERM ends the listener.")
        for name in (QUEUE, RETRY, DEAD_LETTER):
            self.broker.wait_for_depth(name, 0, timeout=PATIENCE)
        self.show_queues()
        code = self.listener.stop()
        line = self.show_log("stopped")
        assert code == 0, f"the listener ended with exit code {code}"
        figures = f"deleted=9 failed=3 ignored={self.ignorable} retried=6 dead_letters=0"
        assert figures in line, f"it should be {figures}"

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            self.set_up(stack)
            try:
                self.with_the_api_up()
                self.with_the_api_down()
                self.end()
            except AssertionError:
                self.show("", "The listener's log ends with:", self.listener.log[-2000:])
                raise
        left = psutil.Process().children(recursive=True)
        assert not left, f"still running: {left}"
        self.show("")
        self.tell("", "Four instances and all their members are gone. Nothing is left.", "bold")


def interrupted(_number: int, _frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # it takes a second to end everything
    raise KeyboardInterrupt


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        Demo().run()
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing is left running.", file=sys.stderr)
        return 130
    except (AssertionError, RuntimeError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
