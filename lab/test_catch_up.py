"""Tests of contrib/k2hr3-osnl-catch-up, with the real openstacksdk and a stand-in for OpenStack."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from lab import wait_until
from lab.nova import PROJECT, SERVERS, TIME_FORMAT, Fault, OpenStack

CONTRIB = Path(__file__).resolve().parent.parent / "contrib"
PROGRAM = CONTRIB / "k2hr3-osnl-catch-up"
DEBIAN = "/usr/bin/python3"
BARE = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
HTML = "text/html; charset=utf-8"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(params=[sys.executable, DEBIAN], ids=["newest", "debian"])
def python(request: pytest.FixtureRequest) -> str:
    """A Python with the newest openstacksdk, and Debian's own."""
    return str(request.param)


@pytest.fixture
def cloud() -> Iterator[OpenStack]:
    """Keystone and Nova, both well."""
    with OpenStack() as cloud:
        yield cloud


def by_password(cloud: OpenStack) -> dict[str, str]:
    """How a user logs in, as `auth` of clouds.yaml."""
    return {
        "auth_url": cloud.auth_url,
        "username": cloud.user,
        "password": cloud.password,
        "user_domain_name": "Default",
        "project_name": PROJECT,
        "project_domain_name": "Default",
    }


def by_credential(cloud: OpenStack) -> dict[str, str]:
    """The same by an application credential."""
    return {
        "auth_url": cloud.auth_url,
        "application_credential_id": cloud.credential_id,
        "application_credential_secret": cloud.secret,
    }


WAYS = {"password": by_password, "v3applicationcredential": by_credential}


def variables(auth: Mapping[str, str], auth_type: str = "password") -> dict[str, str]:
    """A way to log in as environment variables."""
    named = {f"OS_{name.upper()}": value for name, value in auth.items()}
    return {**named, "OS_AUTH_TYPE": auth_type}


def write_clouds(folder: Path, auth: Mapping[str, str], auth_type: str = "password") -> None:
    """Write a way to log in to clouds.yaml in this folder (JSON is YAML, too)."""
    clouds = {"clouds": {"mine": {"auth_type": auth_type, "auth": auth}}}
    (folder / "clouds.yaml").write_text(json.dumps(clouds))


