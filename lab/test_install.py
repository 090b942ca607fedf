"""Tests of the ways to install and to run it: on Debian machines with systemd, as a container."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

import k2hr3_osnl
from k2hr3_osnl import Config, Source
from lab import wait_until
from lab.broker import Broker
from lab.listener import PROGRAM, settings, write_settings
from lab.machine import ROOT, SUDO, Box, Machine, Podman
from lab.notifier import port
from lab.nova import PROJECT, OpenStack
from lab.role_api import RoleApi

#: Seconds: the container is built in one.
pytestmark = pytest.mark.timeout(300)
CONTRIB = ROOT / "contrib"
POOL, RETRY, DEAD = "k2hr3_osnl", "k2hr3_osnl.retry", "k2hr3_osnl.dead_letter"
SETTINGS = "/etc/k2hr3/k2hr3_osnl.ini"
LOG = "journalctl --no-pager -o cat -u"
#: Runs a command line as cron and supervisord do.
AS_USER = "setpriv --reuid=k2hr3-osnl --regid=k2hr3 --clear-groups /bin/sh -c"

# What the documents say, line by line
INSTALL = ["apt-get install python3-pika python3-urllib3", "make install"]
BY_HAND = [
    "apt-get install python3-pika python3-urllib3",
    "cp k2hr3_osnl.py /usr/local/bin/k2hr3-osnl",
    "groupadd --system k2hr3",
    "useradd --system --gid k2hr3 --home-dir / --shell /usr/sbin/nologin k2hr3-osnl",
    "mkdir -p /etc/k2hr3",
    "install -m 640 -g k2hr3 k2hr3_osnl.ini /etc/k2hr3/",
    "cp contrib/k2hr3-osnl.service /etc/systemd/system/",
]
CHECK = ["k2hr3-osnl -c /etc/k2hr3/k2hr3_osnl.ini check"]
SYSTEMD = ["systemctl enable --now k2hr3-osnl"]
SEVERAL = ["systemctl enable --now k2hr3-osnl@one k2hr3-osnl@two"]
SUPERVISORD = [
    "cp contrib/supervisord.conf /etc/supervisor/conf.d/k2hr3-osnl.conf",
    "supervisorctl update",
]
CRON = ["cp contrib/k2hr3-osnl.cron /etc/cron.d/k2hr3-osnl"]
REMOVE = [
    "rabbitmqctl clear_policy k2hr3_osnl",
    "rabbitmqctl delete_queue k2hr3_osnl",
    "rabbitmqctl delete_queue --if-empty k2hr3_osnl.retry",
    "rabbitmqctl delete_queue --if-empty k2hr3_osnl.dead_letter",
]


@pytest.fixture
def broker(broker: Broker) -> Broker:
    """The emptied RabbitMQ, with Neutron's exchange and our queues, the first one bound."""
    with closing(broker.amqp()) as connection:
        channel = connection.channel()
        channel.exchange_declare("neutron", "topic", durable=True)
        for name in (POOL, RETRY, DEAD):
            channel.queue_declare(name, durable=True)
        channel.queue_bind(POOL, "neutron", "notifications.info")
    return broker


@pytest.fixture
def fresh_machine() -> Iterator[Machine]:
    """A Debian on which nobody has installed the program."""
    with Box() as box:
        yield Machine(box)


@pytest.fixture
def configure(broker: Broker, api: RoleApi, tmp_path: Path) -> Callable[..., None]:
    """Writes the settings for broker and API on a machine; further ones are those of [k2hr3]."""

    def write(machine: Machine, path: str = SETTINGS, pool: str = POOL, **options: object) -> None:
        sections = settings(broker.url(), api.url, **options)
        sections["DEFAULT"]["debug_level"] = "info"
        sections["oslo_messaging_notifications"]["pool"] = pool
        machine.write(path, write_settings(tmp_path / "settings", sections).read_text())

    return write


