"""`make faults`: the listener goes through a table of faults, on real parts, and loses nothing.

Broker, cluster, oslo.messaging, TLS, signals, namespaces and file systems are real; the Role API
is the lab's. One line each: a function below provokes the fault, says how it was seen to be there,
and repairs it; the `Stage` publishes, counts and judges. "Published" is confirmed by the broker,
mandatory and not returned; "lost" is published, but neither deleted nor in a queue.

    python -m lab.faults [--quick] [ROW ...]       # exit 1 if any row falls short
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import re
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pika
import psutil

import k2hr3_osnl
from lab import wait_until
from lab.broker import Broker, Depth
from lab.certificates import Pair
from lab.faults_stage import (
    CUK,
    KEY,
    UNIQUE,
    Lab,
    Load,
    Result,
    Row,
    Shortfall,
    Stage,
    Tally,
    pause,
    play,
    publish_fast,
)
from lab.listener import PROGRAM, ListenerProcess
from lab.notifier import Notifier, noise
from lab.odd import ODD_HEADERS
from lab.proxy import Proxy
from lab.role_api import (
    Blocked,
    CloseKeptAlive,
    Drip,
    Fault,
    Hang,
    Kept,
    Reset,
    RoleApi,
    Slow,
    Status,
)

#: An interpreter that has k2hr3-osnl 1.0.8; made by the Makefile.
PREDECESSOR = PROGRAM.parent / ".venv-predecessor" / "bin" / "python"

#: Where the logs of the listeners stay.
LOGS = PROGRAM.parent / ".faults"

COLUMNS = (
    "fault",
    "published",
    "deleted",
    "left in the retry queue",
    "dead-lettered",
    "missing, and told of",
    "lost",
    "deleted more than once",
    "requests to the API while it was down",
    "seconds from repair to empty queues",
    "how it was seen",
)

ROWS: list[Row] = []


def add(name: str, fault: str, run: Callable[[Stage], None], **options: Any) -> None:
    """Make a row of a function that takes a stage."""
    ROWS.append(Row(name, fault, run, **options))


def row(parts: str = "alone") -> Callable[[Any], Any]:
    """Make a row of a function with its name and its docstring, on these parts of the lab."""

    def make(run: Callable[[Stage], None]) -> Callable[[Stage], None]:
        add(run.__name__.replace("_", "-"), " ".join((run.__doc__ or "").split()), run, parts=parts)
        return run

    return make


beside, alone, on_cluster = row("shared"), row("alone"), row("cluster")


# --- 1. The Role API ---------------------------------------------------------------------------


def api_fault(
    stage: Stage,
    listener: ListenerProcess,
    begin: Callable[[], object],
    end: Callable[[], object],
    log: str,
    api: str = "",
) -> None:
    """Deletions come all the while the API has a fault, as seen in the log and by the API."""
    stage.publish(5)
    stage.wait_until_deleted()
    begin()
    stage.down()
    began = time.monotonic()
    stage.publish()
    listener.wait_for_log(log)
    stage.wait_until_consumed()
    pause(max(0.0, began + stage.pick(4, 30) - time.monotonic()))
    found = listener.wait_for_log(log)
    stage.see(f"{len(found)} × {log.split('|')[0]!r} in the log")
    if api:
        stage.see(api, len(stage.api.requests) > 5)
    end()
    stage.repaired()


def plain_api_fault(fault: Fault | None, log: str, stage: Stage) -> None:
    """One that the lab's API plays, or (None) refused connections."""
    listener, api = stage.listen(), stage.api
    if fault is None:
        api_fault(stage, listener, api.refuse, api.accept, log)
    else:
        begin = partial(setattr, api, "fault", fault)
        end = partial(setattr, api, "fault", None)
        api_fault(stage, listener, begin, end, log, "requests counted by the API")


API_FAULTS: tuple[tuple[str, Optional[Fault], str, str], ...] = (
    ("503", Status(503), "answers 503", "role: 503"),
    ("400", Status(400), "answers 400", "role: 400"),
    ("403", Status(403), "answers 403", "role: 403"),
    ("429", Status(429, {"Retry-After": "3"}), "answers 429 with Retry-After", "role: 429"),
    ("reset", Reset(), "resets connections", "Connection reset"),
    ("refused", None, "refuses connections", "Connection refused"),
    ("silent", Hang(), "accepts and never answers", "timed out"),
    ("drip", Drip(), "answers one byte a second", "did not end in time|timed out"),
    ("keep-alive", CloseKeptAlive(), "closes kept-alive connections under the request", "without "),
)
for name, fault, what, log in API_FAULTS:
    add(f"api-{name}", f"Role API {what}", partial(plain_api_fault, fault, log))


def server_context(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert_file, pair.key_file)
    return context


@beside
def api_certificate(stage: Stage) -> None:
    """Role API's TLS certificate expired, then renewed"""
    made = stage.lab.certificates
    stage.api = stage.stack.enter_context(RoleApi(tls=server_context(made.server)))
    stage.apis.append(stage.api)
    listener = stage.listen(stage.settings(ca_file=made.ca_file))

    def expire() -> None:
        stage.api.set_tls(server_context(made.expired))
        pause(stage.api.keep_alive_seconds + 1)  # until the good connection is gone

    before = stage.api.connections
    renew = partial(stage.api.set_tls, server_context(made.server))
    api_fault(stage, listener, expire, renew, "certificate has expired")
    refused = stage.api.connections - before - 1
    stage.see(f"{refused} connections refused over it", refused)


def in_namespace(stage: Stage, *commands: str) -> str:
    """An interpreter in a mount namespace of its own, in which these commands have run.

    Works for root, and for everyone where the kernel allows user namespaces.
    """
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        raise Shortfall(
            "needs a mount namespace: run as root, or allow user namespaces "
            f"(kernel.unprivileged_userns_clone=1): {probe.stderr.decode()}"
        )
    script = " && ".join((*commands, f'exec {sys.executable} "$@"'))
    return python_of(stage, f"exec unshare -rm /bin/sh -c '{script}' sh \"$@\"")


