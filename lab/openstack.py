"""A real OpenStack on loopback: Keystone, Placement, Glance, Neutron, and Nova with two hosts.

    with OpenStack() as cloud:
        cloud.start_all()
        server = cloud.admin.compute.create_server(...)    # openstacksdk
        cloud.kill("nova-compute-host2")
        cloud.start("nova-compute-host2")

The services come from PyPI, in `.venv-cloud`, MariaDB and RabbitMQ from Debian. Only the virtual
machines are not real: Nova's fake driver runs none, and no agent plugs in their ports. All data is
in the folder of a private RabbitMQ, whose guard ends what we started should we be killed.
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import getpass
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import openstack

from lab import wait_until
from lab.broker import Broker, free_port
from lab.listener import write_settings

VENV = Path(__file__).resolve().parent.parent / ".venv-cloud"
#: The databases with their tables, which take a minute to make; kept from the first time.
TABLES = VENV / "tables"
DATABASES = ("keystone", "placement", "glance", "neutron", "nova", "nova_api", "nova_cell0")

#: Seconds that any one thing may take, on a busy machine.
PATIENCE = 120.0

HOSTS = ("host1", "host2")
PASSWORD = "secret"
LOGIN: dict[str, object] = {
    "username": "admin",
    "password": PASSWORD,
    "project_name": "admin",
    "user_domain_id": "default",
    "project_domain_id": "default",
    "region_name": "RegionOne",
}

#: The type and the WSGI module of each service that has an API.
APIS = {
    "keystone": ("identity", "keystone.wsgi.api"),
    "placement": ("placement", "placement.wsgi.api"),
    "glance": ("image", "glance.wsgi.api"),
    "neutron": ("network", "neutron.wsgi.api"),
    "nova-api": ("compute", "nova.wsgi.osapi_compute"),
    # Whether a deletion can be undone is a setting of Nova's. This is a second API with that.
    "nova-api-soft": ("", "nova.wsgi.osapi_compute"),
}
#: After so many seconds Nova deletes a soft-deleted server of host1, and never one of host2.
RECLAIM_SECONDS = 30

#: Serves a WSGI module. Nova and Neutron read the command line, which must be empty then.
SERVE = """
import importlib, sys, waitress
module, port = sys.argv[1:]
del sys.argv[1:]
application = importlib.import_module(module).application
waitress.serve(application, host="127.0.0.1", port=int(port), threads=8)
"""

#: What makes the tables, in two threads: the program, which settings it reads, its arguments.
#: Nova notes down where its cells are; these are patterns that it fills in from its settings.
CELL = "{scheme}://{username}@{hostname}/{path}?{query}"
CELL0 = CELL.replace("{path}", "nova_cell0")
RABBIT = "{scheme}://{username}:{password}@{hostname}:{port}/"
MIGRATIONS = (
    (
        "keystone-manage keystone db_sync",
        "placement-manage placement db sync",
        "glance-manage glance-api db_sync",
        "neutron-db-manage neutron upgrade heads",
    ),
    (
        "nova-manage nova api_db sync",
        f"nova-manage nova cell_v2 map_cell0 --database_connection {CELL0}",
        f"nova-manage nova cell_v2 create_cell --name cell1 --transport-url {RABBIT}"
        f" --database_connection {CELL}",
        "nova-manage nova db sync",
    ),
)


def versions() -> str:
    """Returns the names and versions of what makes up the cloud."""
    (site,) = VENV.glob("lib/python3*/site-packages")
    found = {each.name: each.version for each in importlib.metadata.distributions(path=[str(site)])}
    names = ("keystone", "openstack-placement", "glance", "neutron", "nova", "oslo.messaging")
    sdk = importlib.metadata.version("openstacksdk")
    return ", ".join([*(f"{name} {found[name]}" for name in names), f"openstacksdk {sdk}"])


class OpenStack:
    """The services, each a process of its own; ended and removed with the context manager."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.folder = self.broker.site.folder / "openstack"
        self.socket = self.folder / "mariadb.sock"
        free: set[int] = set()
        while len(free) < len(APIS):
            free.add(free_port())
        self.ports = dict(zip(APIS, free))
        self.auth_url = f"http://127.0.0.1:{self.ports['keystone']}/v3"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: openstacksdk's connection as admin, and one whose deletions are soft.
        self.admin: Any = None
        self.soft: Any = None
        #: What a server is made of, by id.
        self.network, self.image, self.flavor = "", "", ""

    def __enter__(self) -> OpenStack:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.broker.close()

    # The processes

    def start_all(self) -> None:
        """Starts all services, and adds what a server is made of."""
        self.broker.begin_start()
        self._configure()
        self._start_database()
        self._manage(
            f"keystone-manage keystone bootstrap --bootstrap-password {PASSWORD}"
            f" --bootstrap-region-id RegionOne --bootstrap-public-url {self.auth_url}"
        )
        self.start("keystone", "placement", "glance")
        self.broker.finish_start()
        self.start("neutron", "nova-conductor", "nova-scheduler", "nova-api", "nova-api-soft")
        self.wait_for("keystone")
        self._fill_catalog()
        self.wait_for(*APIS)
        # Not before Placement answers: they would ask again after a minute
        self.start(*(f"nova-compute-{host}" for host in HOSTS))
        network = self.admin.network.create_network(name="net")
        self.admin.network.create_subnet(network_id=network.id, ip_version=4, cidr="10.1.0.0/16")
        formats = {"disk_format": "raw", "container_format": "bare"}
        self.image = self.admin.image.create_image("tiny", data=b"tiny" * 128, **formats).id
        self.flavor = self.admin.compute.create_flavor(name="one", ram=64, vcpus=1, disk=0).id
        self.network = network.id
        wait_until(
            lambda: len(list(self.admin.compute.hypervisors())) == len(HOSTS),
            PATIENCE,
            "nova-compute-host1 and nova-compute-host2 to be known to nova-scheduler",
        )

    def start(self, *names: str) -> None:
        """Starts services (again)."""
        for name in names:
            arguments = self._command(name), self._environment()
            self.processes[name] = self.broker.site.run(name, *arguments)

    def kill(self, name: str) -> None:
        """Ends a service, and what it started, like a power failure."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.broker.site.pid_file(name).unlink(missing_ok=True)

    def has_ended(self, name: str) -> bool:
        """Tells whether a service that was started has ended by itself."""
        return self.processes[name].poll() is not None

    def wait_for(self, *names: str) -> None:
        """Waits until services answer.

        :raises RuntimeError: one ended instead
        """

        def answers(name: str) -> bool:
            local = name == "mariadb"
            with socket.socket(socket.AF_UNIX if local else socket.AF_INET) as client:
                address = str(self.socket) if local else ("127.0.0.1", self.ports[name])
                return client.connect_ex(address) == 0 or self.has_ended(name)

        for each in names:
            wait_until(partial(answers, each), PATIENCE, f"{each} to answer")
            if self.has_ended(each):
                raise RuntimeError(f"{each} ended while it started")

    @contextlib.contextmanager
    def without_neutron(self) -> Iterator[None]:
        """Has Neutron away, and back afterwards."""
        self.kill("neutron")
        yield
        self.start("neutron")
        self.wait_for("neutron")

    @contextlib.contextmanager
    def without_host2(self) -> Iterator[None]:
        """Has a host down, and known to be, and up again afterwards."""
        compute = self.admin.compute

        def service() -> Any:
            (found,) = compute.services(host="host2", binary="nova-compute")
            return found

        def reports() -> bool:
            last = time.strptime(f"{service().updated_at[:19]} UTC", "%Y-%m-%dT%H:%M:%S %Z")
            return calendar.timegm(last) > began

        self.kill("nova-compute-host2")
        compute.update_service_forced_down(service(), forced=True)
        yield
        # In this order: a host from which servers were evacuated must be back before it is up
        began = time.time()
        self.start("nova-compute-host2")
        wait_until(reports, PATIENCE, "nova-compute-host2 to report", 0.5)
        compute.update_service_forced_down(service(), forced=False)

    def suspects(self, trouble: str) -> list[str]:
        """Returns the services that a failure may come from.

        :param trouble: the text of the error, which may name a service or show its port
        """
        ended = [name for name in self.processes if self.has_ended(name)]
        named = [name for name in self.processes if name in trouble]
        asked = [name for name, port in self.ports.items() if f":{port}/" in trouble]
        nova = [name for name in self.processes if name.startswith("nova-co")]
        return list(dict.fromkeys(ended + named + asked)) or nova

    def log(self, name: str) -> str:
        """Returns the end of what a service wrote to its log."""
        text = (self.broker.site.folder / f"{name}.out").read_text(errors="replace")
        return "\n".join(line[:300] for line in text.splitlines()[-15:])

    def _command(self, name: str) -> list[str]:
        """Returns how to start a service."""
        if name == "mariadb":
            return f"""
                /usr/sbin/mariadbd --no-defaults --user={getpass.getuser()}
                --datadir={self.folder / "mariadb"} --socket={self.socket} --skip-networking
                --pid-file={self.folder / "mariadb.pid"} --max-connections=600
                --init-file={self.folder / "databases.sql"} --character-set-server=utf8mb3
                --innodb-flush-log-at-trx-commit=0 --innodb-log-file-size=32M""".split()
        if name in APIS:
            _, module = APIS[name]
            command = [str(VENV / "bin" / "python"), "-c", SERVE, module, str(self.ports[name])]
            soft = ["/usr/bin/env", "OS_NOVA_CONFIG_FILES=api-paste.ini;nova.conf;soft.conf"]
            return [*soft, *command] if name == "nova-api-soft" else command
        program, _, host = name.partition("-host")
        return self._program(program, "nova", *([f"host{host}"] if host else []))

    def _program(self, program: str, *settings: str) -> list[str]:
        """Returns the command that runs a program of OpenStack's with some settings files."""
        files = [f"--config-file={self.folder / name}.conf" for name in settings]
        return [str(VENV / "bin" / program), *files]

    def _environment(self) -> dict[str, str]:
        """Returns the variables that the services run with."""
        names = ("KEYSTONE", "PLACEMENT", "GLANCE", "NEUTRON", "NOVA")
        return {
            **self.broker.site.environment,
            **{f"OS_{name}_CONFIG_DIR": str(self.folder) for name in names},
            "OS_NEUTRON_CONFIG_FILES": "neutron.conf",
            "PYTHONPATH": str(self.folder / "drivers"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _manage(self, command: str) -> None:
        """Runs `nova-manage` or another service's like it.

        :param command: the program, which settings it reads, and its arguments
        :raises RuntimeError: it failed; with the end of its output
        """
        program, settings, *arguments = command.split()
        done = subprocess.run(
            [*self._program(program, settings), *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3 * PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}")

    # Data and settings

    def _start_database(self) -> None:
        """Starts MariaDB, with the tables of the first time."""
        data = self.folder / "mariadb"
        if not TABLES.exists():
            install = f"""
                /usr/bin/mariadb-install-db --no-defaults --user={getpass.getuser()}
                --datadir={data} --auth-root-authentication-method=normal"""
            subprocess.run(install.split(), check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)
            self.start("mariadb")
            self.wait_for("mariadb")
            with ThreadPoolExecutor() as pool:
                list(pool.map(self._make_tables, MIGRATIONS))
            # What is copied must be at rest
            self.processes["mariadb"].terminate()
            self.processes["mariadb"].wait(PATIENCE)
            half = TABLES.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(data, half)
            half.rename(TABLES)
        else:
            shutil.copytree(TABLES, data)
        self.start("mariadb")
        self.wait_for("mariadb")

    def _make_tables(self, commands: Sequence[str]) -> None:
        for command in commands:
            self._manage(command)

    def _fill_catalog(self) -> None:
        """Tells Keystone where the services are, and what their user may do."""
        identity = self._connect().identity
        for name, (kind, _) in APIS.items():
            if kind in ("", "identity"):
                continue
            version = "/v2.1" if kind == "compute" else ""
            identity.create_endpoint(
                service_id=identity.create_service(name=name, type=kind).id,
                interface="public",
                region_id="RegionOne",
                url=f"http://127.0.0.1:{self.ports[name]}{version}",
            )
        identity.assign_project_role_to_user(
            project=identity.find_project("admin"),
            user=identity.find_user("admin"),
            role=identity.find_role("service"),
        )
        self.admin = self._connect()
        soft = f"http://127.0.0.1:{self.ports['nova-api-soft']}/v2.1"
        self.soft = self._connect(compute_endpoint_override=soft)

    def _connect(self, **options: Any) -> Any:
        """Returns openstacksdk's connection as the administrator."""
        return openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            auth_url=self.auth_url,
            api_timeout=int(PATIENCE),
            **{**LOGIN, **options},
        )

    def _configure(self) -> None:
        """Makes folders and files, and settings of which most are the same for all services."""
        for name in ("images", "staging", "tasks", "keys", "drivers/lab-1.dist-info", *HOSTS):
            (self.folder / name).mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("openstack_ml2.py"), self.folder / "drivers")
        (self.folder / "drivers" / "lab-1.dist-info" / "entry_points.txt").write_text(
            "[neutron.ml2.mechanism_drivers]\nlab = openstack_ml2:AnyHost\n"
        )
        shutil.copy(VENV / "etc" / "nova" / "api-paste.ini", self.folder)
        databases = (f"CREATE DATABASE IF NOT EXISTS {name};\n" for name in DATABASES)
        (self.folder / "databases.sql").write_text("".join(databases))
        # Keystone's: the next one and the one in use
        for name in ("0", "1"):
            key = base64.urlsafe_b64encode(secrets.token_bytes(32))
            (self.folder / "keys" / name).write_bytes(key)

        self._write_settings()

    def _write_settings(self) -> None:
        """Writes the settings of openstack.json, of which `everywhere` is in all but the last ones.

        With its service_type, an application credential's access rules for Nova can be checked;
        nothing tells Nova that a port is plugged in; and without notify_on_state_change nothing
        versioned tells of a forceDelete by nova-api.
        """
        template = Template(Path(__file__).with_suffix(".json").read_text())
        text = template.substitute(
            transport_url=self.broker.url(),
            folder=self.folder,
            venv=VENV,
            database="mysql+pymysql://root@localhost",
            socket=f"unix_socket={self.socket}&charset=utf8mb3",
            reclaim_seconds=RECLAIM_SECONDS,
        )
        own: dict[str, Any] = json.loads(text)
        everywhere = own.pop("everywhere")
        login = {**LOGIN, "auth_url": self.auth_url, "auth_type": "password"}
        for name in own.pop("with a login"):
            everywhere[name].update(login)
        for name, sections in own.items():
            if name not in ("soft", *HOSTS):
                default = {**everywhere["DEFAULT"], **sections.get("DEFAULT", {})}
                sections = {**everywhere, **sections, "DEFAULT": default}
            write_settings(self.folder / f"{name}.conf", sections)
