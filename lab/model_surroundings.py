"""What surrounds the listener in lab.model: who publishes, what fails, and what is repaired."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import uuid
from dataclasses import dataclass
from typing import Any

import pika

import k2hr3_osnl as module
from lab.model_broker import BAD, GOOD, LATE, TOO_LONG, Answer, Broker, Channel, Clock

QUEUE = "k2hr3_osnl"
RETRY = f"{QUEUE}.retry"
DEAD_LETTER = f"{QUEUE}.dead_letter"
NEUTRON = ("neutron", "notifications.info")
NOVA = ("nova", "versioned_notifications.info")
NOVA_SOURCE = module.Source(
    exchange="nova",
    topic="versioned_notifications",
    event_type=re.compile(module.PRESETS["oslo_messaging_notifications:nova"]["event_type"]),
    publisher_id=None,
)
INSTANCES = [str(uuid.UUID(int=number)) for number in range(1, 31)]
KINDS = (
    *["port"] * 10,
    *["instance"] * 5,
    *["skipped"] * 2,
    "stubborn",
    "too long",
    "malformed",
    "router",
    "no address",
    "instance lives",
)
INTERVAL = 10  #: retry_interval_seconds


@dataclass(eq=False)
class Sent:
    """A notification that was published."""

    fate: str  # "ignored", "malformed", "deletion", or "too long" for K2HR3
    query: str  # of the DELETE that it must lead to
    cuk: str
    is_stubborn: bool = False  # its DELETE fails until all is repaired
    is_made: bool = False
    is_excused: bool = False  # lost where nobody could help it
    failures: int = 0


class Surroundings:
    """The settings, the broker and the Role API of one history, and the steps that change them."""

    def __init__(self, seed: int) -> None:
        random.seed(seed)
        self.clock = Clock()
        self.broker = Broker(self.clock, self._on_gone)
        self.broker.exchanges |= {"neutron", "nova"}
        self.sent: dict[bytes, Sent] = {}
        self.is_api_down = random.random() < 0.1
        self.is_repaired = False  # the end of the history has come
        self.is_clock_true = True  # the wall clock was never set
        pool = random.choice((QUEUE, QUEUE, ""))
        self.limit = random.choice((0, 0, 20))
        self.config = module.Config(
            sources=(module.Source(pool=pool), dataclasses.replace(NOVA_SOURCE, pool=pool)),
            rabbit=module.Rabbit(
                rabbit_qos_prefetch_count=random.choice((3, 6, 20)),
                rabbit_quorum_queue=random.random() < 0.5,
            ),
            k2hr3=module.K2hr3(
                api_url="http://127.0.0.1:1/v1/role",
                retry_interval_seconds=INTERVAL,
                concurrency=random.choice((1, 1, 3)),
                dead_letter_after_seconds=self.limit,
            ),
        )
        self.inbox = [QUEUE] if pool else [NEUTRON[1], NOVA[1]]
        if not pool:
            self.repair_broker()
        if random.random() < 0.3:
            for name in (QUEUE, RETRY, DEAD_LETTER):
                self.broker.declare(name, "quorum", 20)

    def _on_gone(self, body: bytes, is_last: bool, cause: str) -> None:
        """Be told by the broker that a message is gone, see `Broker.remove`."""
        raise NotImplementedError

    def answer(self, job: Any) -> Answer:
        """Choose what the Role API answers to a job's DELETE."""
        if isinstance(job, module.Delivery):
            sent = self.sent[job.body]
            if sent.fate == "too long":
                return TOO_LONG
            if sent.is_stubborn:
                return BAD[0]
        if self.is_repaired:
            return GOOD
        if self.is_api_down or random.random() < 0.1:
            return random.choice(BAD)
        return LATE if random.random() < 0.05 else GOOD

    # What comes from outside

    def send(self, kind: str = "", is_retry: bool = False) -> None:
        """Publish a notification.

        :param kind: one of KINDS; empty: a random one
        :param is_retry: to the retry queue, as a person or a stranger may
        """
        cuk = random.choice(INSTANCES)
        ips = tuple(f"192.0.2.{random.randrange(1, 250)}" for _ in range(random.choice((1, 2))))
        kind = kind or random.choice(KINDS)
        exchange, key = NOVA if kind.startswith("instance") else NEUTRON
        event, owner = "port.delete.end", "compute:nova"
        fate, deletion = "ignored", None
        if kind in ("port", "stubborn", "too long"):
            fate = "too long" if kind == "too long" else "deletion"
            deletion = module.Deletion(cuk, ips)
        elif kind == "instance":
            fate, deletion = "deletion", module.Deletion(cuk)
        elif kind == "malformed":
            fate, cuk = "malformed", "no UUID"
        elif kind == "skipped":
            event = "port.create.end"
        elif kind == "router":
            owner = "network:router_interface"
        elif kind == "no address":
            ips = ()
        port = {
            "device_id": cuk,
            "device_owner": owner,
            "fixed_ips": [{"ip_address": ip} for ip in ips],
        }
        payload: Any = {"port": port}
        if exchange == "nova":
            event = "instance.delete.end"
            state = "active" if kind == "instance lives" else "deleted"
            payload = {"nova_object.data": {"uuid": cuk, "state": state}}
        message = {
            "message_id": str(len(self.sent)),
            "publisher_id": "network.a",
            "event_type": event,
            "priority": "INFO",
            "payload": payload,
            "timestamp": "",
        }
        envelope = {"oslo.version": "2.0", "oslo.message": json.dumps(message)}
        body = json.dumps(envelope).encode()
        query = deletion.query if deletion else ""
        is_stubborn = kind == "stubborn"
        self.sent[body] = Sent(fate, query, cuk, is_stubborn)
        # the events of the retry queue are not filtered
        is_retry = is_retry or (random.random() < 0.03 and kind != "skipped")
        if is_retry and RETRY in self.broker.queues:
            self.sent[body].fate = "malformed" if fate == "ignored" else fate
            self.broker.put(self.broker.queues[RETRY], body, pika.BasicProperties())
        elif not self.broker.notify(exchange, key, body):
            del self.sent[body]

    def send_many(self) -> None:
        """Publish a burst."""
        for _ in range(random.randrange(2, 12)):
            self.send()

    def wait(self) -> None:
        """Let time pass."""
        self.clock.elapsed += random.choice((0.1, 0.5, 1, 2, 4, 6, 12, 31, 61))

    def set_clock(self) -> None:
        """Set the wall clock."""
        self.is_clock_true = False
        self.clock.offset += random.choice((-86400, -40, -3, 3, 40, 86400))

    def fail_api(self) -> None:
        self.is_api_down = True

    def repair_api(self) -> None:
        self.is_api_down = False

    def other_takes(self) -> None:
        """Have another listener take a deletion and make it."""
        found = self.broker.queues.get(random.choice((*self.inbox, RETRY)))
        if found and found.ready:
            message = found.ready.popleft()
            self.sent[message.body].is_made = True
            self.broker.lost[found.name] += 1
            self.broker.remove(message, "others")

    # What the broker suffers

    def lose_connection(self) -> None:
        if self.broker.connections:
            random.choice(self.broker.connections).cut()

    def _consuming(self) -> list[Channel]:
        channels = [each for c in self.broker.connections for each in c.channels]
        return [each for each in channels if each.queue and not each.is_cut]

    def close_channel(self) -> None:
        """Close a consumer's channel, as consumer_timeout does."""
        channels = self._consuming()
        if channels:
            random.choice(channels).cut()

    def cancel(self) -> None:
        """Cancel a consumer, its queue being still there."""
        channels = [each for each in self._consuming() if each.is_consuming]
        if channels:
            random.choice(channels).cancelled_by_broker()

    def delete_queue(self) -> None:
        self.broker.delete(random.choice((*self.inbox, RETRY, DEAD_LETTER)))

    def make_queue(self) -> None:
        """Have another listener, or a service, make a queue that is missing."""
        name = random.choice((*self.inbox, RETRY, DEAD_LETTER))
        self.broker.declare(name, random.choice(("classic", "quorum")))
        self._bind_inbox()

    def _bind_inbox(self) -> None:
        if QUEUE not in self.inbox:
            for exchange, key in (NEUTRON, NOVA):
                if key in self.broker.queues:
                    self.broker.bindings.add((exchange, key, key))

    def remake_exchange(self) -> None:
        """Delete an exchange, or make the missing ones again."""
        if len(self.broker.exchanges) < 2:
            self.broker.exchanges |= {"neutron", "nova"}
            return
        name = random.choice(("neutron", "nova"))
        self.broker.exchanges.discard(name)
        self.broker.bindings = {each for each in self.broker.bindings if each[0] != name}

    def deny(self) -> None:
        self.broker.denied.add(random.choice(("read", "configure", "bind", "write")))

    def purge(self) -> None:
        """Lose what waits in the retry queue, as by a policy."""
        if RETRY in self.broker.queues:
            self.broker.purge(self.broker.queues[RETRY])

    def lose_leader(self) -> None:
        """Take the leader from a queue."""
        self.broker.leaderless.add(random.choice((*self.inbox, RETRY)))

    def fill(self) -> None:
        """Have a queue nack what is published to it."""
        self.broker.full.add(random.choice((RETRY, DEAD_LETTER)))

    def fail_publish(self) -> None:
        self.broker.publish_fault = random.choice(("alarm", "lost", "confirm lost"))

    def stop_broker(self) -> None:
        self.broker.is_up = False
        for connection in list(self.broker.connections):
            connection.cut()

    def repair_broker(self) -> None:
        self.broker.repair()
        self.broker.exchanges |= {"neutron", "nova"}
        if QUEUE not in self.inbox:
            for name in self.inbox:
                self.broker.declare(name)
        self._bind_inbox()