def python_of(stage: Stage, script: str) -> str:
    """A program of these lines of shell, to be used as an interpreter."""
    file = stage.lab.folder / f"python-{stage.row.name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o700)
    return str(file)


@beside
def api_name(stage: Stage) -> None:
    """Role API's name not resolvable, then resolvable"""
    hosts, switch = stage.lab.folder / "hosts", stage.lab.folder / "nsswitch.conf"
    good = "127.0.0.1 localhost role-api.lab\n"
    hosts.write_text(good)
    switch.write_text("hosts: files\n")
    sections = stage.settings()
    sections["k2hr3"]["api_url"] = stage.api.url.replace("127.0.0.1", "role-api.lab")
    mounts = (f"mount --bind {hosts} /etc/hosts", f"mount --bind {switch} /etc/nsswitch.conf")
    listener = stage.listen(sections, python=in_namespace(stage, *mounts))

    def forget() -> None:
        hosts.write_text("127.0.0.1 localhost\n")
        pause(stage.api.keep_alive_seconds + 1)  # until no connection is left to use

    seen = "NameResolutionError|Failed to resolve|Name or service"
    api_fault(stage, listener, forget, lambda: hosts.write_text(good), seen)


# --- 2. A Role API that blocks, beside the predecessor -----------------------------------------


def store_down(fault: Fault, predecessor: bool, stage: Stage) -> None:
    """K2HR3's store is down for a while; when is the API there for nobody else, what is left?"""
    if predecessor:
        if not PREDECESSOR.exists():
            raise Shortfall(f"{PREDECESSOR} is missing: use make faults")
        stage.listen(
            python=str(PREDECESSOR),
            environment={"PYTHONPATH": ""},
            driver="import sys, k2hr3_osnl; sys.exit(k2hr3_osnl.main())",
        )
    else:
        stage.listen()
    stage.publish(5)
    stage.wait_until_deleted()
    busy, ended = [0.0], threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not ended.wait(0.02):
            now = time.monotonic()
            if stage.api._in_work:  # a GET would wait behind it
                busy[0] += now - last
            last = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    stage.down(fault)
    began = time.monotonic()
    stage.publish()
    pause(max(0.0, began + stage.pick(12, 60) - time.monotonic()))
    stage.see("requests while it was down", len(stage.api.requests) > 5)
    stage.repaired()
    if predecessor:
        requests = -1

        def idle() -> bool:  # nothing queued, nothing held, nothing asked for a while
            nonlocal requests
            if stage.depth(stage.pool).total or requests != len(stage.api.requests):
                requests = len(stage.api.requests)
                pause(2)
                return False
            return True

        wait_until(idle, 600, "the predecessor to come to rest")
        stage.empty_after = time.monotonic() - stage.repaired_at
    else:
        stage.settle()
    ended.set()
    watcher.join()
    left = len(stage.api.members().keys() & stage.published.keys())
    stage.seen.append(f"{left} members left, the API there for nobody else {busy[0]:.1f} s")
    stage.must("no members are left", predecessor or not left)


STORE_DOWN: tuple[tuple[str, Fault, str], ...] = (  # 2.5 s: a tenth of what the real one takes
    ("blocks", Blocked(2.5), "blocks, one request at a time, 2.5 s each"),
    ("refuses", Status(400), "answers 400 at once"),
)
for name, fault, what in STORE_DOWN:
    text = f"Role API whose store is down {what}"
    add(f"store-{name}", text, partial(store_down, fault, False))
    old, text = f"store-{name}-predecessor", f"the same {name}, k2hr3-osnl 1.0.8 (to compare)"
    add(old, text, partial(store_down, fault, True), durable=False, judged=False)


@alone
def api_slow(stage: Stage) -> None:
    """Role API takes 15 s each (time-out 20), deletions come all the while"""
    each, hold = stage.pick((1.5, 3.0), (15.0, 30.0))
    change = f"k2hr3_osnl.Listener.hold_seconds = {hold}"
    stage.listen(stage.settings(timeout_seconds=20), change=change)
    stage.down(Slow(each))
    load = Load(stage, stage.count, stage.count / (3 * hold))
    load.start()
    while load.is_alive() or stage.depth(stage.pool).total:
        pause(0.1)
    # the last one to come may have to wait for as long as all the others
    last = time.monotonic() - max(stage.published.values())
    stage.see(f"the queue was empty {last:.1f} s after the last one came")
    stage.must("within timeout_seconds and hold_seconds", last < 20 + hold)
    stage.see(f"{stage.depth(stage.retry).total} waited", stage.depth(stage.retry).total)
    stage.repaired()


def kept_members(kept: Kept, seconds: float, stage: Stage) -> None:
    """Store operations time out: members stay, and a letter for each says so."""
    listener = stage.listen(change=f"k2hr3_osnl.DOUBTFUL_SECONDS = {seconds}")
    stage.publish(5)
    stage.wait_until_deleted()
    stage.down(kept)
    in_doubt = 15
    stage.publish(in_doubt)
    wait_until(lambda: len(stage.api.kept()) == in_doubt, 60, "members without an index")
    stage.repaired()
    stage.publish()
    stage.dead_letters = in_doubt
    stage.settle()
    wait_until(lambda: stage.depth(stage.dead).total == in_doubt, 60, "a letter for each")
    letters = stage.broker.messages(stage.dead)
    stage.must(
        "each letter is of a member that was kept",
        all(any(cuk.encode() in each.body for cuk in stage.api.kept()) for each in letters),
    )
    stage.see(f"{len(stage.api.members())} members left", stage.api.members())
    stage.must("no other is left", stage.api.members().keys() == stage.api.kept())
    command(stage, listener, "dead-letters", "--replay")
    stage.must("a replay leaves them", stage.depth(stage.dead).total == in_doubt)


