"""Real OpenStack notifications: oslo.messaging in a process of its own, like a service has it.

    with Notifier(broker.url()) as neutron:
        neutron.notify("port.delete.end", port(cuk, ["10.0.0.5"]))

The half in our process needs the standard library only. The other half is this same file run as
a program by an interpreter that has oslo.messaging; they talk in JSON lines.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: A notification: event type and payload, and optionally priority and request context.
Event = tuple[Any, ...]

#: Payloads as the services send them, in shape and size, and `context`: a request context as
#: neutron sends it (the main members), 0.7 kB of each notification.
PAYLOADS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("payloads.json").read_text()
)
CONTEXT = PAYLOADS["context"]
#: Seconds that starting, and each call, may take.
PATIENCE = 60.0
SUBNET = "b1a5c3d7-6e2f-4b8a-9c0d-1e2f3a4b5c6d"


class Notifier:
    """One oslo.messaging notifier. As a context manager: started, and ended at the end.

    Args:
        url: transport URL.
        exchange: `control_exchange` of the service.
        topics: each notification goes to every one of them.
        driver: `messagingv2` (envelope 2.0) or `messaging` (bare).
        publisher_id: `network.<host>` for neutron; see FACTS.md for nova's.
        durable: `amqp_durable_queues`: exchange and default queue are declared durable.
        quorum: `rabbit_quorum_queue`: the default queue is a quorum queue (and durable).
        compression: `kombu_compression`: `gzip`, `bzip2` or none. (oslo documents `bz2`, but
            kombu does not know that name, and then no notification is sent.)

    Attributes:
        errors: what oslo logged as ERROR so far, oldest first. `notify` of oslo never raises:
            a notification that could not be sent shows up only here.
    """

    def __init__(
        self,
        url: str,
        exchange: str = "neutron",
        topics: Sequence[str] = ("notifications",),
        driver: str = "messagingv2",
        publisher_id: str = "network.host1",
        durable: bool = False,
        quorum: bool = False,
        compression: str | None = None,
    ) -> None:
        self.errors: list[str] = []
        rabbit = {
            "amqp_durable_queues": str(durable),
            "rabbit_quorum_queue": str(quorum),
            **({"kombu_compression": compression} if compression else {}),
        }
        settings = {
            "url": url,
            "topics": list(topics),
            "driver": driver,
            "publisher_id": publisher_id,
            "config": f"[DEFAULT]\ncontrol_exchange = {exchange}\n[oslo_messaging_rabbit]\n"
            + "".join(f"{key} = {value}\n" for key, value in rabbit.items()),
        }
        self._process = subprocess.Popen(
            # -I: the folder of this file is not searched for modules
            [sys.executable, "-I", "-W", "ignore", os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._ask(settings)
        except BaseException:
            self.close()
            raise

    def notify(
        self,
        event_type: str,
        payload: dict[str, Any],
        priority: str = "info",
        context: dict[str, Any] | None = None,
    ) -> None:
        """Send one notification and wait until oslo is done with it (see `errors`).

        Args:
            event_type, payload: as the service sends them; see `port`, `instance`, `noise`.
            priority: its name, from `audit` to `sample`.
            context: of the request; by default `CONTEXT`, `{}` for none.

        Raises:
            RuntimeError: the other process failed; with its error.
            TimeoutError: it did not answer in time, say because the broker is away.
        """
        self.notify_many([(event_type, payload, priority, context)])

    def notify_many(self, events: Iterable[Event]) -> None:
        """`notify` for each `(event_type, payload[, priority[, context]])`, in one go."""
        self._ask([list(event) for event in events])

    def close(self) -> None:
        """End the other process, at once if it still tries to send."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, question: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: _read says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        try:
            line = self._replies.get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"the notifier did not answer in {PATIENCE} s") from None
        if not line:
            self._replies.put("")
            raise RuntimeError(f"the notifier ended: exit {self._process.wait()}")
        reply = json.loads(line)
        self.errors += reply["errors"]
        if reply["failed"]:
            raise RuntimeError(f"the notifier failed: {reply['failed']}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")


# Payloads


def port(cuk: str, addresses: Iterable[str], **changes: Any) -> dict[str, Any]:
    """Payload of neutron's `port.delete.end` (and of `port.create.end`, `port.update.end`).

    Args:
        cuk: instance id, `device_id` of the port.
        addresses: of the port, IPv4 or IPv6.
        changes: other values for members of `port`; one that is `...` is left out.
    """
    port_id = str(uuid.uuid4())
    name = "web-7f9c"
    assignment = {"hostname": name, "fqdn": f"{name}.cloud.example.com."}
    members = {
        **copy.deepcopy(PAYLOADS["port"]),
        "id": port_id,
        "mac_address": f"fa:16:3e:{port_id[0:2]}:{port_id[2:4]}:{port_id[4:6]}",
        "device_id": cuk,
        "fixed_ips": [{"subnet_id": SUBNET, "ip_address": each} for each in addresses],
        "dns_assignment": [{"ip_address": each, **assignment} for each in addresses],
        **changes,
    }
    kept = {name: value for name, value in members.items() if value is not ...}
    return {"port_id": port_id, "port": kept}


