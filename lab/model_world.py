"""One history of the model: the real listener, its threads as steps, and the rules it must keep.

The threads are steps: a turn of the listener's loop, a worker that takes or reports a job, the
publisher that makes one copy. What surrounds them is in lab.model_surroundings. `World.check` is
called after every step and holds the rules of DESIGN 3 against what the model knows by itself;
other rules are checked where something happens, such as an ack or an attempt.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pika import exceptions as amqp

import k2hr3_osnl as module
from lab.model_broker import Answer, Channel, Violation
from lab.model_surroundings import DEAD_LETTER, INTERVAL, QUEUE, RETRY, Surroundings

HOLD = module.Listener.hold_seconds
LONGEST_PAUSE = module.Publisher.longest_pause
#: Seconds within which everything must be settled once all is repaired: a pause of copies, a look
#: at the queues, a probe, and a few rounds of retries.
PATIENCE = 150


@dataclass(eq=False)
class Worker:
    """A worker thread."""

    job: Any = None
    began: float = 0.0
    wakes_at: float | None = None  # asleep until then; None: awake


class Bell(threading.Condition):
    """The condition that workers wait on; they sleep in the model, so only `notify` matters."""

    def __init__(self, sleepers: list[Worker]) -> None:
        super().__init__()
        self._sleepers = sleepers

    def notify(self, n: int = 1) -> None:
        super().notify(n)  # raises without the lock
        for worker in self._sleepers[:n]:
            worker.wakes_at = None
        del self._sleepers[:n]

    def notify_all(self) -> None:
        self.notify(len(self._sleepers))


class Step(NamedTuple):
    """A step: what, a number that decides whatever is left open, and when.

    :param after: 0: now; n: when any thread makes the n-th call to the broker from now
    """

    name: str
    number: int
    after: int = 0


def require(condition: bool, rule: str) -> None:
    """Raise Violation unless the condition holds."""
    if not condition:
        raise Violation(rule)


class World(Surroundings):
    """One history's listener and all around it. Methods whose names are in STEPS are its steps."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.broker.meanwhile = self._meanwhile
        self.broker.on_ack = self._on_ack
        self.planned: list[list[Any]] = []  # calls left, step
        self.busy: set[str] = set()  # threads in a call to the broker
        self.is_drain = random.random() < 0.3
        self.start()

    def start(self) -> None:
        """Start the program."""
        kind: Any = module.Drain if self.is_drain else module.Listener
        self.listener = kind(self.config, connect=self.broker.connect, clock=self.clock)
        self.attempts: Any = self.listener._attempts
        self.publisher: Any = self.listener._publisher
        self.publisher._copies = queue.Queue()  # of which a check can see what is in it
        self.real_collect: Callable[[float], module.Snapshot] = self.attempts.collect
        self.attempts.collect = self._collect
        self.real_compare = self.listener._watch.compare
        self.listener._watch.compare = self._compare
        self.sleepers: list[Worker] = []
        self.attempts._changed = Bell(self.sleepers)
        self.workers = [Worker() for _ in range(self.config.k2hr3.concurrency)]
        self.session: Any = None
        self.stack = contextlib.ExitStack()
        self.next_connect = 0.0
        self.stop_before = 0.0
        self.ticks = [-math.inf, -math.inf]  # of a drain, when the last ones were
        self.counted_at = math.inf  # when a drain counted the retries
        self.collected_at = 0.0  # when the listener last looked how things stand
        self.lacks_since = math.inf  # when the retry queue, which is there, lost its consumer
        self.fresh_since = math.inf  # since then fresh ones have been waiting without a break
        self.fresh_seen = -math.inf
        self.known: dict[tuple[Channel, int], Any] = {}  # deliveries
        self.last_look = (0, 0)  # of the retry queue: what was lost and moved by then
        self.last_look_was_true = False
        self.copies_at_look = (0, 0)
        # what the model knows by itself
        self.failures = 0
        self.is_open = False
        self.pause = 1.0
        self.probe_not_before = 0.0
        self.probe_not_after = 0.0
        self.removed: set[str] = set()
        self.tries: Counter[Any] = Counter()  # of a delivery
        self.published_at = 0.0  # when the publisher last had a copy
        self.failed_at: dict[Any, float] = {}  # a delivery's last attempt
        self.doubtful: set[Any] = set()  # deliveries of which K2HR3 may have kept a member
        self.doubtful_here: set[Any] = set()  # by an attempt of this program
        self.doubted: set[str] = set()  # their instances
        self.doubted_bodies: set[bytes] = set()  # and what comes again if a channel is lost
        self.clear: set[Any] = set()  # deliveries that were made before there was such a doubt
        self.made: set[Any] = set()  # deliveries
        self.letters: set[str] = set()  # instances of which a letter tells so
        self.waits_since: dict[Any, float] = {}  # a fresh delivery for a worker
        self.last_take = ("", False)
        self.trouble_at: dict[str, float] = {}  # of copies to a queue, or "" for all

    # What the broker tells

    def _on_gone(self, body: bytes, is_last: bool, cause: str) -> None:
        sent = self.sent[body]
        # a drain leaves alone what comes too late from the retry queue
        if cause == "others" or (cause == "client" and isinstance(self.listener, module.Drain)):
            sent.is_excused = True
        if not is_last:
            return
        is_kept = cause != "client" or sent.is_excused
        require(is_kept, "a cancelled consumer's delivery is given up, which nobody has")
        if cause != f"ack of {RETRY}" and sent.cuk in self.removed:
            sent.is_made = True
        is_over = sent.is_made or sent.is_excused or sent.fate == "ignored"
        if cause.startswith("ack"):
            require(is_over, f"{cause} before the deletion is made or its copy is confirmed")

    def _on_ack(self, channel: Channel, tag: int) -> None:
        """Check that a person is told of a deletion in doubt."""
        delivery = self.known.get((channel, tag))
        if delivery is None:
            return
        is_old = delivery.body in self.doubted_bodies and delivery not in self.clear
        if delivery not in self.doubtful and not is_old:
            return
        sent = self.sent[delivery.body]
        is_ordered = any(
            each.deletion.cuk == sent.cuk and each.delivery_tag in each.consumer.unfinished
            for each in self.known.values()
            if each.verdict is module.DOUBTFUL
        )
        is_told = delivery not in self.made or sent.cuk in self.letters or is_ordered
        require(is_told, "an ack of a deletion in doubt, and nobody is told")

    def _meanwhile(self) -> None:
        """Run the planned steps whose time has come; those of a busy thread come to nothing."""
        for plan in list(self.planned):
            plan[0] -= 1
            if plan[0] <= 0 and plan in self.planned:
                self.planned.remove(plan)
                state = random.getstate()
                self.run(plan[1])
                random.setstate(state)
        is_late = "stop" in self.busy and self.clock.elapsed > self.stop_before
        require(not is_late, "the program does not stop")
        if "stop" in self.busy and random.random() < 0.2:  # the other threads go on
            for worker in self.workers:
                if worker.job is not None:
                    self._report(worker)
            self.run(Step("publish", 0))

    def run(self, step: Step) -> None:
        """Take one step."""
        if step.after:
            self.planned.append([step.after, step._replace(after=0)])
            return
        _, thread, function = STEPS[step.name]
        if thread in self.busy or (step.name in ("stop", "kill") and self.busy):
            return
        random.seed(step.number)
        self.busy.add(thread)
        try:
            function(self)
        finally:
            self.busy.discard(thread)

    # The listener's thread

    def turn(self) -> None:
        """Make one turn of the loop, or connect."""
        if self.listener._stopping.is_set():
            self._end_drain()
            return
        with self._broker_errors():
            if self.session is None:
                if self.clock.elapsed < self.next_connect:
                    self.clock.sleep(0.2)
                    self.listener._collect()
                    self.listener.on_tick()
                    self._end_drain()
                    return
                self.session = self.stack.enter_context(self.listener._connected())
                self.session.connection.is_woken = self.attempts._is_woken
                self.listener._set_up(self.session)
            ticked = self.session.next_tick
            self.listener._loop_once(self.session)
            if self.session.next_tick != ticked:
                self.ticks = [self.ticks[1], self.clock.elapsed]
            if self.is_drain and self.listener._retries_left is not None:
                self.counted_at = min(self.counted_at, self.clock.elapsed)
            self._check_turn()
        self._end_drain()

    def _collect(self, now: float) -> module.Snapshot:
        """Let `Attempts` collect, and check that it leaves nothing waiting for too long."""
        fresh = self.attempts._fresh
        if any(each.verdict is None for each in fresh):  # not what could not be copied
            self.fresh_seen = now
        elif not fresh and now - self.fresh_seen > 1:
            self.fresh_since = math.inf
        self.fresh_since = min([self.fresh_since, *(each.waiting_since for each in fresh)])
        snapshot = self.real_collect(now)
        self.collected_at = now
        for delivery in self.attempts._fresh:
            waited = now - self.waits_since.get(delivery, now)
            require(waited <= HOLD, f"a fresh deletion waits for a worker {waited:.0f} s")
        jobs: list[Any] = [job for job, _ in snapshot.results]
        done = [job for job in jobs if job in self.made]
        self.clear |= {job for job in done if job.body not in self.doubted_bodies}
        self.doubted_bodies |= {job.body for job in jobs if job in self.doubtful_here}
        is_late = any(outcome is module.SKIP_LATE for _, outcome in snapshot.results)
        has_reason = now - self.fresh_since > HOLD
        require(has_reason or not is_late, "fresh deletions are not attempted, without a reason")
        return snapshot

    def _compare(self, state: Any, confirmed: int, begun: int) -> int:
        """Let `QueueWatch` count what is missing, and check that."""
        was_consumed = bool(self.listener._watch._last.consumers or state.consumers)
        missing = int(self.real_compare(state, confirmed, begun))
        lost, moves, ready = self.broker.counted[RETRY]
        gone = lost - self.last_look[0]
        require(missing <= gone, f"{missing} retries are said to be missing, {gone} are")
        # where nothing else happened and no leader was missing, the count is exact
        is_calm = moves == self.last_look[1] and confirmed == begun and not was_consumed
        is_calm = is_calm and self.copies_at_look == (confirmed, begun)
        is_exact = is_calm and self.last_look_was_true and state.ready == ready
        require(not is_exact or missing == gone, f"{gone} retries are missing, not {missing}")
        self.last_look = (lost, moves)
        self.last_look_was_true = state.ready == ready
        self.copies_at_look = (confirmed, begun)
        return missing

    @contextlib.contextmanager
    def _broker_errors(self) -> Iterator[None]:
        """Do what `run` does after an error of the broker's."""
        try:
            yield
        except (amqp.AMQPError, OSError, module.Error):
            self._disconnect()

    def _disconnect(self) -> None:
        self.stack.close()
        self.session = None
        self.next_connect = self.clock.elapsed + 1
        self.listener._collect()

    def _check_turn(self) -> None:
        """Check what must hold after each turn."""
        if self.listener._snapshot.in_trouble:
            consumer = self.session.consumer_of(RETRY)
            require(
                consumer is None or any(d.is_being_copied for d in consumer.unfinished.values()),
                "the retry queue is consumed while the breaker is open",
            )
        is_lacking = (
            not self.listener._snapshot.in_trouble
            and RETRY in self.broker.queues
            and "read" not in self.broker.denied
            and not isinstance(self.listener, module.Drain)
            and not self.session.consumer_of(RETRY)
        )
        self.lacks_since = min(self.lacks_since, self.clock.elapsed) if is_lacking else math.inf
        lacks = self.collected_at - self.lacks_since
        require(lacks <= 6, f"nobody consumes the retry queue for {lacks:.0f} s")

    def _end_drain(self) -> None:
        """Stop where the listener says so by itself, which only a drain does."""
        # not inside another thread's call, since stopping waits for the other threads
        if not self.listener._stopping.is_set() or self.busy != {"listener"}:
            return
        require(self.is_drain, "the listener stops")
        is_done = self.listener.is_done
        if is_done:
            left = [m for name in self.inbox for m in self.broker.queues[name].ready]
            late = [m for m in left if m.since < self.ticks[0]]
            require(not late, "a drain is done while notifications are left")
            kept = sum(len(c.unfinished) for c in self.session.consumers)
            require(not kept, "a drain is done while deliveries are unfinished")
            ready = self.broker.queues[RETRY].ready if RETRY in self.broker.queues else ()
            unmade = [each for each in ready if not self.sent[each.body].is_made]
            is_left = any(each.since < self.counted_at for each in unmade)
            require(not is_left, "a drain is done while a retry is left that waited before")
        self.is_drain = False  # then a listener goes on
        self.stop()

    def stop(self) -> None:
        """Stop the program in good order, and start it again."""
        self.listener.stop()
        self.stop_before = self.clock.elapsed + PATIENCE
        self.busy.add("stop")
        try:
            if self.session:
                with self._broker_errors():
                    self.listener._finish(self.session)
                    is_idle = all(worker.job is None for worker in self.workers)
                    require(is_idle, "the program stops during an attempt")
                    is_told = not any(
                        each.is_doubtful and each.is_being_copied
                        for consumer in self.session.consumers
                        for each in consumer.unfinished.values()
                    )
                    require(is_told, "the program stops before a person is told of a doubt")
            self.stack.close()
        finally:
            self.busy.discard("stop")
        self.kill()

    def kill(self) -> None:
        """Kill the program, and start it again."""
        for connection in list(self.broker.connections):
            connection.cut()
        self.start()

    # The workers' threads

    def work(self) -> None:
        """Have a worker take a job, or report the one it has."""
        worker = random.choice(self.workers)
        if worker.job is not None:
            self._report(worker)
        elif worker.wakes_at is None or worker.wakes_at <= self.clock.elapsed:
            self._take(worker)

    def _outstanding(self) -> int:
        """Count jobs whose result is not collected yet."""
        uncollected = sum(isinstance(o, module.Attempted) for _, o in self.attempts._results)
        return uncollected + sum(worker.job is not None for worker in self.workers)

    def _take(self, worker: Worker) -> None:
        now = self.clock.elapsed
        attempts = self.attempts
        outstanding = self._outstanding()
        results = len(attempts._results)
        both_wait = bool(attempts._fresh and attempts._retries)
        if worker in self.sleepers:
            self.sleepers.remove(worker)
        job = attempts.take(now)
        if len(attempts._results) > results:  # it skipped some
            self.last_take = ("", False)
        if job is None:
            self.sleepers.append(worker)
            seconds = attempts._seconds_to_wait(now)
            worker.wakes_at = math.inf if seconds is None else now + seconds
            return
        worker.wakes_at = None
        worker.job = job
        worker.began = now
        require(not (self.failures and outstanding), "two at once after a failure")
        if isinstance(job, module.Probe):
            require(self.failures >= 3 or self.is_open, "a probe that nothing asks for")
            require(now >= self.probe_not_before, "a probe too early")
            return
        require(not self.is_open, "an attempt while the breaker is open")
        require(self.failures < 3, "an attempt instead of the probe")
        sent = self.sent[job.body]
        require(sent.fate in ("deletion", "too long"), "an attempt for what is no deletion")
        require(job.deletion.query == sent.query, "a DELETE that is not the notification's")
        kind = "retry" if job.is_retry else "fresh"
        is_turn = not both_wait or self.last_take != (kind, True)
        require(is_turn, f"two of {kind} in a row while others wait")
        self.last_take = (kind, both_wait)
        headers = job.properties.headers or {}
        tries = headers.get("x-k2hr3-attempts", 0) * job.is_retry + self.tries[job]
        again_at = self.failed_at.get(job, -math.inf) + min(2**tries, INTERVAL)
        require(now >= again_at, "an attempt again, though only its copy had to be made again")
        if job.is_retry:
            self._check_due(job, headers)
        else:
            require(job.deletion.cuk not in attempts._removed, "an attempt for what is removed")
        # what could not be copied is attempted again
        returns = headers.get("x-delivery-count", 0) if job.verdict is None else 0
        is_moved = returns > 1 if job.is_retry else returns > 0
        is_moved = is_moved and not (job.is_retry and isinstance(self.listener, module.Drain))
        require(not is_moved, "an attempt for what was redelivered")

    def _check_due(self, job: Any, headers: dict[str, Any]) -> None:
        tries = int(headers.get("x-k2hr3-attempts", 0))
        is_drain = isinstance(self.listener, module.Drain)  # it ignores due times
        if self.is_clock_true and tries and not is_drain:
            due = headers["x-k2hr3-last-failure"] + min(2**tries, INTERVAL)
            require(self.clock.time() >= due - 1e-3, "a retry before it is due")

    def _report(self, worker: Worker, answer: Answer | None = None) -> None:
        job = worker.job
        answer = answer or self.answer(job)
        self.clock.elapsed = max(self.clock.elapsed, worker.began + answer.seconds)
        now = self.clock.elapsed
        worker.job = None
        seconds = min(now - worker.began, 61)  # the rest is a pause of this machine
        if isinstance(job, module.Probe):
            self._note_probe(answer, now, seconds)
        else:
            self._note_attempt(job, answer, seconds)
        self.attempts.report(job, module.Attempted(answer.error(), seconds), now)

    def _note_probe(self, answer: Answer, now: float, seconds: float) -> None:
        self.is_open = answer.status != 204
        if not self.is_open:
            self.failures = 0
            self.pause = 1.0
            self.probe_not_before = 0.0
            return
        pause = min(max(0.8 * self.pause, answer.retry_after), INTERVAL)
        self.probe_not_before = now + max(pause, seconds)
        self.probe_not_after = now + max(INTERVAL, seconds)
        self.pause = min(2 * self.pause, INTERVAL)

    def _note_attempt(self, job: Any, answer: Answer, seconds: float) -> None:
        sent = self.sent[job.body]
        self.tries[job] += 1
        is_late = answer.status == 204 and seconds > module.DOUBTFUL_SECONDS
        was_doubtful = "x-k2hr3-doubt" in (job.properties.headers or {})
        if was_doubtful:
            self.doubtful.add(job)
        if is_late or answer.may_have_acted:
            self.doubtful.add(job)
            self.doubtful_here.add(job)
            self.doubted.add(sent.cuk)
        if answer.status == 204:
            self.failures = 0
            sent.is_made = True
            self.made.add(job)
            if not job.deletion.ips and job not in self.doubtful:
                self.removed.add(sent.cuk)
            return
        sent.failures += 1
        self.failed_at[job] = self.clock.elapsed
        if answer.status != 431:
            self.failures += 3 if answer.timed_out or seconds > 5 else 1

    # The publisher's thread

    def publish(self) -> None:
        """Have the publisher make one copy."""
        now = self.clock.elapsed
        copies = self.publisher._copies.queue
        if not copies:
            if self.publisher._connection and now > self.published_at + 5:
                self.publisher._close()
            return
        self.published_at = now
        delivery, target, properties = copies[0]
        self._check_copy(delivery, target, properties)
        self.publisher.publish_next(0)
        now = self.clock.elapsed
        answers = [o for d, o in self.attempts._results if d is delivery]
        answer = answers[-1] if answers else None  # the listener may have collected it
        if answer is module.Copied.PAUSED:
            since = max(self.trouble_at.get(name, -math.inf) for name in ("", target))
            require(now <= since + LONGEST_PAUSE + 1, f"copies to {target} are paused for ever")
        elif answer is module.Copied.FAILED:
            is_refused = self.publisher._channel is not None
            self.trouble_at[target if is_refused else ""] = now

    def _check_copy(self, delivery: Any, target: str, properties: Any) -> None:
        sent = self.sent[delivery.body]
        headers = properties.headers
        require(sent.fate != "ignored", "a copy of what is to be ignored")
        if target == DEAD_LETTER:
            is_doubt = headers.get("x-k2hr3-doubt") == "done"
            is_hopeless = sent.fate != "deletion" or (self.limit and sent.failures)
            is_right = (sent.is_made and is_doubt) or is_hopeless
            require(bool(is_right), "a dead letter that can still be deleted")
            if is_doubt:
                self.letters.add(sent.cuk)
            require(bool(headers["x-k2hr3-reason"]), "a dead letter without a reason")
        else:
            require(sent.fate != "malformed", "a retry of what is malformed")
        require(
            headers["x-k2hr3-queue"] in (*self.inbox, QUEUE, RETRY),
            "a copy forgets where it came from",
        )
        tries = (delivery.properties.headers or {}).get("x-k2hr3-attempts", 0)
        tries += self.tries[delivery]
        require(headers["x-k2hr3-attempts"] == tries, "a copy forgets its attempts")
        require("x-delivery-count" not in headers, "a copy with a delivery count")
        is_marked = "x-k2hr3-doubt" in headers
        was_marked = "x-k2hr3-doubt" in (delivery.properties.headers or {})
        must_mark = delivery in self.doubtful or was_marked
        require(is_marked or not must_mark, "a copy forgets its doubt")
        require(not is_marked or was_marked or sent.cuk in self.doubted, "a copy makes a doubt up")

    # Checks

    def check(self) -> None:
        """Check what holds after every step."""
        attempts = self.attempts
        now = self.clock.elapsed
        outstanding = self._outstanding()
        require(attempts._running == outstanding, "the count of running jobs is wrong")
        for delivery in attempts._held:
            seconds = delivery.due - now
            require(seconds <= INTERVAL + 1e-6, f"a delivery is held {seconds:.0f} s more")
        require(not (self.is_open and attempts._fresh), "fresh deletions wait for a breaker")
        require(attempts._breaker.open == self.is_open, "the breaker is not as its probes say")
        wait = attempts._breaker.seconds_to_probe(now)
        is_soon = wait == 0 or now + wait <= self.probe_not_after + 1e-6
        require(not self.is_open or is_soon, f"no probe for {wait:.0f} s")
        since = self.waits_since
        self.waits_since = {each: since.get(each, now) for each in attempts._fresh}
        if any(each.verdict is None for each in attempts._fresh):
            self.fresh_seen = now
        if attempts._fresh:
            self.fresh_since = min(self.fresh_since, *self.waits_since.values())
        for consumer in self.session.consumers if self.session else ():
            for tag, delivery in consumer.unfinished.items():
                self.known[consumer.channel, tag] = delivery
        self._check_sleep(outstanding)
        if self.session and not self.session.connection.is_cut:
            self._check_wake()
        self._check_places()

    def _check_wake(self) -> None:
        """Check that the listener is woken where it has to act."""
        attempts = self.attempts
        results = attempts._results
        all_sleep = all(worker.wakes_at is not None for worker in self.workers)
        is_urgent = any(
            isinstance(outcome, module.Copied)
            or isinstance(job, module.Probe)
            or (isinstance(outcome, module.Attempted) and (job.is_retry or outcome.error))
            for job, outcome in results
        )
        made = sum(isinstance(outcome, module.Attempted) for _, outcome in results)
        must_wake = results and (all_sleep or is_urgent or made >= attempts._wake_at)
        is_woken = self.session.connection.is_woken
        require(not must_wake or is_woken, "nobody wakes the listener for a result")

    def _check_sleep(self, outstanding: int) -> None:
        """Check that no worker sleeps beside a job that it may take."""
        attempts = self.attempts
        now = self.clock.elapsed
        is_asleep = all(w.wakes_at is not None and w.wakes_at > now for w in self.workers)
        is_blocked = attempts._is_stopped or (self.failures and outstanding)
        if is_asleep and not is_blocked:
            is_job = attempts._breaker.seconds_to_probe(now) == 0
            if not self.is_open and (attempts._retries or attempts._fresh):
                is_job = True
            require(not is_job, "all workers sleep beside a job")
        jobs = len(attempts._fresh) + len(attempts._retries)
        awake = sum(w.wakes_at is None and w.job is None for w in self.workers)
        is_calm = not (self.failures or self.is_open or attempts._is_stopped)
        is_idle = is_calm and bool(self.sleepers) and jobs > awake
        require(not is_idle, "a worker sleeps beside a job")

    def _check_places(self) -> None:
        """Check that each delivery is in exactly one place, and that only living ones are."""
        attempts = self.attempts
        lines = [*attempts._fresh, *attempts._retries, *attempts._held]
        consumers = self.session.consumers if self.session else []
        strangers = [each for each in lines if each.consumer not in consumers]
        require(not strangers, "a delivery is kept whose channel is gone")
        if self.listener._stopping.is_set():
            return
        copies = [delivery for delivery, _, _ in self.publisher._copies.queue]
        is_doubled = any(each.consumer.channel.is_given_up for each in copies)
        require(not is_doubled, "a delivery is given back while it is copied")
        jobs = [worker.job for worker in self.workers]
        places = Counter([*lines, *copies, *jobs, *(job for job, _ in attempts._results)])
        for consumer in consumers:
            channel = consumer.channel
            if not channel.is_open or channel.is_cut or channel.connection.is_cut:
                continue
            tags = [*consumer.unfinished, *consumer.finished]
            ours = Counter(tags)
            require(max(ours.values(), default=1) == 1, "a delivery is finished and unfinished")
            held = {tag for tag in channel.unacked if tag in channel.dispatched}
            if isinstance(self.listener, module.Drain):  # it leaves what comes too late
                held &= set(tags)
            require(set(tags) == held, "what is unacked here is not what is unacked there")
            for delivery in consumer.unfinished.values():
                count = places[delivery]
                require(count == 1, f"a delivery is in {count} places")

    # The end

    def settle(self) -> None:
        """Repair everything; then all must come to its end in time."""
        self.planned.clear()
        self.repair_broker()
        self.is_repaired = True
        for sent in self.sent.values():
            sent.is_stubborn = sent.is_stubborn and self.limit > 0 and self.is_clock_true
        deadline = self.clock.elapsed + PATIENCE
        number = 0
        while self.clock.elapsed < deadline and not self._is_settled():
            self.clock.sleep(0.01)
            for name in ("turn", *(["work"] * 2 * len(self.workers)), "publish"):
                number += 1
                self.run(Step(name, number))
                self.check()
        for name, found in self.broker.queues.items():
            is_empty = name == DEAD_LETTER or not found.ready
            require(is_empty, f"{name} is not empty {PATIENCE} s after all was repaired")
        require(not self.broker.unacked(), "deliveries are never acked")
        letters = self.broker.queues.get(DEAD_LETTER)
        dead = {message.body for message in letters.ready} if letters else set()
        for body, sent in self.sent.items():
            is_over = sent.is_made or sent.is_excused or sent.fate == "ignored" or body in dead
            require(is_over, f"a {sent.fate} is lost")

    def _is_settled(self) -> bool:
        names = [name for name in self.broker.queues if name != DEAD_LETTER]
        ready = sum(len(self.broker.queues[name].ready) for name in names)
        return not (ready or self.broker.unacked() or self.is_drain)