KEPT: tuple[tuple[str, Kept, float, str], ...] = (
    ("403", Kept(403), 8, "answers 403, then 204"),
    ("reset", Kept(None), 8, "resets the connection, then answers 204"),
    ("slow", Kept(204, seconds=0.5), 0.4, "answers 204 after 8 s (here 0.5 s)"),
)
for name, kept, seconds, what in KEPT:
    text = f"Role API keeps the member of 15 and {what}"
    add(f"kept-{name}", text, partial(kept_members, kept, seconds))


# --- 3. The broker -----------------------------------------------------------------------------


def broker_ends(end: Callable[[Broker], None], stage: Stage) -> None:
    stage.api.delay = 0.005
    listener = stage.listen()
    with stage.load(seconds=stage.pick(8, 20)):
        end(stage.broker)
        stage.see("its process was gone", not stage.broker.running)
        stage.see("the listener had no broker", listener.wait_for_log("connecting again"))
        stage.broker.start()
        stage.repaired()


for name, end in (("stopped", Broker.stop), ("killed", Broker.kill)):
    how = f"{name}{' (kill -9)' if name == 'killed' else ''}"
    text = f"broker {how} and started, under load"
    add(f"broker-{name}", text, partial(broker_ends, end), parts="alone")


@contextlib.contextmanager
def alarm(stage: Stage) -> Iterator[None]:
    """A memory alarm, until the end of it."""
    stage.broker.alarm(True)
    try:
        stage.see("the broker reports the alarm", stage.broker.alarmed())
        yield
    finally:
        stage.broker.alarm(False)


@alone
def alarm_api_up(stage: Stage) -> None:
    """memory alarm, API up"""
    stage.api.delay = stage.pick(0.01, 0.003)
    stage.listen()
    stage.publish()
    stage.must("the alarm comes in the middle of the work", stage.done < stage.count)
    with alarm(stage):
        stage.wait_until_deleted()
        stage.wait_until_consumed()
    stage.repaired()


@contextlib.contextmanager
def alarm_in_outage(stage: Stage) -> Iterator[ListenerProcess]:
    """A memory alarm while the API is down, with a listener to which a copy was refused.

    Everything is published before, to a queue that an earlier listener left.
    """
    stage.declare(stage.pool)
    with contextlib.closing(stage.broker.amqp()) as connection:
        connection.channel().queue_bind(stage.pool, stage.exchange, KEY)
    stage.publish()
    stage.down(Status(503))
    with alarm(stage):
        listener = stage.listen()
        listener.wait_for_log(f"no copy to {stage.retry}", 40)
        yield listener


@alone
def alarm_api_down(stage: Stage) -> None:
    """memory alarm, API down"""
    with alarm_in_outage(stage):
        stage.see("copies were refused, deliveries held", stage.depth(stage.pool).unacked)
    pause(stage.pick(3, 30))
    stage.repaired()


@alone
def alarm_sigterm(stage: Stage) -> None:
    """SIGTERM during a memory alarm, API down; then a new start"""
    with alarm_in_outage(stage) as listener:
        stage.stop(listener)
    stage.repaired()
    listener.start()


@alone
def queue_deleted(stage: Stage) -> None:
    """notification queue deleted with deliveries held"""
    listener = stage.listen(stage.settings(timeout_seconds=20))
    stage.down(Hang())
    held = stage.pick(100, 190)
    stage.publish(held)
    wait_until(lambda: stage.depth(stage.pool) == Depth(0, held), 10, "all to be held")
    stage.broker.delete_queue(stage.pool)
    stage.see(f"{held} were held", listener.wait_for_log("the broker cancelled the consumer"))
    stage.repaired()
    stage.publish()


@alone
def exchange_deleted(stage: Stage) -> None:
    """exchange deleted, and made again by a notifier, under load"""
    stage.listen()
    with stage.load(seconds=10) as load:
        stage.broker.delete_exchange(stage.exchange)
        stage.see("it was gone", stage.exchange not in stage.broker.exchanges())
        with load.running:  # what now goes to the default queue only is not meant for us
            with Notifier(stage.broker.url(), stage.exchange, durable=True) as neutron:
                neutron.notify(*noise()[0])
                stage.must("the notifier has no error", not neutron.errors)
            stage.see("our binding was gone", not stage.broker.bindings(stage.pool))
            stage.broker.delete_queue(KEY)
        stage.repaired()


def access_taken(
    take: Callable[[Broker], None], give: Callable[[Broker], None], stage: Stage
) -> None:
    stage.api.delay = 0.005
    listener = stage.listen()
    with stage.load(seconds=stage.pick(8, 30)):
        take(stage.broker)
        try:
            close_connections_of(stage, listener)
            refused = "refused: check user, password"
            stage.see("the listener was refused", listener.wait_for_log(refused, 40))
            pause(stage.pick(2, 20))
        finally:
            give(stage.broker)
        stage.repaired()


permissions = partial(
    access_taken,
    lambda broker: broker.clear_permissions("guest"),
    lambda broker: broker.set_permissions("guest"),
)
password = partial(
    access_taken,
    lambda broker: broker.set_password("guest", "another"),
    lambda broker: broker.set_password("guest", "guest"),
)
text = "vhost permissions taken and given back, under load"
add("permissions", text, permissions, parts="alone")
text = "the user's password changed and changed back, under load"
add("password", text, password, parts="alone")


def set_consumer_timeout(stage: Stage, seconds: int, tick: int) -> None:
    for name, value in (("consumer_timeout", seconds), ("channel_tick_interval", tick)):
        stage.broker.evaluate(f"application:set_env(rabbit, {name}, {1000 * value})")