def instance(cuk: str, **changes: Any) -> dict[str, Any]:
    """Payload of nova's versioned `instance.delete.end` (topic `versioned_notifications`)."""
    payload = copy.deepcopy(PAYLOADS["instance"])
    payload["nova_object.data"].update(uuid=cuk, **changes)
    return payload


def compute_instance(cuk: str, **changes: Any) -> dict[str, Any]:
    """Payload of nova's unversioned `compute.instance.delete.end`."""
    return {**copy.deepcopy(PAYLOADS["compute_instance"]), "instance_id": cuk, **changes}


def noise() -> list[tuple[str, dict[str, Any]]]:
    """`(event_type, payload)` of the everyday events that a listener for deletions skips."""
    cuk = str(uuid.uuid4())
    living: dict[str, Any] = {"state": "active", "terminated_at": None, "deleted_at": None}
    legacy = {"state": "active", "old_state": "building", "deleted_at": "", "terminated_at": ""}
    return [
        ("port.create.end", port(cuk, ["10.0.0.5"], status="DOWN")),
        ("port.update.end", port(cuk, ["10.0.0.5", "2001:db8::5"])),
        ("instance.update", instance(cuk, **living)),
        ("compute.instance.update", compute_instance(cuk, **legacy)),
        ("network.create.end", {"network": copy.deepcopy(PAYLOADS["network"])}),
    ]


# Bodies, where a service need not run


def notification(
    payload: object,
    event_type: object = "port.delete.end",
    version: str | None = "2.0",
    **members: object,
) -> bytes:
    """A message body as oslo.messaging makes it.

    Args:
        version: of its envelope; None for none, as the driver `messaging` sends it.
        members: in place of the usual ones; one that is `...` is left out.
    """
    message = {
        "message_id": str(uuid.uuid4()),
        "publisher_id": "network.host1",
        "event_type": event_type,
        "priority": "INFO",
        "payload": payload,
        "timestamp": "2026-03-02 08:14:51.000000",
        "_unique_id": uuid.uuid4().hex,
        "_context_user": "neutron",
        "_context_roles": ["a"],
        **members,
    }
    kept = {name: value for name, value in message.items() if value is not ...}
    return (json.dumps(kept) if version is None else enveloped(json.dumps(kept), version)).encode()


def enveloped(text: object, version: object = "2.0") -> str:
    """A text in the envelope of the driver `messagingv2`."""
    return json.dumps({"oslo.version": version, "oslo.message": text})


def notified(cuk: str, *addresses: str) -> bytes:
    """Neutron's notification of a deleted port."""
    return notification(port(cuk, addresses or ["10.0.0.5"]))


# The other process


class _Errors(logging.Handler):
    """Collects what is logged as ERROR, with the exception."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def take(self) -> list[str]:
        texts, self.texts = self.texts, []
        return texts


class _Context(dict[str, Any]):
    """A request context: oslo discards a plain dict, and asks any other for a safe copy."""

    def redacted_copy(self) -> _Context:
        return self


def _notifier(settings: dict[str, Any]) -> Any:
    import oslo_messaging
    from oslo_config import cfg

    conf = cfg.ConfigOpts()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(settings["config"])
        file.flush()
        # Read once, here, so that the file need not stay.
        conf([], project="notifier", default_config_files=[file.name])
    transport = oslo_messaging.get_notification_transport(conf, settings["url"])
    return oslo_messaging.Notifier(
        transport,
        settings["publisher_id"],
        driver=settings["driver"],
        topics=settings["topics"],
    )


def _answer(questions: queue.SimpleQueue[str], errors: _Errors, replies: Any) -> None:
    notifier: Any = None
    while True:
        question, failed = json.loads(questions.get()), ""
        try:
            if notifier is None:
                notifier = _notifier(question)
                question = []
            for event_type, payload, *rest in question:
                priority = rest[0] if rest else "info"
                context = rest[1] if len(rest) > 1 and rest[1] is not None else CONTEXT
                getattr(notifier, priority)(_Context(context), event_type, payload)
        except Exception as error:
            failed = f"{type(error).__name__}: {error}"
        reply = {"errors": errors.take(), "failed": failed}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _serve() -> None:
    """Answer the questions on standard input; end with it, even in the middle of sending."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing a library prints gets among the replies
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_answer, args=(questions, errors, replies), daemon=True).start()
    for line in sys.stdin:
        questions.put(line)
    os._exit(0)


if __name__ == "__main__":
    _serve()
