"""Real OpenStack notifications: oslo.messaging in a process of its own, like a service has it.

    with Notifier(broker.url()) as neutron:
        neutron.notify("port.delete.end", port(cuk, ["10.0.0.5"]))

The half in our process needs the standard library only. The other half is this same file run as
a program by an interpreter that has oslo.messaging; they talk in JSON lines.
"""

from __future__ import annotations

import contextlib
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: A notification: event type and payload, and optionally priority and request context.
Event = tuple[Any, ...]

PROJECT = "2f3b6a1c9d8e4f70a5b4c3d2e1f00918"
USER = "7c1d0e9f8a7b4c6d9e2f1a0b3c4d5e6f"
NETWORK = "8d0b1f57-3f0c-4d4e-9a41-7b3d6f1c2e95"
SUBNET = "b1a5c3d7-6e2f-4b8a-9c0d-1e2f3a4b5c6d"

#: A request context as neutron sends it (the main members), 0.7 kB of each notification.
CONTEXT: dict[str, Any] = {
    "user_id": USER,
    "user_name": "nova",
    "project_id": PROJECT,
    "project_name": "service",
    "domain": None,
    "user_domain": "default",
    "project_domain": "default",
    "is_admin": True,
    "is_admin_project": True,
    "auth_token": None,
    "request_id": "req-5b6c791d-5709-4f36-8fbe-c3e02869e35d",
    "global_request_id": "req-0f3a6b9c-11d2-4e53-8a7f-6c5d4e3f2a1b",
    "roles": ["admin", "member", "reader", "service"],
    "system_scope": None,
    "user_identity": f"{USER} {PROJECT} - default default",
}


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
        options: more of `[oslo_messaging_rabbit]`, say `{"ssl": "true", "ssl_ca_file": …}`.
        python: an interpreter that has oslo.messaging.
        timeout: seconds that starting, and each call, may take.

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
        options: dict[str, str] | None = None,
        python: str = sys.executable,
        timeout: float = 60,
    ) -> None:
        self.errors: list[str] = []
        self.timeout = timeout
        rabbit = {
            "amqp_durable_queues": str(durable),
            "rabbit_quorum_queue": str(quorum),
            **({"kombu_compression": compression} if compression else {}),
            **(options or {}),
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
            [python, "-I", "-W", "ignore", os.path.abspath(__file__)],
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
            line = self._replies.get(timeout=self.timeout)
        except queue.Empty:
            raise TimeoutError(f"the notifier did not answer in {self.timeout} s") from None
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


# Payloads as the services send them, in shape and size


def port(cuk: str, addresses: Iterable[str], **changes: Any) -> dict[str, Any]:
    """Payload of neutron's `port.delete.end` (and of `port.create.end`, `port.update.end`).

    Args:
        cuk: instance id, `device_id` of the port.
        addresses: of the port, IPv4 or IPv6.
        changes: other values for members of `port`; one that is `...` is left out.
    """
    port_id = str(uuid.uuid4())
    members = {
        "id": port_id,
        "name": "",
        "network_id": NETWORK,
        "tenant_id": PROJECT,
        "project_id": PROJECT,
        "mac_address": f"fa:16:3e:{port_id[0:2]}:{port_id[2:4]}:{port_id[4:6]}",
        "admin_state_up": True,
        "status": "ACTIVE",
        "device_id": cuk,
        "device_owner": "compute:nova",
        "standard_attr_id": 48211,
        "fixed_ips": [{"subnet_id": SUBNET, "ip_address": address} for address in addresses],
        "allowed_address_pairs": [],
        "extra_dhcp_opts": [],
        "security_groups": [
            "4f1c8d9a-0b7e-4a53-9c26-5d8e7f6a1b20",
            "e93a7b15-2c4d-4f86-b0a1-8c9d3e5f7a64",
        ],
        "description": "",
        "binding:vnic_type": "normal",
        "binding:profile": {},
        "binding:host_id": "compute-017.region1.example.com",
        "binding:vif_type": "ovs",
        "binding:vif_details": {
            "port_filter": True,
            "connectivity": "l2",
            "bridge_name": "br-int",
            "datapath_type": "system",
            "ovs_hybrid_plug": False,
            "bound_drivers": {"0": "openvswitch"},
        },
        "port_security_enabled": True,
        "qos_policy_id": None,
        "qos_network_policy_id": None,
        "resource_request": None,
        "propagate_uplink_status": True,
        "numa_affinity_policy": None,
        "ip_allocation": "immediate",
        "dns_name": "web-7f9c",
        "dns_domain": "",
        "dns_assignment": [
            {"ip_address": address, "hostname": "web-7f9c", "fqdn": "web-7f9c.cloud.example.com."}
            for address in addresses
        ],
        "tags": [],
        "created_at": "2026-03-02T08:14:51Z",
        "updated_at": "2026-03-02T08:15:07Z",
        "revision_number": 4,
    }
    members.update(changes)
    kept = {name: value for name, value in members.items() if value is not ...}
    return {"port_id": port_id, "port": kept}


def instance(cuk: str) -> dict[str, Any]:
    """Payload of nova's versioned `instance.delete.end` (topic `versioned_notifications`)."""
    flavor = _nova(
        "FlavorPayload",
        "1.4",
        flavorid="a22d5517-147c-4147-a0d1-e698df5cd4e3",
        name="m1.small",
        memory_mb=2048,
        vcpus=1,
        root_gb=20,
        ephemeral_gb=0,
        swap=0,
        rxtx_factor=1.0,
        vcpu_weight=0,
        disabled=False,
        is_public=True,
        extra_specs={"hw:watchdog_action": "disabled"},
        projects=None,
        description=None,
    )
    return _nova(
        "InstanceActionPayload",
        "1.8",
        uuid=cuk,
        user_id=USER,
        tenant_id=PROJECT,
        reservation_id="r-npxv0e40",
        display_name="web-7f9c",
        display_description="web-7f9c",
        host_name="web-7f9c",
        host="compute-017.region1.example.com",
        node="compute-017.region1.example.com",
        os_type=None,
        architecture="x86_64",
        availability_zone="nova",
        flavor=flavor,
        image_uuid="155d900f-4e14-4e4c-a73d-069cbf4541e6",
        key_name="ops",
        kernel_id="",
        ramdisk_id="",
        created_at="2026-03-02T08:14:49Z",
        launched_at="2026-03-02T08:15:09Z",
        updated_at="2026-03-09T17:02:11Z",
        terminated_at="2026-03-09T17:02:11Z",
        deleted_at="2026-03-09T17:02:11Z",
        state="deleted",
        power_state="pending",
        task_state=None,
        progress=0,
        ip_addresses=[],
        block_devices=[],
        metadata={"role": "web"},
        locked=False,
        locked_reason=None,
        auto_disk_config="MANUAL",
        fault=None,
        request_id="req-5b6c791d-5709-4f36-8fbe-c3e02869e35d",
        action_initiator_user=USER,
        action_initiator_project=PROJECT,
    )


def compute_instance(cuk: str) -> dict[str, Any]:
    """Payload of nova's unversioned `compute.instance.delete.end`."""
    return {
        "tenant_id": PROJECT,
        "user_id": USER,
        "instance_id": cuk,
        "display_name": "web-7f9c",
        "reservation_id": "r-npxv0e40",
        "hostname": "web-7f9c",
        "instance_type": "m1.small",
        "instance_type_id": 5,
        "instance_flavor_id": "a22d5517-147c-4147-a0d1-e698df5cd4e3",
        "architecture": "x86_64",
        "memory_mb": 2048,
        "disk_gb": 20,
        "vcpus": 1,
        "root_gb": 20,
        "ephemeral_gb": 0,
        "host": "compute-017.region1.example.com",
        "node": "compute-017.region1.example.com",
        "availability_zone": "nova",
        "cell_name": "",
        "created_at": "2026-03-02 08:14:49+00:00",
        "terminated_at": "2026-03-09T17:02:11.000000",
        "deleted_at": "2026-03-09T17:02:11.000000",
        "launched_at": "2026-03-02T08:15:09.000000",
        "image_ref_url": "http://10.20.0.5:9292/images/155d900f-4e14-4e4c-a73d-069cbf4541e6",
        "os_type": None,
        "kernel_id": "",
        "ramdisk_id": "",
        "state": "deleted",
        "state_description": "",
        "progress": "",
        "access_ip_v4": None,
        "access_ip_v6": None,
        "image_meta": {"base_image_ref": "155d900f-4e14-4e4c-a73d-069cbf4541e6", "min_disk": "20"},
        "metadata": {"role": "web"},
    }


def noise() -> list[tuple[str, dict[str, Any]]]:
    """`(event_type, payload)` of the everyday events that a listener for deletions skips."""
    cuk = str(uuid.uuid4())
    network = {
        "id": NETWORK,
        "name": "internal",
        "project_id": PROJECT,
        "tenant_id": PROJECT,
        "admin_state_up": True,
        "mtu": 1450,
        "status": "ACTIVE",
        "subnets": [SUBNET],
        "shared": False,
        "availability_zones": ["nova"],
        "provider:network_type": "vxlan",
        "provider:segmentation_id": 4711,
        "router:external": False,
        "created_at": "2026-03-01T10:00:00Z",
        "revision_number": 1,
    }
    updated = compute_instance(cuk)
    updated.update(state="active", old_state="building", deleted_at="", terminated_at="")
    versioned = instance(cuk)
    versioned["nova_object.data"].update(state="active", deleted_at=None, terminated_at=None)
    return [
        ("port.create.end", port(cuk, ["10.0.0.5"], status="DOWN")),
        ("port.update.end", port(cuk, ["10.0.0.5", "2001:db8::5"])),
        ("instance.update", versioned),
        ("compute.instance.update", updated),
        ("network.create.end", {"network": network}),
    ]


def _nova(name: str, version: str, /, **data: Any) -> dict[str, Any]:
    return {
        "nova_object.name": name,
        "nova_object.namespace": "nova",
        "nova_object.version": version,
        "nova_object.data": data,
    }


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
