"""`make cloud`: servers of a real OpenStack come and go, and the listener tells K2HR3 of it.

Each row of the table is one way for servers to go, or to stay. A server registers its addresses
in K2HR3 when it is active, as a virtual machine does when it boots. Who may be a member follows
from what was done here, not from what was published: a member is harmed if it is removed while its
server lives with that address, and left if it still is there afterwards. The last ways happen
while the listener is stopped and its queue deleted; what they lost the catch-up must find.

    python -m lab.cloud [--quick]      # exit 1 if anyone is harmed or left, or anything fails
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from openstack.exceptions import HttpException, NotFoundException

from lab import wait_until
from lab.broker import Depth
from lab.listener import PROGRAM, ListenerProcess
from lab.openstack import PATIENCE, OpenStack, versions
from lab.role_api import Request, RoleApi

QUEUE = "k2hr3_osnl"
#: Gets a copy of all that is published, to count it.
COPIES = "copies"
CATCH_UP = PROGRAM.parent / "contrib" / "k2hr3-osnl-catch-up"
#: The command that takes what the catch-up prints.
DELETE = ("delete", "--queue", "-")

COLUMNS = ("way", "servers", "events", "DELETEs", "members left", "members harmed", "seconds after")

#: Seconds between two looks at Nova.
POLL = 0.3
#: Seconds within which a member must be gone after its server.
SOON = 30.0
#: Seconds that K2HR3 takes for a DELETE (FACTS.md 3).
K2HR3_SECONDS = 0.03


@dataclass
class Member:
    """One address of one server, and when it was gone from OpenStack and from K2HR3, in seconds."""

    cuk: str
    address: str
    may_go: bool = False
    gone: float | None = None
    removed: float | None = None
    harmed: bool = False

    @property
    def left(self) -> bool:
        return self.gone is not None and self.removed is None


class Truth:
    """Who is a member by right, by what was done to the servers; it watches K2HR3's answers."""

    def __init__(self) -> None:
        self.api = RoleApi(delay=K2HR3_SECONDS, on_end=self._look)
        self.members: list[Member] = []

    def register(self, cuk: str, addresses: Iterable[str]) -> None:
        """Registers the addresses of a server."""
        known = {member.address for member in self.of([cuk])}
        for address in set(addresses) - known:
            self.api.register(cuk, address)
            self.members.append(Member(cuk, address))

    def of(self, cuks: Sequence[str]) -> list[Member]:
        """Returns all members that some servers ever had."""
        return [member for member in self.members if member.cuk in cuks]

    def release(self, cuk: str, *addresses: str) -> None:
        """Notes that some addresses of a server, or all, may go from now on."""
        for member in self.of([cuk]):
            member.may_go = member.may_go or not addresses or member.address in addresses

    def confirm(self, cuk: str) -> None:
        """Notes that what may go of a server is gone from OpenStack now."""
        for member in self.of([cuk]):
            if member.may_go and member.gone is None:
                member.gone = time.monotonic()

    def _look(self, _: Request) -> None:
        """Notes which members are removed; called after each request, on the server's thread."""
        present = self.api.members()
        for member in self.members.copy():
            if member.removed is None and member.address not in present.get(member.cuk, ()):
                member.removed = time.monotonic()
                member.harmed = not member.may_go


