"""The checker of storms finds each broken promise, and a seed makes one schedule."""

from __future__ import annotations

from typing import Any

import pytest

from lab.storm_check import check
from lab.storm_faults import AT_ONCE, BY_NAME, FAULTS, RETRY, clash, parts, schedule

GONE, ALIVE = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
IPS = ["10.0.0.1", "10.0.0.2"]
NOTIFICATION = {"id": "a", "cuk": GONE, "ips": None, "expect": "delete", "outcome": "confirmed"}


def event(kind: str, t: float = 0.0, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "t": t, **values}


def request(begun: float, ended: float, status: int | None = 204, **values: Any) -> dict[str, Any]:
    made = {"api": 0, "begun": begun, "ended": ended, "cuk": GONE, "ips": None, "status": status}
    return event("request", ended, **{**made, **values})


def fault(name: str, begun: float, ended: float, target: int | None = None) -> dict[str, Any]:
    touches = BY_NAME[name].touches
    return event("fault", ended, name=name, touches=touches, target=target, begun=begun)


def process(who: str, begun: float, ended: float, how: str = "stopped", code: int = 0) -> Any:
    return event("process", ended, who=who, begun=begun, how=how, code=code, seconds=1.0)


def found(queue: str, where: str = "left", **values: Any) -> dict[str, Any]:
    made = {"ids": ["a"], "cuks": [GONE], "reason": "", "doubt": ""}
    return event("found", 200, where=where, queue=queue, **{**made, **values})


def store(*members: str, kept: tuple[str, ...] = ()) -> dict[str, Any]:
    return event("store", 200, members=dict.fromkeys(members, IPS), kept=kept)


SETTINGS = event("storm", seed=1, nodes=1, timeout=2, concurrency=[1])
MACHINES = [
    event("machine", cuk=GONE, life="instance", addresses=IPS, living=[]),
    event("machine", cuk=ALIVE, life="alive", addresses=IPS, living=IPS),
]
PUBLISHED = event("publish", 10, begun=9.9, **NOTIFICATION)
MADE = [PUBLISHED, request(10.1, 10.2), process("0", 0, 200), store(ALIVE)]
NOT_MADE = [PUBLISHED, store(ALIVE, GONE)]
KEPT = [PUBLISHED, request(10.1, 10.2, 403), request(13, 13.1), store(ALIVE, GONE, kept=(GONE,))]


def judged(*events: dict[str, Any]) -> Any:
    return check([SETTINGS, *MACHINES, *events])


def test_a_deletion_that_is_made_breaks_no_promise() -> None:
    report = judged(*MADE)
    assert report.problems == ()
    assert (report.figures["acknowledged"], report.figures["made"]) == (1, 1)


#: What is told of a deletion that is not made, and its column.
TOLD = {
    "waiting": [*NOT_MADE, found(RETRY)],
    "dead with reason": [*NOT_MADE, found("k2hr3_osnl.dead_letter", reason="no")],
    "doubtful and told": [*KEPT, found("k2hr3_osnl.dead_letter", reason="?", doubt="done")],
    "doubt forgotten in a crash": [*KEPT, process("0", 0, 11, how="killed", code=-9)],
    "discarded by a fault": [*NOT_MADE, found(RETRY, "grave")],
    "lost": NOT_MADE,
}


@pytest.mark.parametrize("column", TOLD)
def test_each_end_of_a_deletion_has_its_column(column: str) -> None:
    assert judged(*TOLD[column]).figures[column] == 1


DELETED = event("deleted", 12, begun=11.9, queue=RETRY, left=1, unacked=0)


def test_a_doubt_of_a_listener_that_lives_and_is_alone_is_not_forgotten_with_a_connection() -> None:
    cut = fault("network cut", 11, 11, 0)
    assert judged(*KEPT, cut, process("0", 0, 300)).figures["lost"] == 1