@alone
def consumer_timeout(stage: Stage) -> None:
    """consumer_timeout 60 s, API takes 20 s each and once 90 s, on quorum queues"""
    limit, tick, usual, once, hold = stage.pick((12, 1, 3, 18, 4), (60, 60, 20, 90, 30))
    set_consumer_timeout(stage, limit, tick)
    stage.stack.callback(set_consumer_timeout, stage, 1800, 60)
    # RabbitMQ 4.3 cancels the consumer, before it closed the channel.
    lost = "channel of .* was closed|PRECONDITION_FAILED.*ack.*timed out|cancelled"
    sections = stage.settings(timeout_seconds=2 * once)
    sections["oslo_messaging_rabbit"]["rabbit_quorum_queue"] = True  # 4.3: for these only
    listener = stage.listen(sections, change=f"k2hr3_osnl.Listener.hold_seconds = {hold}")
    stage.api.fault = Slow(usual)
    stage.publish()
    wait_until(lambda: stage.done >= 3, 10 * usual, "the first slow ones")
    half, patience = stage.count / 2, 60 + stage.count / 5
    wait_until(lambda: stage.depth(stage.retry).total > half, patience, "what waited to move")
    is_lost = re.search(lost, listener.log)
    stage.must("no consumer lost over an API that takes its usual time", not is_lost)
    began = len(stage.api.requests)
    stage.api.fault = Slow(once)
    wait_until(lambda: len(stage.api.requests) > began, 3 * usual, "another request")
    stage.api.fault = Slow(usual)
    found = listener.wait_for_log(lost, limit + tick + once + 10)[0]
    cancelled = "cancelled" in found
    stage.see("the broker cancelled a consumer" if cancelled else "the broker closed a channel")
    stage.repaired()
    stage.settle()