@pytest.fixture
def machine(fresh_machine: Machine, configure: Callable[..., None]) -> Machine:
    """A Debian with the program and the settings for broker and API."""
    fresh_machine.run("make install")
    configure(fresh_machine)
    return fresh_machine


def follow(lines: list[str], machine: Machine) -> str:
    """Run lines on a machine that the documents have word by word; returns the output."""
    documents = [ROOT / "README.md", CONTRIB / "OPERATIONS.md"]
    said = "\n".join(file.read_text() for file in documents if file.exists())
    commands = [line.partition(" #")[0].strip() for line in said.splitlines()]
    assert [line for line in lines if line not in commands] == []
    return machine.run("\n".join(lines)).stdout


def deletions(broker: Broker, count: int) -> set[str]:
    """Publish deletions of ports of so many instances as Neutron does; returns the instances."""
    instances = [str(uuid.uuid4()) for _ in range(count)]
    bodies = [
        {
            "message_id": str(uuid.uuid4()),
            "publisher_id": "network.host1",
            "event_type": "port.delete.end",
            "priority": "INFO",
            "timestamp": "2026-03-02 08:14:51.000000",
            "payload": port(instance, ["10.0.0.5"]),
        }
        for instance in instances
    ]
    broker.publish_many([json.dumps(body) for body in bodies], "neutron", "notifications.info")
    return set(instances)


def works(broker: Broker, api: RoleApi) -> None:
    """Wait until a listener makes a deletion."""
    expected = deletions(broker, 1)
    wait_until(lambda: expected <= api.deleted, 30, "the deletion")


def shown(machine: Machine, name: str, unit: str = "k2hr3-osnl") -> str:
    """A property of a unit."""
    return machine.run(f"systemctl show -P {name} {unit}").stdout.strip()


