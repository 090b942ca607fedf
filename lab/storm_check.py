"""Judges a storm by its history: what became of each deletion, and which promises were broken.

The history is what `lab.storm` writes, one JSON object for each event; see `History`. Nothing here
runs anything, so a history can be judged again, or be written by hand to see a promise broken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from lab.storm_faults import DEAD, NEED_NODES, POOL, RETRY

Event = Mapping[str, Any]

COLUMNS = (
    "seed",
    "nodes",
    "concurrency",
    "faults",
    "attempted",
    "acknowledged",
    "unknown",
    "recovered",
    "made",
    "doubtful and told",
    "doubt forgotten in a crash",
    "dead with reason",
    "discarded by a fault",
    "waiting",
    "lost",
    "harmed",
    "unexpected",
    "seconds to quiet",
)

#: Seconds: what a busy machine may take longer than promised, and to be at work again after a
#: fault of the broker or the network.
SLACK, RECOVERY = 5.0, 40.0

#: Seconds after which a listener has surely heard of a failure.
KNOWN = 0.5

#: Seconds of the contract beside `timeout_seconds` (DESIGN.md, rule 2).
HOLD = 30.0

#: Bytes that a listener may take.
MOST_MEMORY = 150_000_000

#: Faults that fail every request, and how many requests a listener makes in spite of one: those
#: that find it out, and a probe each four seconds or more (`retry_interval_seconds` is 5).
OUTAGES = ("api 503", "api 403", "api reset", "api hang", "api 429 with Retry-After")
TO_FIND_OUT, PROBE_SECONDS = 14, 3.0

#: Faults that can end a process or a connection in the middle of things.
INTERRUPTIONS = ("listener", "network", "node", "command", *NEED_NODES)


@dataclass(frozen=True)
class Report:
    """The figures of a storm by the names of `COLUMNS`, and the promises that were broken."""

    figures: Mapping[str, object]
    problems: tuple[str, ...]

    @property
    def seed(self) -> object:
        return self.figures["seed"]

    def row(self) -> list[str]:
        """The cells of its line in the table."""
        return [str(self.figures[name]) for name in COLUMNS]


class Span(NamedTuple):
    """A fault, or the life of a process; `who` is the listener, "" for all or none."""

    begun: float
    ended: float
    name: str
    who: str


class History:
    """The events of a storm, sorted by kind.

    - storm: settings; machine: a member of K2HR3, with addresses of which some are to stay
    - publish: a notification, what it is to lead to, and what the broker said of it
    - request: to the Role API of one listener; store: the members at the end
    - found: a message in a queue at the end, taken before the queue was deleted, or discarded by a
      policy; deleted: a queue, with how many messages went unseen
    - process: the life of a listener or a command; fault; depth; memory; log; quiet
    """

    def __init__(self, events: Iterable[Event]) -> None:
        kinds: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            kinds[event["kind"]].append(event)
        self.all = kinds
        (self.settings,) = kinds["storm"]
        (self.store,) = kinds["store"]
        self.machines = {each["cuk"]: each for each in kinds["machine"]}
        self.kept = set(self.store["kept"])
        self.found: dict[str, list[Event]] = defaultdict(list)  # by notification and by instance
        for each in kinds["found"]:
            for key in {*each["ids"], *each["cuks"]}:
                self.found[key].append(each)
        self.faults = [
            Span(each["begun"], each["t"], each["name"], who(each["target"]))
            for each in kinds["fault"]
        ]
        self.interruptions = [
            span
            for span, each in zip(self.faults, kinds["fault"])
            if each["touches"] in INTERRUPTIONS
        ]
        self.processes = [
            Span(each["begun"], each["t"], each["how"], each["who"]) for each in kinds["process"]
        ]

    def members(self, cuk: str) -> set[str]:
        """The addresses of a machine that are still members."""
        return set(self.store["members"].get(cuk, ()))

    def interrupted(self, begun: float, ended: float, listener: str = "") -> bool:
        """Tell if something that can end a process or a connection came in this time."""
        return any(
            each.begun <= ended and begun <= each.ended and listener in (each.who or listener, "")
            for each in self.interruptions
        )


def who(target: int | None) -> str:
    return "" if target is None else str(target)


# What became of each notification


def fate(history: History, event: Event) -> str:
    """Return what became of a notification: a name of `COLUMNS`, or "nothing"."""
    machine = history.machines[event["cuk"]]
    if event["expect"] == "nothing":
        return "nothing"
    if event["expect"] == "delete":
        named = set(machine["addresses"] if event["ips"] is None else event["ips"])
        if not history.members(event["cuk"]) & named:
            return "made"
    found = history.found[event["id"] or event["cuk"]]
    if event["cuk"] in history.kept and event["expect"] == "delete":
        letters = history.found[event["cuk"]]
        if any(each["doubt"] == "done" for each in letters):
            return "doubtful and told"
        if not found and doubt_was_interrupted(history, event["cuk"]):
            return "doubt forgotten in a crash"
    places = {(each["where"], each["queue"]) for each in found}
    if places & {("left", POOL), ("left", RETRY)}:
        return "waiting"
    if ("left", DEAD) in places:
        return "dead with reason"
    return "discarded by a fault" if places else "lost"


def doubt_was_interrupted(history: History, cuk: str) -> bool:
    """Tell if a process or a connection may have ended between the first doubtful attempt on an
    instance and the success after it: then nobody remembers the doubt."""
    requests = [each for each in history.all["request"] if each["cuk"] == cuk]
    doubtful = [each["begun"] for each in requests if each["status"] in (None, 403)]
    done = [each["ended"] for each in requests if each["status"] == 204]
    if not doubtful:
        return False
    return history.interrupted(min(doubtful) - 1, max(done, default=max(doubtful) + RECOVERY) + 1)


def unseen(history: History, deleted: Event) -> int:
    """Return how many messages went with a deleted queue without being seen: those that came just
    before, and those that a listener held and could not copy because of another fault."""
    when = deleted["t"]
    others = [
        fault
        for fault in history.interruptions
        if fault.begun <= when + 15 and when - RECOVERY <= fault.ended
        # not the deletion itself
        if not (fault.name.endswith("deleted") and fault.begun <= when <= fault.ended)
    ]
    came = sum(
        event["begun"] <= when and deleted["begun"] <= event["t"]
        for event in history.all["publish"]
    )
    return int(deleted["left"] + (deleted["unacked"] + came if others else 0))


# The promises


def nothing_lost(history: History) -> Iterator[str]:
    """What is confirmed is made or told of; but for what went unseen with deleted queues."""
    lost = [
        event
        for event in history.all["publish"]
        if event["outcome"] == "confirmed" and fate(history, event) == "lost"
    ]
    gone = {each["t"]: unseen(history, each) for each in history.all["deleted"]}
    last = max((when for when, count in gone.items() if count), default=0.0)
    if len(lost) > sum(gone.values()) or any(event["begun"] > last for event in lost):
        names = ", ".join(f"{each['id'] or each['cuk']} of {each['t']} s" for each in lost[:5])
        yield f"{len(lost)} lost, and {sum(gone.values())} unseen in deleted queues: {names}"


def nobody_harmed(history: History) -> Iterator[str]:
    for cuk, machine in history.machines.items():
        gone = set(machine["living"]) - history.members(cuk)
        if gone:
            yield f"harmed: {cuk} ({machine['life']}) lives and lost {sorted(gone)}"
    for each in history.all["request"]:
        living = history.machines.get(each["cuk"], {"living": ()})["living"]
        if living and (each["ips"] is None or set(each["ips"]) & set(living)):
            yield f"harmed: a request for {each['cuk']} {each['ips']}, which lives"


def nothing_unexpected(history: History) -> Iterator[str]:
    """Deletions before anybody asked for them, or of what the broker returned; dead letters of
    what is no malformed notification and not doubtful."""
    first: dict[str, float] = {}
    for event in history.all["publish"]:
        if event["outcome"] != "returned" and event["expect"] == "delete":
            first[event["cuk"]] = min(event["begun"], first.get(event["cuk"], event["begun"]))
    for each in history.all["request"]:
        known = each["cuk"] in history.machines
        if known and each["begun"] < first.get(each["cuk"], 1e9) - 0.01:
            yield f"unexpected: a request for {each['cuk']} before its notification"
    good = {each["id"] for each in history.all["publish"] if each["expect"] != "letter"}
    for each in history.all["found"]:
        if each["queue"] == DEAD and not each["doubt"] and good & {*each["ids"]}:
            yield f"unexpected: dead letter of {each['cuks']}: {each['reason']}"
        if each["queue"] == DEAD and not each["reason"]:
            yield f"unexpected: dead letter of {each['cuks']} without a reason"


def doubt_is_told(history: History) -> Iterator[str]:
    """A member that K2HR3 kept has a letter, or its deletion is somewhere else (FACTS 3)."""
    for event in history.all["publish"]:
        is_kept = event["outcome"] == "confirmed" and event["cuk"] in history.kept
        if is_kept and fate(history, event) in ("lost", "dead with reason"):
            yield f"not told: K2HR3 kept {event['cuk']}"


def deleted_queues_are_told(history: History) -> Iterator[str]:
    """A listener that has seen the queue and lives on says that it was deleted; unless another
    process, which has not, made it again before."""
    told = Counter(queue for log in history.all["log"] for queue in log["deleted"])
    for each in history.all["deleted"]:
        when = each["t"]
        witnesses = [
            life
            for life in history.processes
            if life.who.isdigit() and life.begun < when - RECOVERY and when + RECOVERY < life.ended
        ]
        others = any(when - 10 < life.begun < when + RECOVERY for life in history.processes)
        if witnesses and not others and not told[each["queue"]]:
            yield f"not told: {each['queue']} was deleted at {when} s"


def one_at_a_time(history: History) -> Iterator[str]:
    """After a failure one request at a time, until the next success (DESIGN 3.3)."""
    for api in {each["api"] for each in history.all["request"]}:
        requests = [each for each in history.all["request"] if each["api"] == api]
        ended = [(each["ended"], each["status"]) for each in requests if each["ended"]]
        ends = sorted(ended, key=itemgetter(0))
        begins = [life.begun for life in history.processes if life.who == str(api)]
        resumed = [fault.ended for fault in history.faults if fault.name == "listener paused"]
        for each in requests:
            now = each["begun"]
            began = max((when for when in begins if when <= now), default=0.0)
            known = [end for end in ends if began <= end[0] <= now - KNOWN]
            succeeded = any(is_success(status) for end, status in ends if now - SLACK < end <= now)
            is_failing = known and not is_success(known[-1][1]) and not succeeded
            is_new = any(now - SLACK < when <= now for when in (*begins, *resumed))
            others = [one for one in requests if one["begun"] < now < (one["ended"] or now)]
            if is_failing and others and begins and not is_new:
                yield f"two requests at once after a failure: api {api} at {now} s"


def is_success(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def outages_are_spared(history: History) -> Iterator[str]:
    """While nothing succeeds, a listener makes few requests."""
    apis = range(len(history.settings["concurrency"]))
    for fault in history.faults:
        if fault.name not in OUTAGES:
            continue
        for api in apis if not fault.who else [int(fault.who)]:
            count = sum(
                each["api"] == api and fault.begun < each["begun"] < fault.ended
                for each in history.all["request"]
            )
            starts = sum(
                life.who == str(api) and fault.begun - SLACK < life.begun < fault.ended
                for life in history.processes
            )
            most = TO_FIND_OUT * (1 + starts) + (fault.ended - fault.begun) / PROBE_SECONDS
            if count > most:
                yield f"{count} requests in an outage: api {api}, {fault}, at most {most:.0f}"


def queue_does_not_wait(history: History) -> Iterator[str]:
    """The notification queue holds no more than what came within the bound (rule 2). Looked at
    where nothing but K2HR3 was out of order for long enough."""
    bound = history.settings["timeout"] + HOLD + SLACK
    came = [each["t"] for each in history.all["publish"] if each["outcome"] != "returned"]
    for look in history.all["depth"]:
        begun = look["t"] - bound
        if begun - RECOVERY < 0 or history.interrupted(begun - RECOVERY, look["t"]):
            continue
        recent = sum(begun < when <= look["t"] + 1 for when in came)
        if look["depths"].get(POOL, 0) > recent:
            depth = look["depths"][POOL]
            yield f"{depth} notifications at {look['t']} s, only {recent} came in {bound} s"


def stops_in_time(history: History) -> Iterator[str]:
    """SIGTERM ends a listener within `timeout_seconds` + 1 s and with 0; nothing else ends one. One
    that has not begun to listen ends by the signal."""
    for each in history.all["process"]:
        if each["how"] == "died":
            yield f"listener {each['who']} died at {each['t']} s: {each['code']}"
        is_late = each["seconds"] > history.settings["timeout"] + 1 + SLACK
        is_new = each["code"] == -15 and each["t"] < each["begun"] + 3 * SLACK
        if each["how"] == "stopped" and (is_late or not (each["code"] == 0 or is_new)):
            yield f"listener {each['who']}: stopped with {each['code']} after {each['seconds']} s"


def memory_is_bounded(history: History) -> Iterator[str]:
    largest = max((each["bytes"] for each in history.all["memory"]), default=0)
    if largest > MOST_MEMORY:
        yield f"a listener of {largest / 1e6:.0f} MB"


def drained_is_empty(history: History) -> Iterator[str]:
    """A drain that ends with 0 and was alone has left nothing of what came before it."""
    for each in history.all["process"]:
        if each["who"] != "drain" or each["code"] != 0:
            continue
        lives = [life for life in history.processes if life.who.isdigit()]
        if any(life.begun < each["t"] and each["begun"] < life.ended for life in lives):
            continue
        for event in history.all["publish"]:
            if event["t"] < each["begun"] and fate(history, event) == "waiting":
                yield f"a drain ended with 0 and left {event['cuk']}"


def becomes_quiet(history: History) -> Iterator[str]:
    for each in history.all["quiet"]:
        if each["problem"]:
            yield f"not quiet after {each['seconds']} s: {each['problem']}"
    waiting = sum(fate(history, each) == "waiting" for each in history.all["publish"])
    if waiting:
        yield f"{waiting} still wait at the end"


def logs_are_clean(history: History) -> Iterator[str]:
    for each in history.all["log"]:
        for line in each["odd"]:
            yield f"log of {each['who']}: {line[:200]}"


PROMISES: tuple[Callable[[History], Iterator[str]], ...] = (
    nothing_lost,
    nobody_harmed,
    nothing_unexpected,
    doubt_is_told,
    deleted_queues_are_told,
    one_at_a_time,
    outages_are_spared,
    queue_does_not_wait,
    stops_in_time,
    memory_is_bounded,
    drained_is_empty,
    becomes_quiet,
    logs_are_clean,
)


def check(events: Iterable[Event]) -> Report:
    """Judge a history."""
    history = History(events)
    problems = [problem for promise in PROMISES for problem in promise(history)]
    published = [each for each in history.all["publish"] if each["expect"] != "nothing"]
    outcomes = Counter(each["outcome"] for each in published)
    acknowledged = [each for each in published if each["outcome"] == "confirmed"]
    fates = Counter(fate(history, each) for each in acknowledged)
    recovered = sum(
        fate(history, each) != "lost" for each in published if each["outcome"] == "unknown"
    )
    if fates["lost"] and not any(nothing_lost(history)):
        fates["discarded by a fault"] += fates.pop("lost")
    settings = history.settings
    figures: dict[str, object] = {
        "seed": settings["seed"],
        "nodes": settings["nodes"],
        "concurrency": " ".join(map(str, settings["concurrency"])),
        "faults": len(history.faults),
        "attempted": len(published),
        "acknowledged": outcomes["confirmed"],
        "unknown": outcomes["unknown"],
        "recovered": recovered,
        "harmed": sum(problem.startswith("harmed") for problem in problems),
        "unexpected": sum(problem.startswith("unexpected") for problem in problems),
        "seconds to quiet": next((each["seconds"] for each in history.all["quiet"]), "–"),
    }
    return Report({**fates_by_name(fates), **figures}, tuple(problems))


def fates_by_name(fates: Counter[str]) -> dict[str, object]:
    return {name: fates[name] for name in COLUMNS}