def test_what_goes_unseen_with_a_deleted_queue_is_not_lost() -> None:
    assert judged(*NOT_MADE, DELETED).problems == ()
    meanwhile = event("publish", 12, begun=11.95, **{**NOTIFICATION, "id": "c"})
    assert judged(*NOT_MADE, meanwhile, DELETED).problems == ()
    later = event("publish", 13, begun=12.5, **{**NOTIFICATION, "id": "b"})
    assert "2 lost" in judged(*NOT_MADE, later, DELETED).problems[0]


def test_a_failure_that_an_earlier_process_began_does_not_bind_the_next_one() -> None:
    lives = [process("0", 0, 20, how="killed", code=-9), process("0", 20.1, 200)]
    requests = [request(19, 21, None), request(40, 41), request(40.1, 41)]
    assert judged(PUBLISHED, store(ALIVE), *lives, *requests).problems == ()


def test_what_is_unknown_and_made_is_recovered() -> None:
    unknown = event("publish", 10, begun=9.9, **{**NOTIFICATION, "outcome": "unknown"})
    figures = judged(unknown, *MADE[1:]).figures
    assert [figures[name] for name in ("acknowledged", "unknown", "recovered")] == [0, 1, 1]


#: Histories that each break a promise, by what is said of it.
BROKEN: dict[str, list[dict[str, Any]]] = {
    "1 lost": NOT_MADE,
    "lives and lost": [PUBLISHED, store()],
    "which lives": [*MADE, request(10, 11, cuk=ALIVE)],
    "before its notification": [*MADE, request(5, 6)],
    "unexpected: dead letter of": [*MADE, found("k2hr3_osnl.dead_letter", reason="no")],
    "reason ''": [*MADE, found("k2hr3_osnl.dead_letter", ids=["malformed"])],
    "not told: K2HR3 kept": KEPT,
    "was deleted at 90": [
        *MADE,
        event("deleted", 90, begun=89, queue=RETRY, left=0, unacked=0),
        event("log", 200, who="0", deleted=[], missing=0, odd=[]),
    ],
    "two requests at once": [*MADE, request(20, 21, 503), request(23, 25), request(24, 26)],
    "requests in an outage": [
        *MADE,
        fault("api 503", 50, 60),
        *(request(50 + each / 10, 50.05 + each / 10, 503) for each in range(60)),
    ],
    "notifications at 150": [*MADE, event("depth", 150, depths={"k2hr3_osnl": 3})],
    "stopped with 1": [*MADE, process("0", 0, 200, code=1)],
    "died": [*MADE, process("0", 0, 200, how="died", code=1)],
    "a listener of 200 MB": [*MADE, event("memory", 5, who="0", bytes=200_000_000)],
    "a drain ended with 0": [
        *NOT_MADE,
        found("k2hr3_osnl"),
        process("drain", 20, 30, how="command"),
    ],
    "not quiet after": [*MADE, event("quiet", 300, seconds=100, problem="3 in the retry queue")],
    "1 still wait": [*NOT_MADE, found(RETRY)],
    "log of 0: Traceback": [
        *MADE,
        event("log", 200, who="0", deleted=[], missing=0, odd=["Traceback (…)"]),
    ],
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_promise_is_found(said: str) -> None:
    problems = judged(*BROKEN[said]).problems
    assert any(said in problem for problem in problems), problems


def test_a_seed_makes_one_schedule() -> None:
    assert schedule(7, 2) == schedule(7, 2) != schedule(8, 2)
    assert {parts(seed).nodes for seed in (4, 5)} == {3, 1}


def test_faults_overlap_but_never_on_the_same_thing() -> None:
    most, names = 0, set()
    for seed in range(50):
        plan, listeners = schedule(seed, 2), len(parts(seed).concurrency)
        for entry in plan:
            before = plan[: plan.index(entry)]
            under_way = [each for each in before if each.end > entry.begin]
            assert not any(clash(entry, each, listeners) for each in under_way)
            most = max(most, 1 + len(under_way))
            names.add(entry.fault)
    assert most == AT_ONCE
    assert names == {each.name for each in FAULTS}
