"""What no program on pika and urllib3 can beat: the barest loops that do one part of the job.

Run by lab.bench, each in a process of its own: `python -m lab.bench_limits LOOP TRANSPORT_URL
QUEUE WARM COUNT [API_URL]` takes WARM messages, then COUNT more, and prints a JSON object with the
seconds and the seconds of CPU that the COUNT took.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.parse
from functools import partial
from typing import Any, Callable

import pika
import urllib3

#: Unacknowledged messages, and messages to one ack.
PREFETCH, BATCH = 200, 50
Work = Callable[[bytes], object]


def decode(body: bytes) -> dict[str, Any]:
    """The two layers of JSON."""
    message: dict[str, Any] = json.loads(json.loads(body)["oslo.message"])
    return message


def delete(pool: urllib3.HTTPConnectionPool, path: str, body: bytes) -> None:
    """Both layers of JSON and a DELETE."""
    port = decode(body)["payload"]["port"]
    query = urllib.parse.urlencode(
        {
            "extra": "openstack-auto-v1",
            "cuk": port["device_id"],
            "host": json.dumps([address["ip_address"] for address in port["fixed_ips"]]),
        }
    )
    pool.urlopen("DELETE", f"{path}?{query}")


def mixed(work: Work, body: bytes) -> None:
    """`work` for what names the one event, a look at the bytes for the rest."""
    if b"port.delete.end" in body:
        work(body)


def consume(
    connection: pika.BlockingConnection, queue: str, warm: int, count: int, work: Work
) -> dict[str, float]:
    """`work` on each message of a queue, one ack for a batch."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    taken, began, cpu = 0, time.perf_counter(), time.process_time()

    def on_message(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        nonlocal taken, began, cpu
        work(body)
        taken += 1
        if taken == warm:
            began, cpu = time.perf_counter(), time.process_time()
        if taken % BATCH == 0 or taken == warm + count:
            channel.basic_ack(method.delivery_tag, multiple=True)

    channel.basic_consume(queue, on_message)
    while taken < warm + count:
        connection.process_data_events(None)  # type: ignore[arg-type]
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def publish(connection: pika.BlockingConnection, queue: str, count: int) -> dict[str, float]:
    """Confirmed publishes, one after the other."""
    channel = connection.channel()
    channel.confirm_delivery()
    persistent, body = pika.BasicProperties(delivery_mode=2), b"x" * 2600
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        channel.basic_publish("", queue, body, persistent, mandatory=True)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def main(loop: str, url: str, queue: str, warm: str, count: str, api_url: str = "") -> None:
    api = urllib.parse.urlsplit(api_url)
    pool = urllib3.HTTPConnectionPool(api.hostname or "localhost", api.port)
    one: Work = partial(delete, pool, api.path)
    works: dict[str, Work] = {
        "skip": lambda body: None,
        "decode": decode,
        "delete": one,
        "mixed": partial(mixed, one),
    }
    connection = pika.BlockingConnection(pika.URLParameters(url))
    print(
        json.dumps(
            publish(connection, queue, int(count))
            if loop == "publish"
            else consume(connection, queue, int(warm), int(count), works[loop])
        )
    )
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