#: Name of a step -> how often it is drawn, the thread that takes it, the method.
STEPS: dict[str, tuple[int, str, Callable[[World], None]]] = {
    "turn": (28, "listener", World.turn),
    "work": (34, "worker", World.work),
    "publish": (12, "publisher", World.publish),
    "send": (10, "", World.send),
    "send_many": (3, "", World.send_many),
    "wait": (5, "", World.wait),
    "set_clock": (1, "", World.set_clock),
    "fail_api": (1, "", World.fail_api),
    "repair_api": (1, "", World.repair_api),
    "purge": (1, "", World.purge),
    "lose_leader": (1, "", World.lose_leader),
    "other_takes": (1, "", World.other_takes),
    "lose_connection": (1, "", World.lose_connection),
    "close_channel": (1, "", World.close_channel),
    "cancel": (1, "", World.cancel),
    "delete_queue": (1, "", World.delete_queue),
    "make_queue": (1, "", World.make_queue),
    "remake_exchange": (1, "", World.remake_exchange),
    "deny": (1, "", World.deny),
    "fill": (1, "", World.fill),
    "fail_publish": (1, "", World.fail_publish),
    "stop_broker": (1, "", World.stop_broker),
    "repair_broker": (3, "", World.repair_broker),
    "stop": (1, "listener", World.stop),
    "kill": (1, "listener", World.kill),
}