@alone
def closed_connections(stage: Stage) -> None:
    """`rabbitmqctl close_all_connections`, thirty times in an API outage, on a quorum queue with
    x-delivery-limit 5"""
    stage.declare(stage.pool, queue_type="quorum", delivery_limit=5)
    sections = stage.settings(timeout_seconds=600)  # one attempt hangs, so the others are held
    sections["oslo_messaging_rabbit"].update(rabbit_quorum_queue=True, rabbit_retry_backoff=0)
    listener = stage.listen(sections)
    times = stage.pick(10, 30)
    stage.down(Hang())
    for number in range(1, times + 1):
        stage.publish(stage.count // times)
        wait_until(lambda: stage.depth(stage.pool).unacked, 30, "deliveries in hand")
        stage.broker.ctl("close_all_connections", "the lab says so")
        wait_until_back(listener, number, "CONNECTION_FORCED")
    again = sum(
        "delivered it before" in str((message.properties.headers or {}).get("x-k2hr3-reason"))
        for message in stage.broker.messages(stage.retry)
    )
    stage.see(f"{times} × CONNECTION_FORCED, {again} notifications delivered again", again)
    stage.repaired()
    stage.publish()


def wait_until_back(listener: ListenerProcess, times: int, lost: str) -> None:
    """Wait until a listener has lost its connection so many times, and has one again."""
    listener.wait_for_log(lost, 40, times)
    listener.wait_for_log("connected to the broker", 60, times + 1)


# --- 4. Policies of the broker, and what else its queues may have --------------------------------

#: The pattern of openstack-helm's and kolla-ansible's policies: every queue.
EVERY_QUEUE = r"^(?!(amq\.)|(.*_fanout_)|(reply_)).*"
#: Where a policy of others moves what it takes away.
ELSEWHERE = {"dead_letter_exchange": "", "dead_letter_routing_key": "elsewhere"}
#: A listener that looks for missing retries more often than each 30 s.
OFTEN = """
import time
set_up = k2hr3_osnl.Listener._set_up
def set_up_often(listener, session):
    set_up(listener, session)
    session.next_set_up = min(session.next_set_up, time.monotonic() + 5)
k2hr3_osnl.Listener._set_up = set_up_often
"""


def their_policy(stage: Stage, **definition: object) -> None:
    """A policy of others: names as RabbitMQ has them, with "_" for "-"."""
    named = {name.replace("_", "-"): value for name, value in definition.items()}
    stage.broker.policy("theirs", EVERY_QUEUE, named)


def our_policy(stage: Stage) -> None:
    """What a listener says is to be done against policies of others."""
    config = k2hr3_osnl.Config(sources=(k2hr3_osnl.Source(pool=stage.pool),))
    program, *arguments = shlex.split(k2hr3_osnl.policy_command(config))
    assert program == "rabbitmqctl"
    stage.broker.ctl(*arguments)


def outage_under_policy(stage: Stage, seconds: float) -> ListenerProcess:
    """Deletions come while the API is down, the most of them after a look, and wait for so long."""
    listener = stage.listen(change=OFTEN if stage.quick else "")
    stage.down(Status(503))
    stage.publish(5)
    listener.wait_for_log("K2HR3 is in trouble", 20)
    stage.wait_until_consumed()
    pause(stage.pick(6, 31))  # until a look when nothing is being copied, which nobody logs
    stage.publish()
    stage.wait_until_consumed()
    pause(seconds)
    return listener


@alone
def policy_ttl(stage: Stage) -> None:
    """policy of others: message-ttl, API down for longer"""
    ttl = stage.pick(12, 70)
    their_policy(stage, message_ttl=1000 * ttl)
    began = time.monotonic()
    listener = outage_under_policy(stage, 0)
    listener.wait_for_log("deletions left .* set_policy", ttl + 60)
    after = time.monotonic() - began - ttl
    wait_until(lambda: stage.told >= stage.count, 60, "all to be told of")
    stage.see(f"first told of {after:.0f} s after the TTL", after < 60)
    stage.repaired()


@alone
def policy_max_length(stage: Stage) -> None:
    """policy of others: max-length with drop-head, API down"""
    their_policy(stage, max_length=10)
    listener = outage_under_policy(stage, 0)
    began = time.monotonic()
    listener.wait_for_log("deletions left .* set_policy", 60)
    stage.see(f"told of after {time.monotonic() - began:.0f} s, {stage.depth(stage.retry)}")
    stage.repaired()


@alone
def policy_moved_away(stage: Stage) -> None:
    """policy of others: message-ttl and dead-letter-exchange, API down for longer"""
    ttl = stage.pick(12, 70)
    their_policy(stage, message_ttl=1000 * ttl, **ELSEWHERE)
    outage_under_policy(stage, ttl)
    wait_until(lambda: stage.told >= stage.count, 90, "all to be told of")
    stage.see("nothing was left in the retry queue", not stage.depth(stage.retry).total)
    stage.repaired()


@alone
def policy_expires(stage: Stage) -> None:
    """policy of others: expires, API down for longer, the listener looks more often"""
    expires = stage.pick(8, 60)
    their_policy(stage, expires=1000 * expires)
    outage_under_policy(stage, 2 * expires)
    stage.see(f"the queues were there after {2 * expires} s", stage.depth(stage.retry).total)
    stage.repaired()


@alone
def policy_ours(stage: Stage) -> None:
    """policy of others: all of these, API down and listener stopped for longer, and ours above
    it"""
    ttl = stage.pick(8, 70)
    limits = {"message_ttl": 1000 * ttl, "expires": 1000 * ttl, "max_length": 10}
    their_policy(stage, delivery_limit=5, **limits, **ELSEWHERE)
    our_policy(stage)
    listener = outage_under_policy(stage, ttl)
    stage.broker.publish(b"malformed", stage.exchange, KEY)
    stage.dead_letters = 1
    wait_until(lambda: stage.depth(stage.dead).total == 1, 10, "a dead letter")
    stage.stop(listener)
    pause(2 * ttl)
    waiting = stage.depth(stage.retry).total
    stage.see(f"{waiting} waited after {3 * ttl} s", waiting == stage.count)
    stage.see("and a dead letter", stage.depth(stage.dead).total == 1)
    stage.repaired()
    listener.start()


@alone
def policy_delivery_limit(stage: Stage) -> None:
    """policy of others: delivery-limit 5 on quorum queues, twelve reconnects with retries held"""
    their_policy(stage, delivery_limit=5)
    sections = stage.settings(retry_interval_seconds=600, concurrency=10)
    sections["oslo_messaging_rabbit"].update(rabbit_quorum_queue=True, rabbit_retry_backoff=0)
    listener = stage.listen(sections)
    stage.api.refused_cuks = {str(uuid.uuid4()) for _ in range(10)}
    headers = {"x-k2hr3-attempts": 20, "x-k2hr3-last-failure": int(time.time())}
    waiting = pika.BasicProperties(delivery_mode=2, headers=headers)
    for cuk in stage.api.refused_cuks:  # held from the retry queue all the while
        stage.broker.publish(stage.lab.body(cuk), "", stage.retry, waiting)
        stage.published[cuk] = time.monotonic()
    for number in range(1, 13):
        wait_until(lambda: stage.depth(stage.retry).unacked == 10, 30, "ten retries held")
        stage.publish((stage.count - 10) // 12)
        close_connections_of(stage, listener)
        wait_until_back(listener, number, "CONNECTION_FORCED")
    stage.see(f"12 × CONNECTION_FORCED, {len(stage.broker.messages(stage.retry))} ready")
    stage.stop(listener)
    stage.api.refused_cuks = set()
    stage.repaired()
    stage.publish()
    stage.listen(stage.settings(retry_interval_seconds=1))  # due now


@alone
def letters_listed(stage: Stage) -> None:
    """dead letters listed 30 times on a quorum queue with x-delivery-limit 5, then replayed"""
    stage.declare(stage.dead, queue_type="quorum", delivery_limit=5)
    listener = stage.listen()
    stage.api.fault = Status(431)
    stage.publish(stage.pick(20, 200))
    stage.wait_until_consumed()
    for _ in range(30):
        printed = command(stage, listener, "dead-letters")
    stage.see(f"{len(printed.splitlines())} letters at the thirtieth time")
    stage.repaired()
    command(stage, listener, "dead-letters", "--replay")
    stage.publish()


def command(stage: Stage, listener: ListenerProcess, *arguments: str) -> str:
    """Run a command with a listener's settings; returns what it printed."""
    line = [sys.executable, str(PROGRAM), "-c", str(listener.settings), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    stage.must(f"{arguments} ends with 0: {done.stderr[-300:]}", done.returncode == 0)
    return done.stdout


# --- 5. A cluster ------------------------------------------------------------------------------


def two_listeners(stage: Stage) -> ListenerProcess:
    """Start two, and return the first."""
    stage.api.delay = 0.005
    first = stage.listen()
    stage.listen()
    return first


def leader(stage: Stage, queue: str = "") -> Broker:
    """The node that leads a queue, by default the notification queue."""
    name = stage.broker.queue(queue or stage.pool)["leader"]
    return next(node for node in stage.lab.nodes if node.running and node.name == name)


def wait_for_another(stage: Stage) -> None:
    """Wait for one more deletion."""
    before = stage.done
    wait_until(lambda: stage.done > before, 60, "a deletion")


def ready_by_amqp(node: Broker, queue: str) -> int:
    """How many ready messages a node says that a queue has."""
    with contextlib.closing(node.amqp()) as connection:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)


def bring_back(stage: Stage, *nodes: Broker) -> None:
    """Start nodes, and wait until each of the stage's queues has all its members again."""

    def all_online() -> bool:
        queues = map(stage.broker.queue, (stage.pool, stage.retry, stage.dead))
        return all(len(queue["online"]) == len(stage.lab.nodes) for queue in queues)

    for node in nodes:
        node.start()
    wait_until(all_online, 60, "all members of the queues to be online")


@on_cluster
def node_killed(stage: Stage) -> None:
    """cluster: the leader's node killed, then another after it is back, under load"""
    two_listeners(stage)
    with stage.load(seconds=stage.pick(45, 120)):
        for which in ("the leader", "another"):
            node = leader(stage)
            node.kill()
            stage.see(f"{which} was gone", not node.running)
            wait_for_another(stage)
            bring_back(stage, node)
        stage.repaired()


@on_cluster
def leader_missing(stage: Stage) -> None:
    """cluster: two of three nodes killed for a minute, API down: queues without a leader"""
    listener = stage.listen()
    stage.down(Status(503))
    stage.publish()
    wait_until(lambda: stage.depth(stage.retry).ready >= stage.count - 3, 60, "all to wait")
    # the leader first: it would go on telling how many it has, alone as it is
    leading = leader(stage, stage.retry)
    (other, _) = (node for node in stage.lab.nodes if node is not leading)
    for node in (leading, other):
        node.kill()
    try:
        wait_until(lambda: ready_by_amqp(stage.broker, stage.retry) == 0, 60, "no leader")
        stage.see("the broker calls the retry queue empty")
        time.sleep(stage.pick(40, 70))  # the listener looks at its queues every 30 s
        stage.must("nothing is told to be missing", stage.told == 0)
    finally:
        bring_back(stage, leading, other)
    stage.repaired()
    stage.wait_until_deleted()
    stage.must(
        "nothing is told to be missing, nor deleted", "was deleted, with" not in listener.log
    )


@on_cluster
def listener_killed_of_two(stage: Stage) -> None:
    """cluster: one of two listeners killed, under load"""
    first = two_listeners(stage)
    with stage.load(seconds=stage.pick(4, 20)):
        first.wait_for_log("deleted instance=", 20)
        first.kill()
        stage.see("it was at work, and is gone", first.process.returncode == -signal.SIGKILL)
        stage.repaired()


@on_cluster
def listener_and_node_killed(stage: Stage) -> None:
    """cluster: one listener and one node killed together, under load"""
    first = two_listeners(stage)
    with stage.load(seconds=stage.pick(30, 60)):
        first.wait_for_log("deleted instance=", 20)
        node = leader(stage)
        first.kill()
        node.kill()
        stage.see("both are gone", first.process.returncode == -signal.SIGKILL and not node.running)
        wait_for_another(stage)
        bring_back(stage, node)
        stage.repaired()


@on_cluster
def one_refused(stage: Stage) -> None:
    """cluster: one of two listeners always answered 400"""
    refusing = stage.stack.enter_context(RoleApi())
    refusing.fault = Status(400)
    stage.listen()
    stage.listen(stage.settings(refusing))
    with stage.load(seconds=stage.pick(15, 120)) as load:
        load.join()
    stage.repaired()
    stage.settle()
    stage.see(f"{len(refusing.requests)} × 400", len(refusing.requests) > 3)
    longest = max(
        request.ended - stage.published[request.cuk]
        for request in stage.api.requests
        if request.ended and request.status == 204 and request.cuk in stage.published
    )
    stage.see(f"longest wait {longest:.1f} s")
    stage.must("no deletion waits longer than a minute", longest < 60)


# --- 6. The network ----------------------------------------------------------------------------


@contextlib.contextmanager
def behind_proxy(
    stage: Stage, seconds: float, heartbeat: int = 60
) -> Iterator[tuple[Proxy, ListenerProcess]]:
    """A listener that reaches the broker through a proxy, and a load over so many seconds."""
    proxy = stage.stack.enter_context(Proxy(stage.broker.port))
    sections = stage.settings(url=stage.broker.url(hosts=[f"127.0.0.1:{proxy.port}"]))
    back_after_1_s = {"rabbit_retry_backoff": 0, "heartbeat_timeout_threshold": heartbeat}
    sections["oslo_messaging_rabbit"].update(back_after_1_s)
    stage.api.delay = 0.005
    listener = stage.listen(sections)
    with stage.load(seconds):
        yield proxy, listener
        stage.repaired()


@beside
def network_cut(stage: Stage) -> None:
    """network cut"""
    with behind_proxy(stage, seconds=8) as (proxy, listener):
        proxy.refuse()
        stage.see("connection lost", listener.wait_for_log("connecting again"))
        pause(stage.pick(3, 20))
        proxy.accept()


@beside
def network_stalled(stage: Stage) -> None:
    """network stalled for longer than the heartbeat"""
    with behind_proxy(stage, seconds=10, heartbeat=3) as (proxy, listener):
        proxy.stall()
        stage.see("given up by heartbeat", listener.wait_for_log("connecting again", 30))
        pause(stage.pick(3, 20))
        proxy.resume()


@beside
def network_slow(stage: Stage) -> None:
    """network slow, 20 kB/s"""
    with behind_proxy(stage, seconds=4) as (proxy, _):
        proxy.rate = 20_000
        began, before = time.monotonic(), proxy.to_client
        pause(stage.pick(10, 60))
        rate = (proxy.to_client - before) / (time.monotonic() - began) / 1000
        stage.see(f"{rate:.0f} kB/s seen", 5 < rate < 25)
        proxy.rate = None


@beside
def network_cut_in_frame(stage: Stage) -> None:
    """network cut in the middle of a frame, thirty times in a row"""
    times = stage.pick(10, 30)
    with behind_proxy(stage, seconds=times * 6) as (proxy, listener):
        for number in range(1, times + 1):
            proxy.cut_after(random.Random(number).randrange(500, 4000))
            wait_until_back(listener, number, "connecting again")
        stage.see(f"{times} times connected again, {proxy.connections} connections")


# --- 7. The listener ---------------------------------------------------------------------------


@beside
def listener_killed(stage: Stage) -> None:
    """listener killed (kill -9) ten times, under load"""
    end_again_and_again(stage, lambda listener: listener.kill())


@beside
def listener_terminated(stage: Stage) -> None:
    """SIGTERM to the listener ten times, under load"""
    end_again_and_again(stage, stage.stop)


def end_again_and_again(stage: Stage, end: Callable[[ListenerProcess], object]) -> None:
    """End and start the listener, each time in the middle of its work."""
    stage.api.delay = 0.005
    listener, times = stage.listen(), stage.pick(5, 10)
    codes = []
    with stage.load(seconds=times * 3):
        for _ in range(times):
            wait_for_another(stage)
            end(listener)
            codes.append(listener.process.returncode)
            listener.start()
        stage.see(f"{times} times, each after further deletions: exit {sorted(set(codes))}")
        stage.repaired()


@beside
def listener_stopped(stage: Stage) -> None:
    """listener stopped (SIGSTOP) for longer than the heartbeat, then SIGCONT"""
    sections = stage.settings()
    sections["oslo_messaging_rabbit"]["heartbeat_timeout_threshold"] = 3
    stage.api.delay = 0.005
    listener = stage.listen(sections)

    def missed() -> int:
        return stage.broker.log().count("missed heartbeats from client")

    with stage.load(seconds=8):
        before = missed()
        listener.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: missed() > before, 30, "the broker to give the listener up")
        stage.see("the broker missed its heartbeats")
        pause(stage.pick(1, 20))
        listener.process.send_signal(signal.SIGCONT)
        stage.repaired()


@beside
def few_descriptors(stage: Stage) -> None:
    """listener with 100 file descriptors only, 150 attempts at once, connection lost"""
    stage.api.one_at_a_time, stage.api.delay = False, 0.5
    python = python_of(stage, f'ulimit -n 100\nexec {sys.executable} "$@"')
    listener = stage.listen(stage.settings(concurrency=150), python=python)
    stage.publish()
    stage.see("it ran out of them", listener.wait_for_log("Too many open files"))
    close_connections_of(stage, listener)
    stage.see("and lost its connection", listener.wait_for_log("CONNECTION_FORCED"))
    stage.api.delay = 0
    stage.repaired()


def close_connections_of(stage: Stage, listener: ListenerProcess) -> None:
    """Have the broker close this listener's connections, nobody else's."""
    found = psutil.Process(listener.process.pid).net_connections()
    ports = [each.laddr.port for each in found if each.raddr and each.raddr[1] == stage.broker.port]

    def own() -> list[str]:  # some of them may not be known there yet
        open_ones = stage.broker.connections()
        names = [each["name"] for each in open_ones if each.get("peer_port") in ports]
        return names if len(names) == len(ports) else []

    for name in wait_until(own, 20, "its connections"):
        stage.broker.close_connection(name)


@beside
def disk_full(stage: Stage) -> None:
    """disk full under log_file"""
    disk = stage.lab.folder / "disk"
    disk.mkdir()
    sections = stage.settings()
    sections["DEFAULT"]["log_file"] = disk / "log"
    full = (f"mount -t tmpfs -o size=64k none {disk}", f"! cat /dev/zero >{disk}/full 2>/dev/null")
    listener = stage.listen(sections, python=in_namespace(stage, *full))
    stage.publish()
    log = "No space left on device.*deleted instance="
    stage.see("stderr has the reason and the lines", listener.wait_for_log(log))


# --- 8. Poison ---------------------------------------------------------------------------------


def good_ones(stage: Stage, share: float) -> float:
    """Publish the row's number, of which so many malformed and as many refused; returns how many
    seconds the good ones took."""
    cuks = [str(uuid.uuid4()) for _ in range(stage.count)]
    bad = int(share * len(cuks))
    chosen = random.Random(7).sample(cuks, 2 * bad)
    malformed, stage.api.refused_cuks = set(chosen[:bad]), set(chosen[bad:])
    bodies = {cuk: stage.lab.body(cuk) for cuk in cuks}
    began = time.monotonic()
    publish_fast(stage, (body[:-40] if cuk in malformed else body for cuk, body in bodies.items()))
    stage.published.update(dict.fromkeys(cuks, time.monotonic()))
    good = set(cuks) - set(chosen)
    wait_until(lambda: good <= stage.api.deleted, 120, "the good ones")
    stage.dead_letters = bad
    return time.monotonic() - began


@alone
def poison(stage: Stage) -> None:
    """poison: 5 % malformed, 5 % always refused, among good ones"""
    after = stage.pick(3, 20)
    listener = stage.listen(stage.settings(dead_letter_after_seconds=after))
    without = good_ones(stage, 0)
    seconds = good_ones(stage, 0.05)
    stage.see(f"the good ones took {seconds:.1f} s, {without:.1f} s without poison")
    stage.must("10 s more at most", seconds < without + 10)
    refused = set(stage.api.refused_cuks)
    letters = stage.dead_letters + len(refused)
    wait_until(lambda: stage.depth(stage.dead).total == letters, after + 60, "dead letters")
    stage.see(f"{stage.dead_letters} malformed and {len(refused)} refused became dead letters")
    stage.api.refused_cuks = set()
    stage.repaired()
    command(stage, listener, "dead-letters", "--replay")
    wait_until(lambda: refused <= stage.api.deleted, 60, "the replayed ones")


@alone
def odd_headers(stage: Stage) -> None:
    """headers that pika can't read or write, or that fill a frame, among good ones"""
    listener = stage.listen()
    share = stage.count // 20
    for properties in ODD_HEADERS.values():
        for fault in (Status(400), None):  # failing and good, and good ones after each
            stage.api.fault = fault
            odd = Load(stage, share // 4)
            odd.properties = properties
            odd.run()
            stage.wait_until_consumed()
            stage.api.fault = None
            stage.publish(share)
            stage.wait_until_deleted()
        stage.broker.publish(b"malformed", stage.exchange, KEY, properties)
        stage.dead_letters += 1
    stage.repaired()
    stage.publish()
    stage.see(f"{', '.join(ODD_HEADERS)}")
    stage.must("one connection", len(re.findall("connected to the broker", listener.log)) == 1)


# --- 9. A day ----------------------------------------------------------------------------------


def grown(stage: Stage, sizes: list[int]) -> None:
    """See how memory has grown after the first fifth of these looks, in bytes."""
    by = (max(sizes) - sizes[len(sizes) // 5]) / 1e6
    stage.see(f"resident {max(sizes) / 1e6:.1f} MB, grown by {by:.1f} MB")
    stage.must("memory is flat", by < 3)


@alone
def day(stage: Stage) -> None:
    """a day's outage: the API down while 50,000 notifications pass, 1 in 50 a deletion"""
    total, share = stage.pick(10_000, 50_000), 50
    stage.count = total // share
    listener = stage.listen()
    stage.publish(5)
    stage.wait_until_deleted()
    others = stage.lab.corpus[5:10]
    stage.down(Status(503))
    load = Load(stage, stage.count - 5)
    load.bodies = lambda cuk: [*(others * 10)[: share - 1], stage.lab.body(cuk)]
    load.start()
    depths, sizes = [0], [listener.rss()]
    while load.is_alive():
        depths.append(stage.depth(stage.pool).total)
        sizes.append(listener.rss())
        pause(0.1)
    stage.wait_until_consumed()
    sizes.append(listener.rss())
    waiting = stage.depth(stage.retry).total
    stage.see(f"{waiting} waited in the retry queue", waiting == stage.count - 5)
    stage.see(f"{total} notifications, at most {max(depths)} in their queue, {len(depths)} looks")
    stage.must("never more than 400", max(depths) <= 400)
    grown(stage, sizes)
    stage.repaired()


# --- 10. Rubbish --------------------------------------------------------------------------------


#: The events of all services that the row with rubbish hears.
HEARD = r"^(port\.delete\.end|instance\.(delete\.end|update)|compute\.instance\.delete\.end)$"


def mutated(stage: Stage, count: int, expected: Counter[Any]) -> Iterator[bytes]:
    """Bodies from `faults_rubbish`; at their end the deletions they lead to are in `expected`."""
    corpus = stage.lab.folder / "corpus"
    corpus.write_bytes(b"\n".join(map(base64.b64encode, stage.lab.corpus)))
    command = [sys.executable, "-W", "ignore", "-m", "lab.faults_rubbish", CUK, UNIQUE, HEARD]
    command += [str(count), str(stage.pick(500, 5000))]
    with (
        corpus.open("rb") as lines,
        subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, cwd=PROGRAM.parent) as made,
    ):
        assert made.stdout
        for text in made.stdout:
            if not text.startswith(b"["):
                yield base64.b64decode(text)
                continue
            for cuk, addresses, times in json.loads(text):
                expected[cuk, addresses and tuple(addresses)] += times
    assert made.returncode == 0


@alone
def rubbish(stage: Stage) -> None:
    """rubbish: 200,000 mutated bodies, read by oslo.messaging, too"""
    total = stage.pick(10_000, 200_000)
    sections = stage.settings()
    sections["oslo_messaging_notifications"]["event_type"] = HEARD
    listener = stage.listen(sections)
    listener.stop()
    expected: Counter[Any] = Counter()
    publish_fast(stage, mutated(stage, total, expected))
    listener.start()
    stage.repaired()
    sizes: list[int] = []

    def worked_off() -> bool:
        sizes.append(listener.rss())
        return stage.depth(stage.pool).total == 0

    wait_until(worked_off, 60 + total / 100, "all to be worked off")
    stage.empty_after = time.monotonic() - stage.repaired_at
    listener.process.send_signal(signal.SIGUSR1)
    counts = listener.wait_for_log(r"deleted=\d+ failed.*", count=2)[-1]  # first by the stop
    deleted, _, ignored, _, dead, *_ = (int(number) for number in re.findall(r"=(\d+)", counts))
    sent: Counter[Any] = Counter((request.cuk, request.host) for request in stage.api.requests)
    missing, wrong = expected - sent, sent - expected
    letters, twice = stage.depth(stage.dead).total, sum(times > 1 for times in sent.values())
    stage.tally = Tally(total, deleted, 0, letters, 0, missing.total(), twice)
    accepted = expected.total()
    stage.see(f"oslo.messaging accepts {accepted}; {ignored} ignored", 0 < accepted < total)
    stage.must(f"nothing else is sent, seen {list(wrong)[:3]}", not wrong)
    stage.must(f"all that oslo.messaging accepts is sent, not {list(missing)[:3]}", not missing)
    is_all = deleted + ignored + dead == total and dead == letters and deleted == sent.total()
    stage.must(f"all accounted for: {counts}", is_all)
    grown(stage, sizes)


# --- The command -------------------------------------------------------------------------------


def line(cells: Sequence[str]) -> str:
    text = (re.sub(r"\s*\n\s*", " ", cell).replace("|", "/") for cell in cells)
    return f"| {' | '.join(text)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table as Markdown; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make faults", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="200 a row, shorter outages")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    parser.add_argument("--logs", type=Path, default=LOGS, help="of the listeners (%(default)s)")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="a row's name, or how it begins")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if row.name.startswith(tuple(options.rows or [""]))]
    if options.list or not rows:
        print(*(f"{row.name:<30}{row.fault}" for row in rows or ROWS), sep="\n")
        return not rows
    began = time.monotonic()
    options.logs.mkdir(parents=True, exist_ok=True)
    lab = Lab(options.quick, options.logs)
    with lab.stack:
        assert lab.corpus  # it is there before rows share it
        print(line(COLUMNS), line(["---", *["--:"] * 9, "---"]), sep="\n", flush=True)
        results: dict[str, Future[Result]] = {}
        with ThreadPoolExecutor(3) as beside_others:
            for row in rows:
                if row.parts == "shared":
                    results[row.name] = beside_others.submit(play, lab, row)
        with ThreadPoolExecutor(1) as one_by_one:
            for row in sorted(rows, key=lambda row: row.parts == "cluster"):
                if row.parts != "shared":
                    results[row.name] = one_by_one.submit(play, lab, row)
            for row in rows:
                print(line(results[row.name].result().cells), flush=True)
    short = [row.name for row in rows if results[row.name].result().problems]
    which = f"short: {', '.join(short)}" if short else "none falls short"
    print(f"\n{len(rows)} rows in {time.monotonic() - began:.0f} s; {which}")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