def command(python: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command line; as it is installed, Debian's Python is what the file itself names."""
    return [*([] if python == DEBIAN else [python]), str(PROGRAM), *arguments]


def catch_up(python: str, folder: Path, environment: Mapping[str, str], *arguments: str) -> Done:
    """Run the program in this folder, which is its home, too."""
    return subprocess.run(
        command(python, arguments),
        env={**BARE, "HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_failed(done: Done, cloud: OpenStack, expected: str) -> None:
    """It said in one line what was wrong, printed nothing that is piped, and no secret."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(expected, done.stderr), done.stderr
    assert_no_secret(done.stdout + done.stderr, cloud)


def assert_no_secret(output: str, cloud: OpenStack) -> None:
    """Neither credentials nor a token is in it."""
    secrets = [cloud.password, cloud.secret, *cloud.tokens]
    assert [secret for secret in secrets if secret in output] == []


# --- What is listed -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["variables", "clouds.yaml"])
@pytest.mark.parametrize("auth_type", WAYS)
def test_the_ids_of_deleted_servers_are_printed_one_a_line(
    cloud: OpenStack, python: str, tmp_path: Path, auth_type: str, place: str
) -> None:
    # Given: three pages of deleted servers, and others that are not deleted
    deleted = cloud.add("DELETED", count=2 * cloud.page_size + 1)
    cloud.add("SOFT_DELETED", count=2)
    cloud.add("ACTIVE", count=2)
    auth = WAYS[auth_type](cloud)
    environment = variables(auth, auth_type) if place == "variables" else {}
    if place == "clouds.yaml":
        write_clouds(tmp_path, auth, auth_type)
    # When
    done = catch_up(python, tmp_path, environment)
    # Then
    assert (done.returncode, done.stdout) == (0, "".join(f"{each}\n" for each in deleted))
    assert re.fullmatch(r"k2hr3-osnl-catch-up: 7 servers deleted since \S+Z\n", done.stderr), (
        done.stderr
    )
    assert_no_secret(done.stdout + done.stderr, cloud)
    # And Nova was asked for nothing else
    assert {(each.method, each.path) for each in cloud.of_nova} == {("GET", SERVERS)}


def test_an_access_rule_for_servers_is_enough_where_version_documents_need_a_login(
    cloud: OpenStack, python: str, tmp_path: Path
) -> None:
    cloud.discovery = False
    deleted = cloud.add("DELETED", count=2)
    environment = variables(by_credential(cloud), "v3applicationcredential")
    done = catch_up(python, tmp_path, environment, "--quiet")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, deleted, "")


@pytest.mark.parametrize("auth_type", WAYS)
def test_a_token_that_expires_between_pages_is_renewed(
    cloud: OpenStack, python: str, tmp_path: Path, auth_type: str
) -> None:
    cloud.token_uses = 2
    deleted = cloud.add("DELETED", count=3 * cloud.page_size)
    done = catch_up(python, tmp_path, variables(WAYS[auth_type](cloud), auth_type))
    assert (done.returncode, done.stdout.split()) == (0, deleted), done.stderr
    assert len(cloud.tokens) == 2


def test_nothing_deleted_is_no_error(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 servers" in done.stderr


@pytest.mark.parametrize(
    ("since", "ago"),
    [
        ("90m", timedelta(minutes=90)),
        ("3h", timedelta(hours=3)),
        ("2d", timedelta(days=2)),
        (None, timedelta(hours=3)),
    ],
)
def test_it_looks_back_so_far_in_utc(
    cloud: OpenStack, tmp_path: Path, since: str | None, ago: timedelta
) -> None:
    inside = cloud.add("DELETED", ago=ago - timedelta(minutes=5))
    cloud.add("DELETED", ago=ago + timedelta(minutes=5))
    environment = {**variables(by_password(cloud)), "TZ": "Asia/Tokyo"}
    began = datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None)
    done = catch_up(sys.executable, tmp_path, environment, *(["--since", since] if since else []))
    ended = datetime.now(timezone.utc).replace(tzinfo=None)
    assert done.stdout.split() == inside, done.stderr
    (query,) = [each.query for each in cloud.of_nova]
    (sent,) = query["changes-since"]
    assert began <= datetime.strptime(sent, TIME_FORMAT) + ago <= ended
    assert query["status"] == ["DELETED"]


def test_a_time_is_sent_as_it_is_given(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    time = "2026-11-24T00:00:00Z"
    done = catch_up(python, tmp_path, variables(by_password(cloud)), "--since", time)
    assert [each.query["changes-since"] for each in cloud.of_nova] == [[time]], done.stderr


def test_ids_are_printed_in_one_spelling_and_once(cloud: OpenStack, tmp_path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(3)]
    bare = ids[0].replace("-", "").upper()
    body = json.dumps({"servers": [{"id": each} for each in [bare, ids[1].upper(), *ids]]})
    cloud.faults[1] = Fault(200, body)
    done = catch_up(sys.executable, tmp_path, variables(by_password(cloud)))
    assert done.stdout.split() == ids, done.stderr
    assert " 3 servers" in done.stderr


def test_the_listeners_own_variables_are_not_openstacksdks(
    cloud: OpenStack, python: str, tmp_path: Path
) -> None:
    write_clouds(tmp_path, by_password(cloud))
    own = {
        "OS_DEFAULT__TRANSPORT_URL": "rabbit://k2hr3:{x}@host/",
        "OS_K2HR3__TIMEOUT_SECONDS": "9",
    }
    deleted = cloud.add("DELETED")
    done = catch_up(python, tmp_path, own)
    assert (done.returncode, done.stdout.split()) == (0, deleted), done.stderr


# --- What goes wrong ----------------------------------------------------------------------------

#: A proxy's error page that shows the request.
PAGE = "<html>\n<h1>Bad Gateway</h1>\n<pre>X-Auth-Token: {token}\npa55{w}ord</pre>\n</html>"
MARKER = '{"badRequest": {"code": 400, "message": "marker [x] not found"}}'
FORBIDDEN = '{"forbidden": {"code": 403, "message": "Only administrators may {token}"}}'


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            Fault(500, '{"computeFault": {"code": 500}}'),
            "GET http://[^?]*/servers was answered 500",
        ),
        (Fault(502, PAGE, HTML), "answered 502; see the log"),
        (Fault(200, PAGE, HTML), r"unexpected content \(JSONDecodeError\)"),
        (Fault(200, '{"no": []}'), r"unexpected content \(KeyError\)"),
        (Fault(200, "[]"), r"unexpected content \(TypeError\)"),
        (Fault(400, MARKER), "answered 400; a server may have been archived"),
        (Fault(403, FORBIDDEN), "answered 403; check that the user has the role admin"),
        (Fault(200, '{"servers": [{"id": "7"}]}'), "id is not a UUID: '7'"),
        (Fault(200, '{"servers": [{"name": "n"}]}'), "id is not a UUID: None"),
        (Fault(200, '{"servers": [{"id": "%s"}]}' % ("x" * 5000)), "id is not a UUID: 'xxx"),
    ],
    ids=lambda value: f"{value.status}{value.body[:14]}" if isinstance(value, Fault) else "",
)
def test_a_wrong_answer_of_nova_half_way(
    cloud: OpenStack, python: str, tmp_path: Path, fault: Fault, expected: str
) -> None:
    cloud.add("DELETED", count=3 * cloud.page_size)
    cloud.faults[2] = fault
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert_failed(done, cloud, expected)
    assert len(cloud.of_nova) == 2
    assert len(done.stderr) < 700


def test_a_server_of_a_cell_that_is_down_is_not_taken_for_deleted(
    cloud: OpenStack, python: str, tmp_path: Path
) -> None:
    """Nova lists such servers with this status where it is asked without filters."""
    cloud.row = {"status": "UNKNOWN"}
    cloud.add("DELETED")
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert_failed(done, cloud, "but it is 'UNKNOWN'")


@pytest.mark.parametrize(
    ("auth_type", "wrong"),
    [("password", "password"), ("v3applicationcredential", "application_credential_secret")],
)
def test_wrong_credentials(
    cloud: OpenStack, python: str, tmp_path: Path, auth_type: str, wrong: str
) -> None:
    auth = {**WAYS[auth_type](cloud), wrong: "wr0ng"}
    done = catch_up(python, tmp_path, variables(auth, auth_type))
    assert_failed(done, cloud, "POST .*/v3/auth/tokens was answered 401; check the credentials")
    assert "wr0ng" not in done.stderr


def test_a_token_that_is_never_accepted(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    cloud.token_uses = 0
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert_failed(done, cloud, "GET .*/servers was answered 401; check the credentials")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(Fault(503, PAGE, HTML), "answered 503"), (Fault(200, PAGE, HTML), ".")],
    ids=["503", "html"],
)
def test_a_wrong_answer_of_keystone(
    cloud: OpenStack, python: str, tmp_path: Path, fault: Fault, expected: str
) -> None:
    cloud.keystone_fault = fault
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert_failed(done, cloud, expected)


def test_no_nova_in_the_catalog(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    cloud.catalog_type = "volumev3"
    done = catch_up(python, tmp_path, variables(by_password(cloud)))
    assert_failed(done, cloud, "compute")


def test_nobody_listens_there(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:{cloud.secret}@127.0.0.1:{unused.getsockname()[1]}/v3"
        auth = {**by_password(cloud), "auth_url": url}
        done = catch_up(python, tmp_path, variables(auth))
    assert_failed(done, cloud, "Connection refused")


#: Older ones say where, newer ones pass over the file.
NOT_YAML = "(clouds.yaml, line [34]: not valid YAML|not given: auth_url)"


@pytest.mark.parametrize(
    ("environment", "clouds", "expected"),
    [
        ({}, "", "auth_url"),
        ({"OS_CLOUD": "other"}, "clouds: {mine: {}}", "Cloud other was not found"),
        ({"OS_AUTH_TYPE": "magic"}, "", "magic"),
        ({}, "clouds:\n mine:\n  auth: {password: *pa55{w}ord", NOT_YAML),
        ({}, "clouds:\n mine:\n  auth:\n   password: !pa55{w}ord", NOT_YAML),
        ({}, "clouds: [x]", "unexpected content"),
    ],
    ids=["none", "unknown-cloud", "unknown-way", "alias", "tag", "list"],
)
def test_wrong_settings(
    cloud: OpenStack,
    python: str,
    tmp_path: Path,
    environment: Mapping[str, str],
    clouds: str,
    expected: str,
) -> None:
    if clouds:
        (tmp_path / "clouds.yaml").write_text(clouds)
    done = catch_up(python, tmp_path, environment)
    assert_failed(done, cloud, f"wrong settings of openstacksdk: .*{expected}.*; check the OS_ var")


def test_without_openstacksdk(cloud: OpenStack, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(PROGRAM)], env=BARE, capture_output=True, text=True
    )
    assert_failed(done, cloud, "No module named 'openstack'; install python3-openstacksdk")


def test_it_gives_up_after_its_time_out(cloud: OpenStack, python: str, tmp_path: Path) -> None:
    cloud.keystone_fault = Fault(None)
    done = catch_up(python, tmp_path, variables(by_password(cloud)), "--timeout", "1")
    assert_failed(done, cloud, "gave up after 1 s")


def test_it_gives_up_where_keystoneauth_waits_for_itself(
    cloud: OpenStack, python: str, tmp_path: Path
) -> None:
    """A version document that needs a login needs itself; here it is another service's."""
    auth = {**by_password(cloud), "auth_url": f"{cloud.url}/elsewhere"}
    done = catch_up(python, tmp_path, variables(auth), "--timeout", "3")
    assert_failed(done, cloud, "gave up after 3 s; check that auth_url is Keystone's")


def test_nothing_is_printed_when_nova_stalls_half_way(
    cloud: OpenStack, python: str, tmp_path: Path
) -> None:
    cloud.add("DELETED", count=2 * cloud.page_size)
    cloud.faults[2] = Fault(None)
    process = subprocess.Popen(
        command(python),
        env={**BARE, "HOME": str(tmp_path), **variables(by_password(cloud))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(cloud.of_nova) == 2, 30, "the second page")
        process.send_signal(signal.SIGALRM)  # as the time-out itself does, only now
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    done = Done(process.args, process.returncode, output, errors)
    assert_failed(done, cloud, "gave up after 600 s")


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_ids_that_cannot_be_written(
    cloud: OpenStack, python: str, tmp_path: Path, reader: str
) -> None:
    cloud.add("DELETED")
    if reader == "full":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    done = subprocess.run(
        command(python),
        env={**BARE, "HOME": str(tmp_path), **variables(by_password(cloud))},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert done.returncode == 1
    assert re.fullmatch("k2hr3-osnl-catch-up: cannot write the ids: .*\n", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", ""],
        ["--since", "3"],
        ["--since", "3w"],
        ["--since", "-3h"],
        ["--since", "3h "],
        ["--since", "2026-11-24"],
        ["--since", "2026-11-24T00:00:00"],
        ["--since", "2026-11-24T00:00:00+09:00"],
        ["--since", "99999999999d"],
        ["--since", "9999999d"],
        ["--timeout", "0"],
        ["--timeout", "1.5"],
        ["more"],
    ],
    ids=" ".join,
)
def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = catch_up(sys.executable, tmp_path, {}, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr


def test_the_help_has_an_example_and_the_variables(python: str, tmp_path: Path) -> None:
    done = catch_up(python, tmp_path, {}, "--help")
    assert done.returncode == 0
    for text in (
        "k2hr3-osnl-catch-up --since 3h | k2hr3-osnl delete --queue -",
        "clouds.yaml",
        "OS_CLOUD",
        "OS_APPLICATION_CREDENTIAL_SECRET",
        "OS_PASSWORD",
    ):
        assert text in done.stdout


# --- How it is run ------------------------------------------------------------------------------


def test_the_unit_ends_it_only_after_its_own_time_out(tmp_path: Path) -> None:
    unit = (CONTRIB / "k2hr3-osnl-catch-up@.service").read_text()
    limit = re.search(r"^TimeoutStartSec=(\d+)$", unit, re.M)
    own = re.search(
        r"longer in all \(default\s+(\d+)\)", catch_up(DEBIAN, tmp_path, {}, "--help").stdout
    )
    assert limit
    assert own
    assert int(limit[1]) > int(own[1])


def unit_command() -> list[str]:
    """The command line of the service `k2hr3-osnl-catch-up@3h`."""
    unit = (CONTRIB / "k2hr3-osnl-catch-up@.service").read_text()
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.M)
    return shlex.split(line.replace("%i", "3h"))


def cron_command() -> list[str]:
    """What cron does with the line that looks back 3 hours."""
    lines = [
        line for line in (CONTRIB / "k2hr3-osnl.cron").read_text().split("\n") if "--since" in line
    ]
    assert ["%" in line for line in lines] == [False, False]  # which ends a command of cron's
    assert [re.findall(r"--since (\w+)", line) for line in lines] == [["3h"], ["3d"]]
    # "# ", five fields and the user
    return ["/bin/sh", "-c", lines[0].split(" ", 7)[7]]


@pytest.mark.parametrize("way", ["systemd", "cron"])
@pytest.mark.parametrize("well", [True, False], ids=["well", "failing"])
def test_the_command_lines_give_the_ids_to_delete(
    cloud: OpenStack, tmp_path: Path, way: str, well: bool
) -> None:
    # Given: a program in place of k2hr3-osnl that keeps what it is given
    (tmp_path / "k2hr3-osnl-catch-up").symlink_to(PROGRAM)
    listener = tmp_path / "k2hr3-osnl"
    listener.write_text('#!/bin/sh\necho "$@" >arguments\nexec cat >ids\n')
    listener.chmod(0o755)
    deleted = cloud.add("DELETED", count=2 * cloud.page_size)
    if not well:
        cloud.faults[2] = Fault(500)
    # When
    line = [
        part.replace("/usr/local/bin", str(tmp_path))
        for part in (unit_command() if way == "systemd" else cron_command())
    ]
    done = subprocess.run(
        line,
        env={**BARE, "HOME": str(tmp_path), **variables(by_password(cloud))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # Then
    assert (tmp_path / "ids").read_text().split() == (deleted if well else [])
    options = (tmp_path / "arguments").read_text()
    assert re.fullmatch(r"-c /etc/k2hr3/k2hr3_osnl.ini .*delete --queue -\n", options)
    # And systemd sees a failure in the exit code, cron in what is written
    if way == "systemd":
        assert (done.returncode == 0) == well
    assert bool(done.stderr) == (way == "systemd" or not well)