class Lab:
    """The cloud, K2HR3 and the listener, and what all ways have in common."""

    def __init__(self, cloud: OpenStack, stack: ExitStack, quick: bool) -> None:
        self.cloud = cloud
        self.stack = stack
        self.quick = quick
        self.truth = Truth()
        self.listener: ListenerProcess
        self.published: list[bytes] = []
        self.short: list[str] = []

    def start(self) -> None:
        """Starts the cloud and a listener with two empty sections, as a user would."""
        api = self.stack.enter_context(self.truth.api)
        self.cloud.start_all()
        self.listener = ListenerProcess(
            {
                "oslo_messaging_notifications": {"transport_url": self.cloud.broker.url()},
                "oslo_messaging_notifications:neutron": {},
                "oslo_messaging_notifications:nova": {},
                "k2hr3": {"api_url": api.url},
            }
        )
        self.stack.enter_context(self.listener)
        self.wait_for_listener()
        connection = self.cloud.broker.amqp()
        channel = connection.channel()
        channel.queue_declare(COPIES)
        for exchange in ("neutron", "nova"):
            for topic in ("notifications", "versioned_notifications"):
                channel.queue_bind(COPIES, exchange, f"{topic}.*")
        connection.close()

    def wait_for_listener(self) -> None:
        """Waits until the listener takes what is published."""
        broker = self.cloud.broker
        wait_until(lambda: broker.queue(QUEUE)["consumers"], PATIENCE, "the listener to consume")

    def settle(self) -> None:
        """Waits until the listener is done with all that was published."""
        idle = Depth(0, 0)
        broker = self.cloud.broker
        done = "the listener to be done"
        wait_until(lambda: broker.queues().get(QUEUE, idle) == idle, PATIENCE, done, 0.2)

    def catch_up(self) -> None:
        """Deletes what Nova says is gone, with an application credential that can only ask that."""
        admin = self.cloud.admin
        credential = admin.identity.create_application_credential(
            user=admin.current_user_id,
            name="k2hr3-osnl",
            roles=[{"name": "admin"}],
            access_rules=[{"service": "compute", "method": "GET", "path": "/v2.1/servers"}],
        )
        login = {
            "HOME": str(self.cloud.folder),
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_AUTH_URL": self.cloud.auth_url,
            "OS_APPLICATION_CREDENTIAL_ID": credential.id,
            "OS_APPLICATION_CREDENTIAL_SECRET": credential.secret,
        }
        ids = subprocess.run(
            [sys.executable, str(CATCH_UP), "--since", "1h"],
            env=login,
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=True,
        ).stdout
        subprocess.run(
            [sys.executable, str(PROGRAM), "-c", str(self.listener.settings), *DELETE],
            env={},
            input=ids,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
        )

    def result(self) -> tuple[str, bool]:
        """Returns what all rows say together, and whether it is as it should be."""
        members = self.truth.members
        servers = len({member.cuk for member in members})
        bad = sum(member.left or member.harmed for member in members)  # and since its row
        text = (
            f"{servers} servers, {len(self.published)} notifications,"
            f" {len(self.truth.api.requests)} DELETEs; {bad} of {len(members)} members are left"
            f" or harmed; rows that fall short: {', '.join(self.short) or 'none'}"
        )
        return text, not bad and not self.short

    def explain(self, error: Exception) -> None:
        """Shows what failed, and the end of the logs of those that may be the cause."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        trouble = f"{type(error).__name__}: {error}"
        print(f"\nfailed in {place.name}, {place.filename}:{place.lineno}: {trouble}")
        for name in self.cloud.suspects(trouble):
            print(f"\nThe end of the log of {name}:\n{self.cloud.log(name)}")
        if hasattr(self, "listener"):
            log = "\n".join(self.listener.log.splitlines()[-15:])
            print(f"\nThe end of the log of the listener:\n{log}", flush=True)


class Servers:
    """What one way does with servers of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cloud = lab.cloud
        self.compute = lab.cloud.admin.compute
        self.network = lab.cloud.admin.network
        self.made: list[Any] = []
        self.ports: list[str] = []  # made beforehand

    # What a user does

    def boot(self, port: Any = None, ports: int = 1, host: str = "", count: int = 1) -> Any:
        """Boots a server, and has it register in K2HR3.

        :param port: made beforehand, in place of ports that Nova makes
        :param host: where to, or wherever Nova wants
        :param count: how many alike; the first is returned
        """
        network = {"uuid": self.cloud.network}
        options: dict[str, Any] = {"min_count": count, "max_count": count} if count > 1 else {}
        if host:
            options["availability_zone"] = f"nova:{host}"
        name = f"server-{uuid.uuid4()}"
        made = [
            self.compute.create_server(
                name=name,
                image_id=self.cloud.image,
                flavor_id=self.cloud.flavor,
                networks=[{"port": port.id}] if port else [network] * ports,
                **options,
            )
        ]
        if count > 1:
            made = [each for each in self.compute.servers() if each.name.startswith(name)]
        self.made += made
        for server in made:
            self.wait(server, "ACTIVE")
            self.register(server)
        return made[0]

    def port(self) -> Any:
        """Makes a port beforehand."""
        port = self.network.create_port(network_id=self.cloud.network)
        self.ports.append(port.id)
        return port

    def register(self, server: Any) -> None:
        """Has a server register its present addresses, as it does when it boots."""
        addresses = self.compute.get_server(server.id).addresses.values()
        self.lab.truth.register(server.id, [each["addr"] for net in addresses for each in net])

    def remove(self, *servers: Any, force: bool = False) -> None:
        """Deletes servers and waits until they are gone."""
        # What was published while they had to live must not be taken for the deletion
        self.lab.settle()
        for server in servers:
            self.lab.truth.release(server.id)
            self.compute.delete_server(server.id, force=force)
        self.wait_gone(server.id for server in servers)

    def fail_to_delete(self, server: Any) -> None:
        """Tries to delete a server of a host that is down without Neutron, and has it live on."""
        with self.cloud.without_neutron():
            try:
                self.compute.delete_server(server.id)
            except HttpException as error:
                if error.status_code != 500:
                    raise
            else:
                raise RuntimeError("nova-api deleted a server while neutron was away")
        self.compute.reset_server_state(server.id, "active")
        self.wait(server, "ACTIVE")

    def soft_delete(self, server: Any) -> None:
        """Deletes a server so that it can be restored."""
        self.cloud.soft.compute.delete_server(server.id)
        self.wait(server, "SOFT_DELETED")

    def restore(self, server: Any) -> None:
        self.compute.restore_server(server.id)
        self.wait(server, "ACTIVE")

    def shelve(self, server: Any) -> None:
        self.compute.shelve_server(server.id)
        self.wait(server, "SHELVED_OFFLOADED")

    def interfaces(self, server: Any) -> dict[str, list[str]]:
        """Returns the addresses of each port of a server."""
        return {
            each.port_id: [fixed["ip_address"] for fixed in each.fixed_ips]
            for each in self.compute.server_interfaces(server.id)
        }

    def detach(self, server: Any, port_id: str) -> None:
        """Takes a port away from a server, and waits until that is done."""
        self.lab.truth.release(server.id, *self.interfaces(server)[port_id])
        self.compute.delete_server_interface(port_id, server=server.id)
        gone = f"port {port_id} to leave its server"
        wait_until(lambda: port_id not in self.interfaces(server), PATIENCE, gone, POLL)
        self.lab.truth.confirm(server.id)

    def attach(self, server: Any, port: Any) -> None:
        """Gives a server a port, and has it register anew."""
        self.compute.create_server_interface(server.id, port_id=port.id)
        attached = f"port {port.id} to come to its server"
        wait_until(lambda: port.id in self.interfaces(server), PATIENCE, attached, POLL)
        self.register(server)

    # What is waited for

    def wait(self, server: Any, status: str, host: str = "") -> None:
        """Waits until a server has a status, on a given host if any, and nothing is under way."""

        def reached() -> bool:
            now = self.compute.get_server(server.id)
            there = host in ("", now.compute_host)
            return bool(now.status == status and not now.task_state and there)

        wait_until(reached, PATIENCE, f"server {server.id} to be {status}", POLL)

    def wait_gone(self, ids: Iterable[str]) -> None:
        """Waits until Nova does not know servers any more."""
        waiting = set(ids)

        def all_gone() -> bool:
            for cuk in sorted(waiting):
                try:
                    self.compute.get_server(cuk)
                except NotFoundException:
                    self.lab.truth.confirm(cuk)
                    waiting.remove(cuk)
            return not waiting

        wait_until(all_gone, PATIENCE, "servers to be gone", POLL)

    # What came of it

    def report(self, title: str, servers: Sequence[Any] = (), lost: bool = False) -> None:
        """Waits until the members are gone, and prints a row.

        :param servers: those that it is about, by default all
        :param lost: nothing was heard, so all members must be left
        """
        truth = self.lab.truth
        ids = [server.id for server in servers or self.made]
        deadline = time.monotonic() + SOON
        while not lost and any(member.left for member in truth.of(ids)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.lab.settle()
        copies = self.lab.cloud.broker.messages(COPIES, take=True, limit=100_000)
        self.lab.published += [message.body for message in copies]
        names = [name.encode() for name in ids + self.ports]
        events = sum(any(name in body for name in names) for body in self.lab.published)
        deletes = sum(request.cuk in ids for request in truth.api.requests.copy())
        gone = [member for member in truth.of(ids) if member.gone is not None]
        left = sum(member.left for member in gone)
        harmed = sum(member.harmed for member in truth.of(ids))
        late = [max(0, each.removed - each.gone) for each in gone if each.removed and each.gone]
        seconds = f"{max(late):.1f}" if late else "–"
        print(row([title, len(ids), events, deletes, left, harmed, seconds]), flush=True)
        if harmed or left != (len(gone) if lost else 0):
            self.lab.short.append(title)


# The ways


class Way(NamedTuple):
    """One way for servers to go: its title, what is done, and whether the short form has it."""

    title: str
    play: Callable[[Servers], None]
    quick: bool


WAYS: list[Way] = []


def way(title: str, quick: bool = True) -> Callable[[Any], Any]:
    """Makes a way of a function."""

    def add(play: Callable[[Servers], None]) -> Callable[[Servers], None]:
        WAYS.append(Way(title, play, quick))
        return play

    return add


@way("deleted")
def deleted(servers: Servers) -> None:
    servers.remove(servers.boot())


@way("port made beforehand; server deleted, then the port")
def port_beforehand(servers: Servers) -> None:
    port = servers.port()
    servers.remove(servers.boot(port))
    servers.network.delete_port(port.id)


@way("two ports, one detached; then deleted")
def detached(servers: Servers) -> None:
    server = servers.boot(ports=2)
    servers.detach(server, next(iter(servers.interfaces(server))))
    servers.remove(server)


@way("port made beforehand moved to another server; both deleted", quick=False)
def port_moved(servers: Servers) -> None:
    former, later = servers.boot(), servers.boot()
    port = servers.port()
    servers.attach(former, port)
    servers.detach(former, port.id)
    servers.attach(later, port)
    servers.remove(former)
    servers.remove(later)
    servers.network.delete_port(port.id)


@way("deleted while their host is down")
def host_down(servers: Servers) -> None:
    pair = boot_pair(servers)
    with servers.cloud.without_host2():
        servers.remove(*pair)


@way("forceDelete while their host is down")
def forced(servers: Servers) -> None:
    pair = boot_pair(servers)
    with servers.cloud.without_host2():
        servers.remove(*pair, force=True)


@way("deletion fails (host down, Neutron away); deleted when all is back")
def failed(servers: Servers) -> None:
    pair = boot_pair(servers)
    with servers.cloud.without_host2():
        for server in pair:
            servers.fail_to_delete(server)
    servers.remove(*pair)


@way("soft-deleted, restored, soft-deleted again, forceDelete")
def soft_deleted(servers: Servers) -> None:
    pair = boot_pair(servers)
    for server in pair:
        servers.soft_delete(server)
        servers.restore(server)
        servers.soft_delete(server)
    servers.remove(*pair, force=True)


@way("soft-deleted, and deleted by Nova some time after", quick=False)
def reclaimed(servers: Servers) -> None:
    server = servers.boot(host="host1")
    servers.soft_delete(server)
    servers.lab.settle()
    servers.lab.truth.release(server.id)
    servers.wait_gone([server.id])


@way("evacuated from a host that is down; deleted when it is back", quick=False)
def evacuated(servers: Servers) -> None:
    pair = boot_pair(servers)
    with servers.cloud.without_host2():
        for server in pair:
            servers.compute.evacuate_server(server.id)
            servers.wait(server, "SHUTOFF", "host1")
    servers.remove(*pair)


@way("many at once")
def many(servers: Servers) -> None:
    servers.boot(count=20 if servers.lab.quick else 50)
    servers.remove(*servers.made)


def boot_pair(servers: Servers) -> list[Any]:
    """Boots a server with a port of Nova's and one with a port made beforehand, both on host2."""
    return [servers.boot(host="host2"), servers.boot(servers.port(), host="host2")]


def lose_and_catch_up(lab: Lab) -> None:
    """Has some servers go and some stay while nobody hears of it, and tells them apart again."""
    servers = Servers(lab)
    pair = boot_pair(servers)
    forced = servers.boot(host="host2")
    shelved = servers.boot()
    restorable = servers.boot(host="host2")
    failing = servers.boot(host="host2")
    lab.settle()
    lab.listener.stop()
    lab.cloud.broker.delete_queue(QUEUE)
    servers.remove(*pair)
    servers.soft_delete(restorable)
    servers.shelve(shelved)
    with servers.cloud.without_host2():
        servers.remove(forced, force=True)
        servers.fail_to_delete(failing)
    lab.listener.start()
    lab.wait_for_listener()
    servers.report("nobody listened and the queue was deleted; before the catch-up", lost=True)
    lab.catch_up()
    servers.report("the same, after the catch-up")
    servers.restore(restorable)
    servers.remove(restorable, shelved, failing)
    stayed = [restorable, shelved, failing]
    servers.report("those of them that lived on, deleted now", stayed)


# The command


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make cloud", description=main.__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the ways that matter most, 20 at once"
    )
    quick = parser.parse_args().quick
    # So that all is ended, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    with ExitStack() as stack:
        lab = Lab(stack.enter_context(OpenStack()), stack, quick)
        try:
            lab.start()
            print(f"{versions()}\nup after {time.monotonic() - began:.0f} s\n", flush=True)
            print(row(COLUMNS), row(["---", *["--:"] * 6]), sep="\n", flush=True)
            for each in WAYS:
                if each.quick or not quick:
                    servers = Servers(lab)
                    each.play(servers)
                    servers.report(each.title)
            lose_and_catch_up(lab)
        except Exception as error:
            lab.explain(error)
            return 1
        text, well = lab.result()
        print(f"\n{text}; {time.monotonic() - began:.0f} s in all", flush=True)
        return int(not well)


if __name__ == "__main__":
    sys.exit(main())
