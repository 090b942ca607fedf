"""Judges a storm by its history: what became of each deletion, and which promises were broken.

The history is what `lab.storm` writes, one JSON object for each event. Nothing here runs anything,
so a history can be judged again, or be written by hand to see that a broken promise is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from lab.storm_faults import BY_NAME, DEAD, NEED_NODES, POOL, RETRY

Event = Mapping[str, Any]

#: Seconds: what a busy machine may take longer than promised; when a listener has surely heard of
#: a failure, and is surely at work again after a fault of the broker or the network.
SLACK, KNOWN, RECOVERY = 5.0, 0.5, 40.0

#: Seconds in which the notification queue is worked off, beside `timeout_seconds` (rule 2).
HOLD = 30.0

#: Bytes that a listener may take.
MOST_MEMORY = 150_000_000

#: Faults that fail every request, and the requests that a listener makes in spite of one: those
#: that find it out, and then a probe each 4 s or more (`retry_interval_seconds` is 5).
OUTAGES = ("api 503", "api 403", "api reset", "api hang", "api 429 with Retry-After")
TO_FIND_OUT, PROBE_SECONDS = 14, 3.0

#: Faults that can end a process or a connection in the middle of things.
INTERRUPTIONS = ("listener", "network", "node", "command", *NEED_NODES)

#: Those that end one, and those that keep a copy from being made.
END_CONNECTIONS = ("listener", "network", "node", "connections", "permissions")
HOLD_COPIES = ("alarm", "policy", "permissions", "node", "queue")

#: What can become of a deletion.
MADE, TOLD, FORGOTTEN = "made", "doubtful and told", "doubt forgotten in a crash"
LETTER, DISCARDED, WAITING, LOST = "dead with reason", "discarded by a fault", "waiting", "lost"

COLUMNS: tuple[str, ...] = (
    "seed",
    "nodes",
    "concurrency",
    "faults",
    "attempted",
    "acknowledged",
    "unknown",
)
COLUMNS += ("recovered", MADE, TOLD, FORGOTTEN, LETTER, DISCARDED, WAITING, LOST, "harmed")
COLUMNS += ("unexpected", "seconds to quiet")


@dataclass(frozen=True)
class Report:
    """The figures of a storm, by the names of `COLUMNS`, and the promises that were broken."""

    figures: Mapping[str, object]
    problems: tuple[str, ...]

    def row(self) -> list[str]:
        """The cells of its line in the table."""
        return [str(self.figures[name]) for name in COLUMNS]


class Span(NamedTuple):
    """A fault, or the life of a process; `who` is a listener's number, "" for all or none."""

    begun: float
    ended: float
    name: str
    who: str


