"""A private RabbitMQ for tests, demo and benchmarks: real, disposable, on 127.0.0.1 only.

Needs the server installed (Debian: `apt-get install rabbitmq-server`) but never touches an
installed broker: ports, epmd, Erlang cookie, data and logs are all its own. The environment
variable LAB_BROKER names a folder with another RabbitMQ's scripts, `erl_call` and `epmd`.

    with Broker() as broker:
        connect(broker.url())
        broker.kill()
        broker.start()          # the same ports, the same data

    with cluster(3) as nodes:
        connect(nodes[0].url(hosts=[node.address for node in nodes]))
        nodes[1].kill()
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pika

from lab import wait_until

if TYPE_CHECKING:
    from lab.certificates import Certificates, Pair

#: Where the packages of Debian, Ubuntu and RHEL put the scripts. Not `/usr/sbin/rabbitmq-server`:
#: that wrapper changes to the user `rabbitmq`.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")

#: Where Debian has `erl_call` (it evaluates Erlang in a running node within milliseconds), `epmd`.
ERLANG = Path("/usr/lib/erlang/bin")
if os.environ.get("LAB_BROKER"):  # all of another RabbitMQ, say one that `make broker` built
    SCRIPTS = ERLANG = Path(os.environ["LAB_BROKER"]).resolve()

#: Seconds; a node takes about 5 s on an idle machine, several times that on a busy one.
START_TIMEOUT = 120.0
STOP_TIMEOUT = 60.0

#: Below the range that Linux (32768) and gVisor (16000) give to outgoing connections. While the
#: broker is down, such a connection could take its port, or connect to itself.
PORTS = range(10000, 16000)

#: One for each port that this process picked; see `free_port`.
CLAIMS: list[socket.socket] = []

PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus", "rabbitmq_auth_mechanism_ssl")

#: Tests share two cores with the broker: few threads, and none that spins while it waits.
ERLANG_FLAGS = (
    "+S 2:2 +SDcpu 1:1 +SDio 2 +A 4 +sbwt none +sbwtdcpu none +sbwtdio none +B i"
    " -kernel inet_dist_use_interface {127,0,0,1}"
)

#: What waits at the other end of a pipe from us: it sees our end, `kill -9` included, ends what
#: still runs and removes the folder. (PR_SET_PDEATHSIG would also fire when only the thread that
#: started the broker ends.)
GUARD = """
read _
for file in "$1"/*.pid; do
    [ -f "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null
done
for _ in 1 2 3 4 5; do
    rm -rf "$1" 2>/dev/null && break
    sleep 0.2
done
exit 0
"""


class Depth(NamedTuple):
    """How many messages a queue holds: waiting, and delivered but not yet acknowledged."""

    ready: int
    unacked: int

    @property
    def total(self) -> int:
        return self.ready + self.unacked


class Message(NamedTuple):
    """One message as a consumer gets it."""

    body: bytes
    properties: pika.BasicProperties
    redelivered: bool


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses, outside the range of outgoing connections.

    It is this process's as long as that lives: others of the lab pick from the rest, even if
    nothing listens there yet or any more. Linux forgets an abstract socket (the name begins with
    NUL) with its process.
    """
    for port in random.sample(PORTS, len(PORTS)):
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            # A port whose last connection lingers in TIME_WAIT is free for a server.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                claim.bind(f"\0k2hr3_osnl.lab.{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
        CLAIMS.append(claim)
        return port
    raise OSError(f"no free port found in {PORTS}")


class Site:
    """What the nodes of one cluster share: a folder (Erlang's HOME, with the cookie), an epmd
    (Erlang's name server) and the guard that ends and removes everything when we are gone."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lab-rabbitmq-"))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us, not for it
        )
        self.password = secrets.token_hex(16)  # of our own administrator, `lab`
        self.cookie = secrets.token_hex(16)
        cookie_file = self.folder / ".erlang.cookie"
        cookie_file.write_text(self.cookie)
        cookie_file.chmod(0o400)
        self.epmd_port = free_port()
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        # Started by us because a node would start it as a daemon that outlives the node.
        epmd = shutil.which("epmd", path=f"{ERLANG}:{self.environment['PATH']}") or "epmd"
        self._epmd = self.run("epmd", [epmd, "-port", str(self.epmd_port)], self.environment)

    def run(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process that the guard knows, with its output in `<name>.out`."""
        known = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.pid_file(name)), *command]
        with open(self.folder / f"{name}.out", "ab") as output:
            return subprocess.Popen(
                known,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=self.folder,
                start_new_session=True,
            )

    def pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def close(self) -> None:
        self._epmd.kill()
        self._epmd.wait()
        self.pid_file("epmd").unlink()
        self._guard.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


class Broker:
    """One RabbitMQ node. As a context manager: started, and removed at the end.

    Args:
        tls: also listen on `tls_port` with `server` (default: `tls.server`), ask clients for a
            certificate without insisting, and accept SASL EXTERNAL: the user is the common name.
        server: another server certificate, say `tls.expired`.
        config: more lines of `rabbitmq.conf`, which win over ours.
        site: where to join the nodes of a cluster; see `cluster`.
        peers: node names to join at the first start.
        node: its own name.

    `start`, `stop`, `kill` and `restart` may be called in any order, from any thread, one at a
    time; ports and data stay until `close`. Depths of queues are read from the queues themselves.
    What the management API tells (`queue`, `connections`) lags behind by up to a second, under
    load by several: wait for it with `lab.wait_until`.
    """

    def __init__(
        self,
        tls: Certificates | None = None,
        server: Pair | None = None,
        config: Mapping[str, str] | None = None,
        site: Site | None = None,
        peers: Sequence[str] = (),
        node: str | None = None,
    ) -> None:
        self.port = free_port()
        self.tls_port = free_port()
        self.management_port = free_port()
        self.prometheus_port = free_port()
        self.name = node or node_name()
        self.site = site or Site()
        self._owns_site = site is None
        self._process: subprocess.Popen[bytes] | None = None
        self._new = True
        self.folder = self.site.folder / self.name
        self.folder.mkdir()
        lines = dict(config or {})
        if peers:
            lines["cluster_formation.peer_discovery_backend"] = "classic_config"
        for number, peer in enumerate(peers, 1):
            lines[f"cluster_formation.classic_config.nodes.{number}"] = peer
        self._write_settings(tls, server, lines)

    # Life

    def start(self) -> None:
        """Start, or start again after `stop` or `kill`; returns when AMQP and management answer.

        A RuntimeError with the end of its log tells that it did not.
        """
        self.begin_start()
        self.finish_start()

    def begin_start(self) -> None:
        """The first half of `start`, for nodes that have to start at the same time."""
        if not self.running:
            command = [str(SCRIPTS / "rabbitmq-server")]
            self._process = self.site.run(self.name, command, self._environment)

    def finish_start(self) -> None:
        """The second half of `start`: wait until AMQP accepts and management answers."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended while starting:\n{self.log()[-3000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready:\n{self.log()[-3000:]}")
            time.sleep(0.05)
        if self._new:
            # Tests change guest's password and rights; what we look with must not depend on it.
            user = {"password": self.site.password, "tags": "administrator"}
            self._request("PUT", "/users/lab", user, login="guest:guest")
            self.set_permissions("lab", login="guest:guest")
            self._new = False

    def stop(self) -> None:
        """Shut down in order: clients are told, queues are written to disk."""
        # RabbitMQ 3.10 otherwise waits 5 s for this handler, which waits for RabbitMQ.
        with contextlib.suppress(RuntimeError):  # not running, or not yet
            self.evaluate("gen_event:delete_handler(rabbit_event, rabbit_mgmt_db_handler, [])")
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, like a power failure (`kill -9`)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the node for good and remove its folder and, unless shared, its epmd."""
        self.kill()
        if self._owns_site:
            self.site.close()

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is there (it may still be starting)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the Erlang VM, while it runs."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def log(self) -> str:
        """What the node has logged so far, start-up messages included."""
        files = [self.site.folder / f"{self.name}.out", self.folder / "node.log"]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    # Addresses

    @property
    def address(self) -> str:
        """`host:port` of AMQP, as in a transport URL."""
        return f"127.0.0.1:{self.port}"

    def url(
        self,
        user: str = "guest",
        password: str = "guest",
        vhost: str = "",
        hosts: Iterable[str] | None = None,
    ) -> str:
        """A transport URL of oslo.messaging, of one or more `host:port`, by default this node."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        servers = ",".join(f"{login}@{host}" for host in hosts or [self.address])
        return f"rabbit://{servers}/{quote(vhost, safe='')}"

    # By Erlang and rabbitmqctl

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl`, which can do everything and takes 1.5 s or more; return its output."""
        done = self._run([str(SCRIPTS / "rabbitmqctl"), "--silent", *arguments])
        if done.returncode:
            command = " ".join(arguments)
            raise RuntimeError(f"rabbitmqctl {command}: exit {done.returncode}: {done.stdout}")
        return done.stdout

    def _run(self, command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self._environment,
            cwd=self.folder,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang in the node, which takes milliseconds; return the answer."""
        # The node refuses a second caller of the same name, and erl_call's own names clash.
        caller = f"lab-{secrets.token_hex(4)}"
        command = [
            str(ERLANG / "erl_call"),
            "-sname",
            self.name,
            "-h",
            caller,
            "-c",
            self.site.cookie,
            "-e",
        ]
        done = self._run(command, f"{expression}.\n")
        if done.returncode or not done.stdout.startswith("{ok, "):
            raise RuntimeError(f"{self.name}: {expression}: {done.stdout.strip()}")
        return done.stdout.strip()[len("{ok, ") : -1]

    def alarm(self, on: bool) -> None:
        """Raise or clear the memory alarm, which stops the broker reading from publishers."""
        limit = "{absolute, 1}" if on else "0.4"
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")
        wait_until(lambda: self.alarmed() == on, what=f"memory alarm {'on' if on else 'off'}")

    def queues(self, vhost: str = "/") -> dict[str, Depth]:
        """Every queue of a virtual host with its depth.

        Classic queues are asked, so theirs is exact; quorum queues publish theirs each 0.2 s.
        """
        # Only the node that leads a queue knows, so that one is asked.
        name = ",".join(str(byte) for byte in vhost.encode())
        answer = self.evaluate(
            "base64:encode_to_string(rabbit_json:encode([[element(4, amqqueue:get_name(Q)), R, U]"
            f" || Q <- rabbit_amqqueue:list(<<{name}>>),"
            " Node <- [case amqqueue:get_pid(Q) of {_, N} -> N; Pid -> node(Pid) end],"
            " [{_, R}, {_, U}] <- [(catch erpc:call(Node, rabbit_amqqueue, info,"
            " [Q, [messages_ready, messages_unacknowledged]], 5000))], is_integer(R)]))"
        )
        rows = json.loads(base64.b64decode(answer.strip('"')))
        return {queue: Depth(ready, unacked) for queue, ready, unacked in rows}

    def depth(self, queue: str) -> Depth:
        """The depth of one queue; a LookupError where it is not there, or has no leader now."""
        depths = self.queues()
        if queue not in depths:
            raise LookupError(f"no queue {queue} on {self.name}")
        return depths[queue]

    def wait_for_depth(self, queue: str, ready: int, unacked: int = 0, timeout: float = 10) -> None:
        """Wait until a queue, which may not exist yet, has this depth; `timeout` in seconds."""
        wanted = Depth(ready, unacked)
        last: dict[str, Depth] = {}

        def reached() -> bool:
            last.clear()
            last.update(self.queues())
            return last.get(queue) == wanted

        try:
            wait_until(reached, timeout, f"{wanted} in {queue}")
        except AssertionError as error:
            raise AssertionError(f"{error}; depths: {last}") from None

    # By the management API, whose statistics (not its settings) lag behind by up to a second

    def alarmed(self) -> bool:
        """Whether an alarm is in effect on this node."""
        status, _ = self._call("GET", "/health/checks/local-alarms")
        return status == http.client.SERVICE_UNAVAILABLE

    def queue(self, name: str) -> dict[str, Any]:
        """The management API's object: `type`, `durable`, `arguments`, `consumers`, …

        A LookupError, as in all that follow, where there is no such thing.
        """
        found: dict[str, Any] = self._request("GET", f"/queues/{_path('/', name)}")
        return found

    def purge(self, queue: str) -> None:
        """Drop the ready messages of a queue."""
        self._request("DELETE", f"/queues/{_path('/', queue)}/contents")

    def delete_queue(self, name: str) -> None:
        """Delete a queue, used or not, empty or not."""
        self._request("DELETE", f"/queues/{_path('/', name)}")

    def exchanges(self) -> dict[str, dict[str, Any]]:
        """The exchanges by name (`""` is the default one), as the management API shows them."""
        found = self._request("GET", f"/exchanges/{_path('/')}")
        return {exchange["name"]: exchange for exchange in found}

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        self._request("DELETE", f"/exchanges/{_path('/', name)}")

    def bindings(self, queue: str) -> list[tuple[str, str]]:
        """`(exchange, routing key)` of each binding of a queue but the one every queue has."""
        found = self._request("GET", f"/queues/{_path('/', queue)}/bindings")
        return sorted((each["source"], each["routing_key"]) for each in found if each["source"])

    def connections(self) -> list[dict[str, Any]]:
        """The open AMQP connections, a new one after up to 0.5 s."""
        found: list[dict[str, Any]] = self._request("GET", "/connections")
        return found

    def close_connection(self, name: str) -> None:
        """Have the broker close a connection (320 CONNECTION_FORCED)."""
        # One that went away meanwhile is closed, too.
        with contextlib.suppress(LookupError):
            self._request("DELETE", f"/connections/{_path(name)}")

    def add_user(
        self, name: str, password: str, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Make a user, or change its password, with permissions (regular expressions) in `/`."""
        self.set_password(name, password)
        self.set_permissions(name, configure, write, read)

    def set_password(self, name: str, password: str) -> None:
        """Change the password of a user; it loses its tags, say `administrator`."""
        self._request("PUT", f"/users/{_path(name)}", {"password": password, "tags": ""})

    def set_permissions(
        self,
        user: str,
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
        vhost: str = "/",
        login: str | None = None,
    ) -> None:
        """Set what a user may do; open channels may go by the old rights for some seconds."""
        rights = {"configure": configure, "write": write, "read": read}
        self._request("PUT", f"/permissions/{_path(vhost, user)}", rights, login)

    def clear_permissions(self, user: str) -> None:
        """Take a user's access to `/` away."""
        self._request("DELETE", f"/permissions/{_path('/', user)}")

    def delete_user(self, name: str) -> None:
        """Delete a user; the broker closes its connections."""
        self._request("DELETE", f"/users/{_path(name)}")

    def add_vhost(self, name: str, user: str = "guest") -> None:
        """Make a virtual host and give `user` every right there."""
        self._request("PUT", f"/vhosts/{_path(name)}", {})
        for each in (user, "lab"):
            self.set_permissions(each, vhost=name)

    def policy(
        self, name: str, pattern: str, definition: Mapping[str, Any], vhost: str = "/"
    ) -> None:
        """Set a policy, say `policy("short", "^q$", {"max-length": 10})`."""
        body = {"pattern": pattern, "definition": dict(definition)}
        self._request("PUT", f"/policies/{_path(vhost, name)}", body)

    def delete_policies(self, vhost: str = "/") -> None:
        """Delete all policies."""
        for each in self._request("GET", f"/policies/{_path(vhost)}"):
            self._request("DELETE", f"/policies/{_path(vhost, each['name'])}")

    # By AMQP

    def amqp(self, vhost: str = "/") -> pika.BlockingConnection:
        """A connection of our own administrator `lab`, to be closed by the caller."""
        login, name = pika.PlainCredentials("lab", self.site.password), {"connection_name": "lab"}
        parameters = ("127.0.0.1", self.port, vhost, login)
        return pika.BlockingConnection(
            pika.ConnectionParameters(*parameters, client_properties=name)
        )

    def messages(self, queue: str, take: bool = False, limit: int = 10_000) -> list[Message]:
        """Read the ready messages of a queue, oldest first; exact, unlike the statistics.

        Unless `take`, they are given back in their order, but marked as redelivered; in a quorum
        queue `x-delivery-count` goes up by one (so `x-delivery-limit` can drop them).
        """
        found: list[Message] = []
        with contextlib.closing(self.amqp()) as connection:
            channel = connection.channel()
            while len(found) < limit:
                method, properties, body = channel.basic_get(queue, auto_ack=take)
                if method is None or properties is None or body is None:
                    break
                found.append(Message(body, properties, bool(method.redelivered)))
        return found

    def publish(
        self,
        body: bytes | str,
        exchange: str = "",
        routing_key: str = "",
        properties: pika.BasicProperties | None = None,
        vhost: str = "/",
    ) -> None:
        """Publish one message, persistent unless `properties` say otherwise, and wait for it.

        It is mandatory: pika's UnroutableError or NackError tells that no queue has it.
        """
        self.publish_many([body], exchange, routing_key, properties, vhost)

    def publish_many(
        self,
        bodies: Iterable[bytes | str],
        exchange: str = "",
        routing_key: str = "",
        properties: pika.BasicProperties | None = None,
        vhost: str = "/",
    ) -> None:
        """`publish` for many, on one connection."""
        properties = properties or pika.BasicProperties(delivery_mode=2)
        with contextlib.closing(self.amqp(vhost)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish(exchange, routing_key, _bytes(body), properties, True)

    # Inside

    def _write_settings(
        self, tls: Certificates | None, server: Pair | None, more: Mapping[str, str]
    ) -> None:
        names: dict[str, Any] = dict(vars(self))
        files = ["rabbitmq.conf"]
        if tls is not None:
            names.update((server or tls.server)._asdict(), ca_file=tls.ca_file)
            files.append("rabbitmq-tls.conf")
        texts = [Path(__file__).with_name(file).read_text() for file in files]
        texts += [f"{key} = {value}\n" for key, value in more.items()]
        (self.folder / "rabbitmq.conf").write_text(Template("".join(texts)).substitute(names))
        (self.folder / "enabled_plugins").write_text(f"[{','.join(PLUGINS)}].\n")
        # How often a quorum queue publishes its depth; by default each 5 s.
        advanced = "[{rabbit, [{quorum_tick_interval, 200}]}].\n"
        (self.folder / "advanced.config").write_text(advanced)
        (self.folder / "env.conf").write_text("")
        self._environment = {
            **self.site.environment,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),  # not /etc/rabbitmq's
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_FLAGS,
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            # The script then becomes the Erlang VM instead of waiting for it: one process,
            # whose id is the one we know.
            "detached": "true",
        }

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return self._call("GET", "/overview", login="guest:guest")[0] in (200, 401)
        except OSError:
            return False

    def _end(self, signal_number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"{self.name} did not stop:\n{self.log()[-3000:]}") from None
        finally:
            self._process = None
            self.site.pid_file(self.name).unlink()

    def _request(
        self, method: str, path: str, body: object = None, login: str | None = None
    ) -> Any:
        status, answer = self._call(method, path, body, login)
        if status == http.client.NOT_FOUND:
            raise LookupError(f"{method} {path}: not found on {self.name}")
        if status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return answer

    def _call(
        self, method: str, path: str, body: object = None, login: str | None = None
    ) -> tuple[int, Any]:
        credentials = base64.b64encode((login or f"lab:{self.site.password}").encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.management_port, timeout=30)
        with contextlib.closing(connection):
            connection.request(
                method,
                f"/api{path}",
                None if body is None else json.dumps(body),
                {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
            )
            response = connection.getresponse()
            text = response.read()
        return response.status, json.loads(text) if text else None


def node_name() -> str:
    """A name that no other node has."""
    return f"lab-{secrets.token_hex(4)}@localhost"


@contextlib.contextmanager
def cluster(size: int = 3) -> Iterator[list[Broker]]:
    """Nodes joined into one cluster, each with `kill`, `stop` and `start` of its own."""
    names = [node_name() for _ in range(size)]
    site = Site()
    nodes: list[Broker] = []

    def joined() -> bool:
        found = nodes[0]._request("GET", "/nodes")
        return len([each for each in found if each["running"]]) == size

    try:
        for name in names:
            nodes.append(Broker(site=site, peers=names, node=name))
        for node in nodes:
            node.begin_start()
        for node in nodes:
            node.finish_start()
        wait_until(joined, timeout=60, what=f"{size} nodes in the cluster")
        yield nodes
    finally:
        for node in nodes:
            node.close()
        site.close()


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
