"""Header tables of AMQP that a client stumbles over, and where JSON can be damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import pika


class RawProperties(pika.BasicProperties):
    """Properties of a persistent message whose header table is sent as it is."""

    def __init__(self, table: bytes) -> None:
        super().__init__()
        self.table = table

    def encode(self) -> list[bytes]:
        flags = self.FLAG_HEADERS | self.FLAG_DELIVERY_MODE
        return [struct.pack(">HL", flags, len(self.table)), self.table, b"\x02"]


def nested_tables(depth: int) -> bytes:
    """A header table that holds a table that holds a table, and so on."""
    table = b""
    for _ in range(depth):
        table = struct.pack(">2scL", b"\x01a", b"F", len(table)) + table
    return table


#: Headers that pika can't read, or reads and can't write, or that nearly fill a frame.
ODD_HEADERS: dict[str, pika.BasicProperties] = {
    "a time in milliseconds": RawProperties(b"\x04whenT" + struct.pack(">Q", 1767225600000)),
    "nested tables": RawProperties(nested_tables(3000)),
    "a great double": RawProperties(b"\x01dd" + struct.pack(">d", 2.0**63)),
    "130 kB": pika.BasicProperties(delivery_mode=2, headers={"x": "y" * 130_000}),
}


#: Members of a notification of which something is read.
DECISIVE = {"event_type", "publisher_id", "priority", "payload", "port", "device_id"}
DECISIVE |= {"device_owner", "fixed_ips", "ip_address", "instance_id", "uuid", "state"}


def places(value: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path (keys and indexes) of every member in a JSON value."""
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, each in inside:
        yield (*start, key)
        yield from places(each, (*start, key))