class History:
    """The events of a storm, by kind.

    storm (settings), machine (a member of K2HR3, with addresses of which some are to stay), publish
    (a notification and what it is to lead to), request (to the Role API of one listener), store
    (the members at the end), found (a message in a queue: "left" at the end, "taken" before that
    was deleted, or discarded by a policy), deleted (a queue), process, fault, depth, memory, log,
    quiet.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.all: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.all[event["kind"]].append(event)
        (self.settings,) = self.all["storm"]
        (self.store,) = self.all["store"]
        self.machines = {each["cuk"]: each for each in self.all["machine"]}
        self.found: dict[str, list[Event]] = defaultdict(list)  # by notification and by instance
        for each in self.all["found"]:
            for key in {*each["ids"], *each["cuks"]}:
                self.found[key].append(each)
        self.faults, self.interruptions = [], []
        for each in self.all["fault"]:
            who = "" if each["target"] is None else str(each["target"])
            self.faults.append(Span(each["begun"], each["t"], each["name"], who))
            if touches(self.faults[-1]) in INTERRUPTIONS:
                self.interruptions.append(self.faults[-1])
        self.processes = [
            Span(each["begun"], each["t"], each["how"], each["who"]) for each in self.all["process"]
        ]

    def members(self, cuk: str) -> set[str]:
        """The addresses of a machine that are still members."""
        return set(self.store["members"].get(cuk, ()))

    def interruptions_in(self, begun: float, ended: float) -> list[Span]:
        """What can have ended a process or a connection in this time."""
        return [each for each in self.interruptions if each.begun <= ended and begun <= each.ended]


def fate(history: History, event: Event) -> str:
    """Return what became of a notification: a column, or "nothing" where that is expected."""
    cuk, expect = event["cuk"], event["expect"]
    if expect == "nothing":
        return "nothing"
    if expect == "delete":
        named = history.machines[cuk]["addresses"] if event["ips"] is None else event["ips"]
        if not history.members(cuk) & set(named):
            return MADE
    found = history.found[event["id"] or cuk]
    if cuk in history.store["kept"] and expect == "delete":
        if any(each["doubt"] == "done" for each in history.found[cuk]):
            return TOLD
        if not found and doubt_was_interrupted(history, cuk):
            return FORGOTTEN
    places = {(each["where"], each["queue"]) for each in found}
    if places & {("left", POOL), ("left", RETRY)}:
        return WAITING
    if ("left", DEAD) in places:
        return LETTER
    return DISCARDED if places else LOST


def doubt_was_interrupted(history: History, cuk: str) -> bool:
    """Tell if a process may have ended between the first doubtful attempt on an instance and the
    letter that follows the next success: then nobody remembers the doubt. The same may be where a
    connection ended and another listener got the deliveries, which does not know of it."""
    late = history.settings["timeout"]  # so long, or longer if the listener was paused
    requests = [each for each in history.all["request"] if each["cuk"] == cuk]
    doubtful = [
        each["begun"]
        for each in requests
        if each["status"] in (None, 403) or each["ended"] - each["begun"] > late
    ]
    if not doubtful:
        return False
    begun = min(doubtful)
    done = [each["ended"] for each in requests if each["status"] == 204 and each["begun"] > begun]
    told = min(done, default=begun + RECOVERY) + SLACK
    if any(touches(each) in HOLD_COPIES for each in history.interruptions_in(begun, told)):
        told += RECOVERY
    lives = [each for each in history.processes if each.who not in ("dead-letters", "delete")]
    if any(begun - 1 <= each.ended <= told for each in lives):
        return True
    ended = history.interruptions_in(begun - 1, told)
    is_alone = len({each.who for each in lives if each.begun <= told and begun <= each.ended}) == 1
    return not is_alone and any(touches(each) in END_CONNECTIONS for each in ended)


def touches(fault: Span) -> str:
    """What a fault harms."""
    return BY_NAME[fault.name].touches


def unseen(history: History, deleted: Event) -> int:
    """Return how many messages went with a deleted queue without being seen: those that came while
    it was deleted (RabbitMQ confirms them, and nobody has them), and those that a listener held and
    could not copy because of another fault."""
    when = deleted["t"]
    others = [
        fault
        for fault in history.interruptions_in(when - 1, when + 15)
        if fault.name not in ("replay", "list", "delete")  # they hold nothing
        and not (fault.name.endswith("deleted") and fault.begun <= when <= fault.ended)  # itself
    ]
    came = sum(
        each["begun"] <= when and deleted["begun"] <= each["t"] for each in history.all["publish"]
    )
    return int(deleted["left"] + came + (deleted["unacked"] if others else 0))


# The promises: each yields how it was broken


def nothing_lost(history: History) -> Iterator[str]:
    """What is confirmed is made or told of; but for what went unseen with deleted queues."""
    confirmed = [each for each in history.all["publish"] if each["outcome"] == "confirmed"]
    lost = [each for each in confirmed if fate(history, each) == LOST]
    gone = {each["t"]: unseen(history, each) for each in history.all["deleted"]}
    last = max((when for when, count in gone.items() if count), default=0.0)
    if len(lost) > sum(gone.values()) or any(each["begun"] > last for each in lost):
        names = ", ".join(f"{each['id'] or each['cuk']} of {each['t']} s" for each in lost[:5])
        yield f"{len(lost)} lost, and {sum(gone.values())} unseen in deleted queues: {names}"


def nobody_harmed(history: History) -> Iterator[str]:
    """No machine that lives loses an address, and nobody asks for that."""
    for cuk, machine in history.machines.items():
        gone = set(machine["living"]) - history.members(cuk)
        if gone:
            yield f"harmed: {cuk} ({machine['life']}) lives and lost {sorted(gone)}"
    for each in history.all["request"]:
        living = history.machines.get(each["cuk"], {"living": ()})["living"]
        if living and (each["ips"] is None or set(each["ips"]) & set(living)):
            yield f"harmed: a request for {each['cuk']} {each['ips']}, which lives"


def nothing_unexpected(history: History) -> Iterator[str]:
    """No request comes before a notification that was not returned, and no dead letter is of a
    good notification, unless it is doubtful, or without a reason."""
    first: dict[str, float] = {}
    for each in history.all["publish"]:
        if each["outcome"] != "returned" and each["expect"] == "delete":
            first.setdefault(each["cuk"], each["begun"])
    for each in history.all["request"]:
        if each["cuk"] in history.machines and each["begun"] < first.get(each["cuk"], 1e9) - 0.01:
            yield f"unexpected: a request for {each['cuk']} before its notification"
    good = {each["id"] for each in history.all["publish"] if each["expect"] != "letter"}
    for each in history.all["found"]:
        is_good = not each["doubt"] and good & {*each["ids"]}
        if each["queue"] == DEAD and (is_good or not each["reason"]):
            yield f"unexpected: dead letter of {each['ids']}, reason {each['reason']!r}"


def doubt_is_told(history: History) -> Iterator[str]:
    """A member that K2HR3 kept has a letter, or its deletion is somewhere else (FACTS 3)."""
    for each in history.all["publish"]:
        is_kept = each["outcome"] == "confirmed" and each["cuk"] in history.store["kept"]
        if is_kept and fate(history, each) in (LOST, LETTER):
            yield f"not told: K2HR3 kept {each['cuk']}"


def deleted_queues_are_told(history: History) -> Iterator[str]:
    """A listener that has seen the queue and lives on says that it was deleted; unless another
    process, which has not, made it again before."""
    told = {queue for log in history.all["log"] for queue in log["deleted"]}
    for each in history.all["deleted"]:
        before, after = each["t"] - RECOVERY, each["t"] + RECOVERY
        lives = history.processes
        witnesses = [one for one in lives if one.begun < before and after < one.ended]
        others = any(each["t"] - 10 < one.begun < after for one in lives)
        if witnesses and not others and each["queue"] not in told:
            yield f"not told: {each['queue']} was deleted at {each['t']} s"


def is_success(request: Event) -> bool:
    """Tell if K2HR3 answered 2xx."""
    return (request["status"] or 0) // 100 == 2


def one_at_a_time(history: History) -> Iterator[str]:
    """After a failure one request at a time, until the next success (DESIGN 3.3)."""
    for api in range(len(history.settings["concurrency"])):
        requests = [each for each in history.all["request"] if each["api"] == api]
        ended = sorted((each for each in requests if each["ended"]), key=itemgetter("ended"))
        begins = [life.begun for life in history.processes if life.who == str(api)]
        resumed = [fault.ended for fault in history.faults if fault.name == "listener paused"]
        for each in requests:
            now = each["begun"]
            began = max((when for when in begins if when <= now), default=now)
            # a request of an earlier process can end after that process
            known = [one for one in ended if began <= one["begun"] and one["ended"] <= now - KNOWN]
            recent = [one for one in ended if now - SLACK < one["ended"] <= now]
            is_failing = known and not any(map(is_success, [known[-1], *recent]))
            is_new = any(now - SLACK < when <= now for when in (began, *resumed))
            others = any(one["begun"] < now < (one["ended"] or now) for one in requests)
            if is_failing and others and not is_new:
                yield f"two requests at once after a failure: api {api} at {now} s"


def outages_are_spared(history: History) -> Iterator[str]:
    """While nothing succeeds, a listener makes few requests."""
    for fault in (each for each in history.faults if each.name in OUTAGES):
        for api in map(str, range(len(history.settings["concurrency"]))):
            times = [each["begun"] for each in history.all["request"] if str(each["api"]) == api]
            count = sum(fault.begun < when < fault.ended for when in times)
            begins = [life.begun for life in history.processes if life.who == api]
            starts = sum(fault.begun - SLACK < when < fault.ended for when in begins)
            most = TO_FIND_OUT * (1 + starts) + (fault.ended - fault.begun) / PROBE_SECONDS
            if count > most and fault.who in ("", api):
                yield f"{count} requests in an outage: api {api}, {fault}, at most {most:.0f}"


def queue_does_not_wait(history: History) -> Iterator[str]:
    """The notification queue holds no more than what came within the bound (rule 2), where nothing
    but K2HR3 was out of order for long enough."""
    bound = history.settings["timeout"] + HOLD + SLACK
    came = [each["t"] for each in history.all["publish"] if each["outcome"] != "returned"]
    for look in history.all["depth"]:
        begun, depth = look["t"] - bound, look["depths"].get(POOL, 0)
        recent = sum(begun < when <= look["t"] + 1 for when in came)
        is_calm = begun > RECOVERY and not history.interruptions_in(begun - RECOVERY, look["t"])
        if is_calm and depth > recent:
            yield f"{depth} notifications at {look['t']} s, only {recent} came in {bound} s"


def processes_behave(history: History) -> Iterator[str]:
    """SIGTERM ends a listener within `timeout_seconds` + 1 s and with 0 (one that has not begun to
    listen, by the signal); nothing else ends one. Its memory is bounded, and its log is clean."""
    for each in history.all["process"]:
        if each["how"] == "died":
            yield f"listener {each['who']} died at {each['t']} s: {each['code']}"
        is_late = each["seconds"] > history.settings["timeout"] + 1 + SLACK
        is_new = each["code"] == -15 and each["t"] < each["begun"] + 3 * SLACK
        if each["how"] == "stopped" and (is_late or not (each["code"] == 0 or is_new)):
            yield f"listener {each['who']}: stopped with {each['code']} after {each['seconds']} s"
    largest = max((each["bytes"] for each in history.all["memory"]), default=0)
    if largest > MOST_MEMORY:
        yield f"a listener of {largest / 1e6:.0f} MB"
    for each in history.all["log"]:
        yield from (f"log of {each['who']}: {line[:200]}" for line in each["odd"])


def drained_is_empty(history: History) -> Iterator[str]:
    """A drain that ends with 0 and was alone has left nothing of what came before it."""
    lives = [life for life in history.processes if life.who != "drain"]
    for drain in history.all["process"]:
        begun, ended = drain["begun"], drain["t"]
        others = any(life.begun < ended and begun < life.ended for life in lives)
        if drain["who"] != "drain" or drain["code"] != 0 or others:
            continue
        before = [each for each in history.all["publish"] if each["t"] < begun]
        left = [each["cuk"] for each in before if not done_by(history, each, ended)]
        if left:
            yield f"a drain ended with 0 and left {left}"


def done_by(history: History, event: Event, when: float) -> bool:
    """Tell if a notification had led to what it is to lead to by this time; only for deletions."""
    if event["expect"] != "delete" or event["outcome"] != "confirmed":
        return True
    if fate(history, event) not in (MADE, TOLD, WAITING):
        return True
    asked = [each for each in history.all["request"] if each["cuk"] == event["cuk"]]
    return any(each["status"] == 204 and each["ended"] <= when for each in asked)


def becomes_quiet(history: History) -> Iterator[str]:
    """After the repair all is worked off in a bounded time."""
    for each in history.all["quiet"]:
        if each["problem"]:
            yield f"not quiet after {each['seconds']} s: {each['problem']}"
    waiting = sum(fate(history, each) == WAITING for each in history.all["publish"])
    if waiting:
        yield f"{waiting} still wait at the end"


PROMISES: tuple[Callable[[History], Iterator[str]], ...] = (
    nothing_lost,
    nobody_harmed,
    nothing_unexpected,
    doubt_is_told,
    deleted_queues_are_told,
    one_at_a_time,
    outages_are_spared,
    queue_does_not_wait,
    processes_behave,
    drained_is_empty,
    becomes_quiet,
)


def check(events: Iterable[Event]) -> Report:
    """Judge a history."""
    history = History(events)
    problems = [problem for promise in PROMISES for problem in promise(history)]
    published = [each for each in history.all["publish"] if each["expect"] != "nothing"]
    fates = Counter((each["outcome"], fate(history, each)) for each in published)
    if not any(nothing_lost(history)):
        fates["confirmed", DISCARDED] += fates.pop(("confirmed", LOST), 0)
    figures: dict[str, object] = {name: fates["confirmed", name] for name in COLUMNS}
    outcomes = Counter(each["outcome"] for each in published)
    figures.update(
        seed=history.settings["seed"],
        nodes=history.settings["nodes"],
        concurrency=" ".join(map(str, history.settings["concurrency"])),
        faults=len(history.faults),
        attempted=len(published),
        acknowledged=outcomes["confirmed"],
        unknown=outcomes["unknown"],
        recovered=outcomes["unknown"] - fates["unknown", LOST],
        harmed=sum(problem.startswith("harmed") for problem in problems),
        unexpected=sum(problem.startswith("unexpected") for problem in problems),
    )
    figures["seconds to quiet"] = next((each["seconds"] for each in history.all["quiet"]), "–")
    return Report(figures, tuple(problems))
