"""What README.md and contrib/OPERATIONS.md say, taken from their text and tried.

The lines that install the program are tried in `lab/test_install.py`.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2hr3_osnl import Config
from lab import wait_until
from lab.broker import Broker
from lab.listener import PROGRAM, ListenerProcess
from lab.notifier import Notifier, instance, port
from lab.role_api import RoleApi

ROOT = PROGRAM.parent
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "contrib" / "OPERATIONS.md").read_text()
DOCUMENTS = {"README.md": README, "contrib/OPERATIONS.md": OPERATIONS}


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A RabbitMQ whose users and policies are those of the documents."""
    with Broker() as broker:
        yield broker


def block(text: str, language: str, word: str = "") -> str:
    """Return the first code block of a language that has a word."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return next(block for block in blocks if word in block)


def ctl_lines(text: str, word: str) -> list[list[str]]:
    """Return the arguments of each rabbitmqctl line that has a word."""
    lines = re.findall(r"^rabbitmqctl (.*)$", text, re.M)
    return [shlex.split(line) for line in lines if word in line]


def example(broker: Broker, api: RoleApi) -> dict[str, dict[str, object]]:
    """Return the README's first settings, with this broker and this API."""
    settings: dict[str, dict[str, object]] = {"k2hr3": {"api_url": api.url}}
    for section in re.findall(r"^\[(oslo.*)\]$", block(README, "ini", "transport_url"), re.M):
        settings[section] = {}
    url = broker.url(user="k2hr3", password="secret")
    settings["oslo_messaging_notifications"] = {"transport_url": url}
    return settings


def messages_of_the_log() -> list[str]:
    """Return the longest fixed part of each message that the program logs from INFO on."""
    levels = {"info", "warning", "error", "exception", "begin", "end"}
    fixed = []
    for node in ast.walk(ast.parse(PROGRAM.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_log = "LOG" in ast.dump(node.func) or "_troubles" in ast.dump(node.func)
            if of_log and node.func.attr in levels and node.args:
                parts = [
                    str(each.value)
                    for each in ast.walk(node.args[-1])
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
                fixed += [max(parts, key=len).strip(" ;:,")] if parts else []
    return fixed


def test_the_readme_is_read_in_one_go() -> None:
    assert README.count("\n") <= 300


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_and_section_that_a_document_names_is_there(name: str) -> None:
    text = DOCUMENTS[name]
    for path in re.findall(r"`((?:contrib|lab)/[\w./@-]+)`", text):
        assert (ROOT / path).exists(), path
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= anchors


def test_sections_of_the_other_document_are_there() -> None:
    for title in re.findall(r'"([^"]+)"\s+in\s+`contrib/OPERATIONS.md`', README):
        assert f"## {title}\n" in OPERATIONS


def test_every_line_of_the_log_is_explained() -> None:
    explained = re.sub(r"\s+", " ", OPERATIONS)
    found = messages_of_the_log()
    assert len(found) > 20
    unexplained = [text for text in found if text[:40] not in explained]
    assert unexplained == []


def test_every_command_is_in_the_readme() -> None:
    help_text = subprocess.run(
        [sys.executable, PROGRAM, "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^    ([a-z-]+) ", help_text, re.M)
    assert "listen" in commands
    assert "dead-letters" in commands
    for command in commands:
        assert f"| `{command}" in README, command


def test_the_first_settings_hear_neutron_and_nova(tmp_path: Path) -> None:
    path = tmp_path / "k2hr3_osnl.ini"
    path.touch(0o600)
    path.write_text(block(README, "ini", "transport_url"))
    config = Config.load(str(path))
    assert [source.exchange for source in config.sources] == ["neutron", "nova"]
    assert config.warnings == ()


def test_permissions_and_policy_of_the_readme_are_enough(broker: Broker, api: RoleApi) -> None:
    # Given the user and the policy of the README
    for arguments in ctl_lines(README, "k2hr3"):
        broker.ctl(*arguments)
    alive, gone = str(uuid.uuid4()), str(uuid.uuid4())
    with (
        Notifier(broker.url()) as neutron,
        Notifier(broker.url(), "nova", ["versioned_notifications"]) as nova,
        ListenerProcess(example(broker, api)) as listener,
    ):
        for service in (neutron, nova):
            service.notify("something.else", {})  # makes the exchange
        wait_until(lambda: len(broker.bindings("k2hr3_osnl")) >= 2, 30, "both bindings")
        # When both services publish
        neutron.notify("port.delete.end", port(alive, ["10.0.0.1"]))
        nova.notify("instance.delete.end", instance(gone))
        # Then both are heard, and nothing was refused
        wait_until(lambda: api.deleted >= {alive, gone}, 30, "both deletions")
        assert "403 ACCESS_REFUSED" not in listener.log
    policies = broker.ctl("list_queues", "name", "policy").splitlines()
    assert "k2hr3_osnl.retry\tk2hr3_osnl" in policies


def test_the_embedding_example_runs(broker: Broker, api: RoleApi, tmp_path: Path) -> None:
    (tmp_path / "my.ini").write_text(
        f"[oslo_messaging_notifications]\ntransport_url = {broker.url()}\nevent_type =\n"
        f"publisher_id =\n[k2hr3]\napi_url = {api.url}\n"
    )
    cuk = str(uuid.uuid4())
    with Notifier(broker.url()) as service:
        service.notify("port.update.end", {})  # makes the exchange
        process = subprocess.Popen(
            [sys.executable, "-c", block(OPERATIONS, "python")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            key = ("neutron", "notifications.audit")
            wait_until(lambda: key in broker.bindings("k2hr3_osnl"), 20, "the binding")
            service.notify("vm.deleted", {"vm": {"uuid": cuk}}, "audit")
            wait_until(lambda: cuk in api.deleted, 20, "its deletion")
        finally:
            process.kill()
            process.wait()