def options(file: str) -> dict[str, str]:
    """The options of a file of contrib, the last of each name."""
    lines = (CONTRIB / file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#;")


# --- What these tests stand on ------------------------------------------------------------------


def test_nothing_of_a_box_is_left_when_its_owner_is_killed(tmp_path: Path) -> None:
    def left() -> set[str]:
        """What of it is there: a process, and its mount, which some process sees."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "cmdline").read_bytes().split(b"\0")[-2:-1] == [
                    str(tmp_path).encode()
                ]:
                    found.add("process")
                if str(tmp_path) in (folder / "mounts").read_text():
                    found.add("mount")
        return found

    script = f"""
import subprocess
from lab.machine import Box
box = Box()
subprocess.run(box.inside("mount", "-t", "tmpfs", "none", "{tmp_path}"), check=True)
subprocess.run(box.inside("sh", "-c", "sleep 3600; :", "{tmp_path}"))
"""
    owner = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    wait_until(lambda: left() == {"process", "mount"}, 20, "the box")
    owner.kill()
    owner.wait()
    wait_until(lambda: not left(), 10, "its end")


# --- make install, and by hand ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr"])
def test_make_install_puts_its_files_and_uninstall_leaves_the_settings(
    tmp_path: Path, prefix: str
) -> None:
    def make(target: str) -> None:
        where = [f"DESTDIR={tmp_path}", f"PREFIX={prefix}"]
        subprocess.run(["make", "-C", str(ROOT), target, *where], check=True, stdout=sys.stderr)

    def files() -> dict[str, int]:
        found = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {
            f"/{path.relative_to(tmp_path)}": stat.S_IMODE(path.stat().st_mode) for path in found
        }

    make("install")
    programs = [f"{prefix}/bin/k2hr3-osnl", f"{prefix}/bin/k2hr3-osnl-catch-up"]
    units = {
        f"{prefix}/lib/systemd/system/{file.name}": file.read_text()
        for pattern in ("*.service", "*.timer")
        for file in CONTRIB.glob(pattern)
    }
    assert files() == {
        **dict.fromkeys(programs, 0o755),
        **dict.fromkeys(units, 0o644),
        SETTINGS: 0o640,
    }
    for unit, text in units.items():
        expected = text.replace("/usr/local/bin", f"{prefix}/bin")
        assert (tmp_path / unit[1:]).read_text() == expected
    # Settings that were changed are kept
    ini = tmp_path / SETTINGS[1:]
    ini.write_text("[k2hr3]\ntimeout_seconds = 7\n")
    make("install")
    make("uninstall")
    assert list(files()) == [SETTINGS]
    assert Config.load(str(ini), environ={}).k2hr3.timeout_seconds == 7


def test_what_the_readme_says_to_do_by_hand_makes_a_program_that_works(
    fresh_machine: Machine, configure: Callable[..., None], broker: Broker, api: RoleApi
) -> None:
    follow(BY_HAND, fresh_machine)
    configure(fresh_machine)
    # The user of the services can read the settings, and nobody else
    checked = follow(CHECK, fresh_machine)
    assert re.search(rf"^ok +settings.*{SETTINGS}", checked, re.M), checked
    expected = deletions(broker, 1)
    drain = f"k2hr3-osnl -c {SETTINGS} drain"
    fresh_machine.run(f"{AS_USER} '{drain}'")
    assert expected <= api.deleted
    denied = fresh_machine.run(f"setpriv --reuid=nobody --clear-groups {drain}", check=False)
    assert (denied.returncode, len(denied.stdout.splitlines())) == (78, 1), denied.stdout
    follow(SYSTEMD, fresh_machine)
    works(broker, api)


def test_make_install_makes_the_user_whom_uninstall_keeps_and_says_so(
    fresh_machine: Machine,
) -> None:
    follow(INSTALL, fresh_machine)
    fresh_machine.run("make install")  # and nothing is in its way the second time
    who = fresh_machine.run(f"id -Gn k2hr3-osnl; stat -c '%U %G %a' {SETTINGS}").stdout
    assert who.splitlines() == ["k2hr3", "root k2hr3 640"]
    said = fresh_machine.run("make uninstall").stdout.splitlines()[-1]
    assert said == f"kept: {SETTINGS}, the user k2hr3-osnl, the group k2hr3"
    fresh_machine.run(f"id k2hr3-osnl; getent group k2hr3; test -e {SETTINGS}")
    assert fresh_machine.run("type k2hr3-osnl", check=False).returncode == 1


def test_what_is_left_at_the_broker_can_be_removed(broker: Broker) -> None:
    document = (CONTRIB / "OPERATIONS.md").read_text()
    broker.ctl(*shlex.split(k2hr3_osnl.policy_command(Config()))[1:])
    for line in REMOVE:
        assert line in document.splitlines()
        broker.ctl(*line.split()[1:])
    assert not set(broker.queues()) & {POOL, RETRY, DEAD}
    assert broker.ctl("list_policies").strip() == ""


def uv_environment() -> dict[str, str]:
    """This process's environment, with pip's settings of package indexes for uv, too."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], value.strip("'"))  # the first one wins
    variables = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "UV_INDEX": settings.get("extra-index-url"),
        "UV_FIND_LINKS": settings.get("find-links", "").replace(" ", ","),
    }
    return {
        **os.environ,
        **{name: value for name, value in variables.items() if value},
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def test_uv_runs_the_bare_file(broker: Broker, api: RoleApi, tmp_path: Path) -> None:
    shutil.copy(PROGRAM, tmp_path)
    done = subprocess.run(
        [str(Path(sys.executable).parent / "uv"), "run", PROGRAM.name, "check"],
        cwd=tmp_path,
        env={
            **uv_environment(),
            "UV_PYTHON": sys.executable,
            "OS_OSLO_MESSAGING_NOTIFICATIONS__TRANSPORT_URL": broker.url(),
            "OS_K2HR3__API_URL": api.url,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("^ok +Role API", done.stdout, re.M)
    assert [request.method for request in api.requests] == ["DELETE"]


# --- The policy ---------------------------------------------------------------------------------


def test_the_policy_is_the_same_in_contrib_readme_and_log() -> None:
    line = k2hr3_osnl.policy_command(Config())
    assert line in (CONTRIB / "rabbitmq-policy.sh").read_text().splitlines()
    assert line in (ROOT / "README.md").read_text().splitlines()


def test_the_policy_names_the_pools_of_all_sources() -> None:
    sources = tuple(Source(pool=pool) for pool in ("one", "", "two", "one"))
    assert " '^one|^two' " in k2hr3_osnl.policy_command(Config(sources=sources))


@pytest.mark.parametrize("pool", ["k2hr3_osnl", "o'pool.$1*"])
@pytest.mark.parametrize("vhost", ["/", "neutron vhost"])
def test_the_policy_keeps_those_of_others_away(broker: Broker, pool: str, vhost: str) -> None:
    source = Source(pool=pool, transport_url=broker.url(vhost="" if vhost == "/" else vhost))
    if vhost != "/":
        broker.add_vhost(vhost)
    names = (pool, f"{pool}.retry", "another")
    with closing(broker.amqp(vhost)) as connection:
        for name in names:
            connection.channel().queue_declare(name, durable=True)
    broker.policy("theirs", r"^(?!(amq\.|reply_)).*", {"message-ttl": 0}, vhost)
    program, *arguments = shlex.split(k2hr3_osnl.policy_command(Config(sources=(source,))))
    assert program == "rabbitmqctl"
    broker.ctl(*arguments)
    try:
        for name in names:
            broker.publish(b"", "", name, vhost=vhost)
        depths = broker.queues(vhost)
        assert [depths[name].ready for name in names] == [1, 1, 0]
    finally:
        broker.delete_policies(vhost)
        if vhost != "/":
            broker.ctl("delete_vhost", vhost)


# --- systemd ------------------------------------------------------------------------------------


def test_systemd_accepts_the_units_and_calls_them_well_confined(fresh_machine: Machine) -> None:
    fresh_machine.run("make install")
    units = [file.name for pattern in ("*.service", "*.timer") for file in CONTRIB.glob(pattern)]
    named = " ".join(sorted(unit.replace("@.", "@one.") for unit in units))
    assert fresh_machine.run(f"systemd-analyze verify --man=no {named}").stdout == ""
    services = " ".join(unit for unit in units if unit.endswith(".service"))
    fresh_machine.run(
        f"cd /usr/local/lib/systemd/system; for each in {services}; do "
        "systemd-analyze security --offline=true --no-pager --threshold=20 ./$each; done"
    )


def test_the_template_is_the_unit_with_a_settings_file_for_each() -> None:
    unit = (CONTRIB / "k2hr3-osnl.service").read_text()
    template = (CONTRIB / "k2hr3-osnl@.service").read_text()
    changed = [line for line in template.splitlines() if line not in unit.splitlines()]
    assert [line for line in changed if "%i" not in line and line[0] != "#"] == []
    assert len(unit.splitlines()) == len(template.splitlines()) - 1


def test_the_units_bounds_fit_the_defaults() -> None:
    unit = options("k2hr3-osnl.service")
    config = Config.load(str(ROOT / "k2hr3_osnl.ini"), environ={})
    assert unit["MemoryMax"].endswith("M")
    full = config.rabbit.prefetch * 1_000_000  # large notifications have a few 100 kB
    assert int(unit["MemoryMax"][:-1]) << 20 > 45_000_000 + full
    for wait in (unit["TimeoutStopSec"], options("supervisord.conf")["stopwaitsecs"]):
        assert int(wait) > config.k2hr3.timeout_seconds + 1


def test_systemd_starts_it_shows_its_state_and_reloads_it(
    machine: Machine, broker: Broker, api: RoleApi
) -> None:
    log, metrics = "/var/log/k2hr3/osnl.log", "/run/k2hr3-osnl/k2hr3_osnl.prom"
    files = f"OS_DEFAULT__LOG_FILE={log}\nOS_DEFAULT__METRICS_FILE={metrics}\n"
    machine.write("/etc/default/k2hr3-osnl", files)
    # When
    follow(SYSTEMD, machine)
    # Then
    works(broker, api)
    wait_until(
        lambda: re.search("listening.*deleted=1", shown(machine, "StatusText")), 20, "status"
    )
    assert machine.run("ps -C k2hr3-osnl -o user:20=,group=").stdout.split() == [
        "k2hr3-osnl",
        "k2hr3",
    ]
    assert machine.run("systemctl is-enabled k2hr3-osnl").stdout.strip() == "enabled"
    machine.run(f"setpriv --reuid=nobody --clear-groups grep ^k2hr3_osnl_ {metrics}")
    # When its log file is moved away
    machine.run(f"mv {log} {log}.1; systemctl reload k2hr3-osnl")
    # Then what follows stands in a new one
    works(broker, api)
    wait_until(
        lambda: machine.run(f"grep -c deleted {log}").stdout.strip() == "1", what="a new log"
    )
    assert machine.run(f"grep -c 'deleted instance' {log}.1").stdout.strip() == "1"


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_systemd_restarts_it_when_it_is_killed_or_stuck(
    machine: Machine, broker: Broker, api: RoleApi, signal: str
) -> None:
    short = "[Service]\nWatchdogSec=4\nRestartSec=1\n"
    machine.run("mkdir /etc/systemd/system/k2hr3-osnl.service.d")
    machine.write("/etc/systemd/system/k2hr3-osnl.service.d/short.conf", short)
    machine.run("systemctl start k2hr3-osnl")
    works(broker, api)
    first = shown(machine, "MainPID")
    # When
    machine.run(f"kill -{signal} {first}")
    expected = deletions(broker, 5)
    # Then
    wait_until(lambda: expected <= api.deleted, 60, "its successor")
    assert shown(machine, "MainPID") not in ("0", first)
    assert int(shown(machine, "NRestarts")) >= 1
    why = {"KILL": "status=9/KILL", "STOP": "Watchdog timeout"}[signal]
    assert why in machine.run(f"{LOG} k2hr3-osnl").stdout


def test_systemd_stops_it_under_load_in_time_and_nothing_is_lost(
    machine: Machine, broker: Broker, api: RoleApi
) -> None:
    api.delay = 0.05
    expected = deletions(broker, 150)
    machine.run("systemctl start k2hr3-osnl")
    wait_until(lambda: len(api.deleted) > 5, 20, "deletions")
    # When
    machine.run("timeout 60 systemctl stop k2hr3-osnl")
    # Then
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("success", "0")
    assert "Killing" not in machine.run(f"{LOG} k2hr3-osnl").stdout
    done = len(api.deleted)
    assert 5 < done < 150
    wait_until(lambda: sum(depth.total for depth in broker.queues().values()) >= 150 - done)
    machine.run("systemctl start k2hr3-osnl")
    wait_until(lambda: api.deleted == expected, 60, "the rest")


def test_systemd_does_not_restart_it_with_a_wrong_setting(machine: Machine) -> None:
    machine.run("systemctl start k2hr3-osnl")
    machine.write(SETTINGS, "[k2hr3]\ntimeout_seconds = soon\n")
    machine.run("systemctl restart k2hr3-osnl", check=False)
    wait_until(lambda: shown(machine, "SubState") == "failed", 20, "its end")
    assert (shown(machine, "ExecMainStatus"), shown(machine, "NRestarts")) == ("78", "0")
    assert "timeout_seconds" in machine.run(f"{LOG} k2hr3-osnl").stdout


def test_systemd_runs_several_with_a_settings_file_each(
    machine: Machine, configure: Callable[..., None], broker: Broker, api: RoleApi
) -> None:
    pools = {"one": "k2hr3_one", "two": "k2hr3_two"}
    for name, pool in pools.items():
        machine.run(f"install -m 640 -g k2hr3 k2hr3_osnl.ini /etc/k2hr3/{name}.ini")
        configure(machine, f"/etc/k2hr3/{name}.ini", pool)
    follow(SEVERAL, machine)
    for pool in pools.values():
        wait_until(lambda pool=pool: broker.bindings(pool), 20, "the queue of each")  # type: ignore[misc]
    expected = deletions(broker, 1)
    wait_until(lambda: [request.cuk for request in api.requests] == [*expected] * 2, 20, "both")
    machine.run("systemctl stop k2hr3-osnl@one k2hr3-osnl@two")


def test_systemd_catches_up_with_what_was_never_published(machine: Machine, broker: Broker) -> None:
    unit = "k2hr3-osnl-catch-up@3h.service"
    with OpenStack() as cloud:
        expected = cloud.add("DELETED", count=4)
        login = {
            "OS_AUTH_URL": cloud.auth_url,
            "OS_USERNAME": cloud.user,
            "OS_PASSWORD": cloud.password,
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_NAME": PROJECT,
            "OS_PROJECT_DOMAIN_NAME": "Default",
        }
        lines = "".join(f'{name}="{value}"\n' for name, value in login.items())
        machine.write("/etc/default/k2hr3-osnl-catch-up", lines)
        machine.run(f"systemctl start {unit}")
        assert broker.depth(RETRY).ready == len(expected)
        machine.run(f"systemctl enable --now {unit.replace('.service', '.timer')}")
        # When Nova can't be asked, that shows
        machine.write("/etc/default/k2hr3-osnl-catch-up", lines.replace(cloud.password, "wrong"))
        assert machine.run(f"systemctl start {unit}", check=False).returncode == 1
        assert unit in machine.run("systemctl --failed --plain --no-legend").stdout
        assert "answered 401" in machine.run(f"{LOG} {unit}").stdout
        assert broker.depth(RETRY).ready == len(expected)


# --- supervisord --------------------------------------------------------------------------------


def test_supervisord_starts_it_restarts_it_stops_it_and_shows_a_wrong_setting(
    machine: Machine, broker: Broker, api: RoleApi
) -> None:
    def status() -> str:
        return machine.run("supervisorctl status k2hr3-osnl", check=False).stdout

    def running() -> str:
        found = re.search(r"RUNNING +pid (\d+)", status())
        return found[1] if found else ""

    follow(SUPERVISORD, machine)
    # It runs as its user, and when it is killed it is started again
    first = wait_until(running, 20, "RUNNING")
    about = machine.run(f"stat -c %U /proc/{first}; grep Umask /proc/{first}/status").stdout
    assert about.split() == ["k2hr3-osnl", "Umask:", "0077"]
    machine.run(f"kill -9 {first}")
    works(broker, api)
    # When it is stopped, it ends by itself
    assert "stopped" in machine.run("supervisorctl stop k2hr3-osnl").stdout
    log = machine.run("cat /var/log/supervisor/supervisord.log").stdout
    assert "stopped: k2hr3-osnl (exit status 0)" in log
    # When a setting is wrong, that shows
    machine.write(SETTINGS, "[k2hr3]\ntimeout_seconds = soon\n")
    machine.run("supervisorctl start k2hr3-osnl", check=False)
    wait_until(lambda: "FATAL" in status(), 30, "FATAL")
    assert "timeout_seconds" in machine.run("tail -n 1 /var/log/supervisor/k2hr3-osnl.log").stdout


# --- cron ---------------------------------------------------------------------------------------

CRON_FILE = "/etc/cron.d/k2hr3-osnl"


def cron_jobs() -> list[tuple[str, str, str]]:
    """When, as which user, and what the cron file runs, those that are commented out included."""
    lines = (CONTRIB / "k2hr3-osnl.cron").read_text().splitlines()
    found = [re.fullmatch(r"(?:# )?([*0-9]\S*(?: \S+){4}) ([\w-]+) (.*)", line) for line in lines]
    jobs = [(match[1], match[2], match[3]) for match in found if match]
    assert len(jobs) == 3
    assert not any("%" in each for job in jobs for each in job)  # cron takes it for a line's end
    return jobs


def restart_cron(machine: Machine) -> str:
    """Have cron read its files, and run what is @reboot; returns what it logged until then."""
    machine.run("rm -f /run/crond.reboot; systemctl restart cron")
    own = f"journalctl --no-pager -o cat _PID={shown(machine, 'MainPID', 'cron')}"

    def read() -> str:
        log = machine.run(own).stdout
        return log if "Running @reboot jobs" in log else ""

    return wait_until(read, 20, "cron to have read its files")


def test_cron_runs_it_as_its_user_and_mails_what_goes_wrong(
    machine: Machine, broker: Broker, api: RoleApi, tmp_path: Path
) -> None:
    mail = "/var/tmp/mail"
    machine.write("/usr/sbin/sendmail", f"#!/bin/sh\ncat >>{mail}\n")
    machine.run("chmod 755 /usr/sbin/sendmail")
    # Given the file with everything in it switched on
    follow(CRON, machine)
    machine.run(f"sed -i '/^# [0-9]/s/^# //' {CRON_FILE}")
    assert "rror" not in restart_cron(machine)
    # and, since nobody waits for five minutes, each job at the start of cron
    for when, user, _ in cron_jobs():
        machine.run(f"sed -i 's|^{re.escape(when)} {user}|@reboot {user}|' {CRON_FILE}")
    assert machine.run(f"grep -c '^@reboot k2hr3-osnl ' {CRON_FILE}").stdout.strip() == "3"
    # When
    with OpenStack() as cloud:
        servers = cloud.add("DELETED", count=3)
        login = {"auth_url": cloud.auth_url, "username": cloud.user, "password": cloud.password}
        domains = {"user_domain_name": "Default", "project_domain_name": "Default"}
        auth = {**login, **domains, "project_name": PROJECT}
        machine.run("install -D -m 640 -g k2hr3 /dev/null /etc/openstack/clouds.yaml")
        machine.write(
            "/etc/openstack/clouds.yaml", json.dumps({"clouds": {"mine": {"auth": auth}}})
        )
        expected = deletions(broker, 5)
        restart_cron(machine)
        # Then
        wait_until(lambda: expected <= api.deleted, 20, "drain")
        wait_until(lambda: broker.depth(RETRY).total == 2 * len(servers), 20, "both catch-ups")
    assert machine.run(f"cat {mail}", check=False).returncode == 1
    # When something goes wrong
    machine.write(SETTINGS, "[k2hr3]\ntimeout_seconds = soon\n")
    restart_cron(machine)
    # Then root has mail about it
    said = wait_until(
        lambda: machine.run(f"grep -e ^To: -e timeout_seconds {mail}").stdout, 20, "mail"
    )
    assert "To: root" in said
    # And a file that cron does not take would have been seen
    machine.run(f"sed -i 's/ k2hr3-osnl flock/ nobody-such flock/' {CRON_FILE}")
    assert "rror" in restart_cron(machine)


@pytest.mark.parametrize("lock", [True, False], ids=["lock", "no-lock"])
def test_the_cron_line_run_twice_at_once_is_harmless(
    machine: Machine, broker: Broker, api: RoleApi, lock: bool
) -> None:
    line = cron_jobs()[0][2]
    flock = f"flock -n {SETTINGS} "
    assert line.startswith(flock)
    expected = deletions(broker, 20)
    api.delay = 0.05
    both = f"{AS_USER} '{line if lock else line[len(flock) :]}'"
    done = machine.run(f"set +e; {both} & {both}; first=$?; wait $!; echo $first $?").stdout
    # Cron mails what is written
    assert sorted(done.split()) == (["0", "1"] if lock else ["0", "0"])
    assert sorted(str(request.cuk) for request in api.requests) == sorted(expected)
    assert all(depth.total == 0 for depth in broker.queues().values())


# --- Container ----------------------------------------------------------------------------------


def podman_line(begin: str, replaced: dict[str, str]) -> list[str]:
    """The arguments of a command line of podman from the head of the container file.

    Args:
        begin: its first arguments.
        replaced: parts of it, each with what to run in place of it.
    """
    head = (CONTRIB / "Containerfile").read_text().partition("\nFROM")[0]
    lines = re.sub(r"\\\n#\s+", "", head).splitlines()
    (line,) = [line for line in lines if re.match(rf"# +podman {begin} ", line)]
    for part, value in replaced.items():
        assert part in line
        line = line.replace(part, value)
    return shlex.split(line.lstrip("# "))[1:]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """A podman that has built the image."""
    line = podman_line(
        "build", {"build": "build --network=host --pull=never", "contrib/": f"{CONTRIB}/"}
    )
    with Box() as box:
        podman = Podman(box)
        podman(*line[:-1], str(ROOT))
        yield podman


def run_container(podman: Podman, broker: Broker, api: RoleApi) -> subprocess.Popen[bytes]:
    """Start the container `osnl` with nothing but the environment."""
    examples = {
        "rabbit://user:password@broker/": broker.url(),
        "https://k2hr3.example.com/v1/role": api.url,
        "run": "run --network=host --replace",
    }
    return subprocess.Popen(
        podman.command(*podman_line("run --name osnl", examples)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_the_container_works_by_its_environment_alone_and_stops_in_order(
    podman: Podman, broker: Broker, api: RoleApi
) -> None:
    process = run_container(podman, broker, api)
    works(broker, api)
    # A number as user, as Kubernetes wants it, and process 1
    inside = "id -u; id -g; cat /proc/1/cmdline; find /var/lib/apt/lists -type f"
    seen = podman("exec", "osnl", "sh", "-c", inside).stdout.split("\n")
    assert seen == ["10001", "10001", "python3\0/usr/local/bin/k2hr3-osnl\0"]
    podman("stop", "osnl")
    assert process.wait(20) == 0
    assert re.search("INFO stopped", podman("logs", "osnl").stdout)


def test_the_container_is_healthy_as_long_as_the_loop_turns(
    podman: Podman, broker: Broker, api: RoleApi
) -> None:
    process = run_container(podman, broker, api)
    works(broker, api)
    wait_until(lambda: podman("healthcheck", "run", "osnl").returncode == 0, 20, "its health")
    # When it is stuck for two minutes
    podman("kill", "--signal=STOP", "osnl")
    podman("exec", "osnl", "sh", "-c", 'touch -d "-121 seconds" "$OS_DEFAULT__METRICS_FILE"')
    assert podman("healthcheck", "run", "osnl", check=False).returncode == 1
    podman("kill", "osnl")
    process.wait(20)


def test_the_container_reads_a_settings_file_that_a_group_may_read(
    podman: Podman, broker: Broker, api: RoleApi, tmp_path: Path
) -> None:
    file = write_settings(tmp_path / "k2hr3_osnl.ini", settings(broker.url(), api.url))
    subprocess.run([*SUDO, "chgrp", "4242", str(file)], check=True)
    file.chmod(0o640)
    examples = {
        f"-v {SETTINGS}:": f"--network=host -v {file}:",
        f"$(stat -c %g {SETTINGS})": str(file.stat().st_gid),
    }
    line = podman_line("run --rm", examples)
    done = podman(*line).stdout
    assert re.search(rf"^ok +settings.*{SETTINGS}", done, re.M), done
    denied = podman(*[word for word in line if word not in ("--group-add", "4242")], check=False)
    assert denied.returncode == 78, denied.stdout
