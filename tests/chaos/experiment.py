"""One experiment: calls in every phase, a fault, its end, and everything read back."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import gevent
from exchange import Call
from faults import LASTS, LONGER, healed_at_exit, strike
from house import WAIT, House
from plan import LEAD, NUMBER, PHASES, STORED_WITHDRAWN, Planned, calls, was_there
from reading import Found, Reader, unsettled

_CALLS = 40.0  # seconds for all calls to be over
_SETTLE = 150.0  # seconds until nothing is under way: the longest lease that a fault may leave is 120 s
_TAKEN = 60.0  # seconds in which a withdrawal must be taken in
_HEARD = 0.2  # seconds after which a key that was pressed before the fault must have had its effect
_DECISION = 0.25  # seconds that a decision may take (listen.decision_timeout_ms)
_SLACK = 1.25  # seconds for a machine that others use too
# Seconds that callers may wait longer. Who conducts the calls stands still itself; a listener that does is ended.
_MORE = {
    ("listen", "stopped"): 7.0, ("freeswitch", "stopped"): LASTS, ("node", "stopped"): LASTS,
    ("listen", "slow"): 1.5, ("freeswitch", "slow"): 1.5,
}  # fmt: skip
_NO_LOSS = ("callers_lost", "recordings_lost", "audio_lost", "without_basis", "left")


@dataclass(slots=True)
class Outcome:
    """What an experiment came to."""

    target: str
    fault: str
    senseless: str = ""  # why there was none
    phases: dict[str, Found] = field(default_factory=dict)
    total: Found = field(default_factory=Found)
    unheard: int = 0  # keys *2 in the very moment of the fault that nobody heard: their recordings went on
    unproved: list[str] = field(default_factory=list)  # phases in which no call was when the fault struck
    unsettled: str = ""
    settled_after: float = 0.0  # seconds from the end of the fault until nothing was under way
    took: float = 0.0  # seconds

    @property
    def red(self) -> bool:
        return bool(self.total.wrong or self.unsettled or self.unproved)


class Laboratory:
    """Makes experiments on one house, one after the other; what one has stored, the next one has erased."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._kept: list[Call] = []  # stored consent recordings that nobody has withdrawn
        self._all: list[Call] = []

    def warm_up(self) -> None:
        """Calls without a fault, so that there is something to erase; SystemExit unless all is well."""
        outcome = self._attempt("none", "none", lambda: lambda: None)
        if outcome.total.wrong or outcome.unsettled:
            raise SystemExit("\n".join(["chaos: without any fault", outcome.unsettled, *outcome.total.wrong]))

    def run(self, target: str, fault: str) -> Outcome:
        """Once more if a phase had no call in the moment of the fault: the machine was busy with something else."""
        outcome = self._attempt(target, fault, lambda: strike(self._house, target, fault))
        if outcome.unproved and not outcome.total.wrong:
            outcome = self._attempt(target, fault, lambda: strike(self._house, target, fault))
        return outcome

    def _attempt(self, target: str, fault: str, begin: Callable[[], Callable[[], None]]) -> Outcome:
        outcome, began = Outcome(target, fault), time.monotonic()
        lasts = LONGER.get((target, fault), LASTS)
        struck = time.time() + LEAD
        placed, withdrawn = [], {}
        tasks = [gevent.spawn(self._place, each, struck, placed, withdrawn) for each in calls(lasts)]
        old = [self._kept.pop() for _ in STORED_WITHDRAWN if self._kept]
        tasks += [
            gevent.spawn(self._withdraw, call, struck + at, withdrawn)
            for at, call in zip(STORED_WITHDRAWN, old, strict=False)
        ]
        with ExitStack() as ends:
            _sleep_until(struck)
            struck = time.time()
            heal = healed_at_exit(ends, begin())
            _sleep_until(struck + lasts)
            heal()
        healed = time.monotonic()
        gevent.joinall(tasks, timeout=_TAKEN)
        self._await(placed, outcome)
        outcome.settled_after = time.monotonic() - healed
        self._read(outcome, placed, old, withdrawn, struck)
        outcome.took = time.monotonic() - began
        return outcome

    # What happens meanwhile

    def _place(self, planned: Planned, struck: float, placed: list[Call], withdrawn: dict[str, bool]) -> None:
        _sleep_until(struck + planned.at)
        call = self._house.switch.place(planned.phase, planned.script)
        if call is None:  # there is no FreeSWITCH to bring it
            return
        placed.append(call)
        if planned.withdrawn_at is not None:
            self._withdraw(call, struck + planned.withdrawn_at, withdrawn)

    def _withdraw(self, call: Call, at: float, withdrawn: dict[str, bool]) -> None:
        """As a portal does it that tries until it is told that it is done."""
        _sleep_until(at)
        end, received_at = time.monotonic() + _TAKEN, datetime.now(UTC).isoformat()
        while call.recording and time.monotonic() < end and not withdrawn.get(call.recording):
            withdrawn[call.recording] = self._house.withdraw(call.recording, NUMBER, received_at)
            gevent.sleep(0.3)

    def _await(self, placed: list[Call], outcome: Outcome) -> None:
        self._house.reopen()
        end = time.monotonic() + _CALLS
        while not all(call.over for call in placed) and time.monotonic() < end:
            gevent.sleep(0.05)
        end = time.monotonic() + _SETTLE
        while (still := unsettled(self._house)) and time.monotonic() < end:
            gevent.sleep(0.2)
        outcome.unsettled = still

    # What is read back

    def _read(
        self, outcome: Outcome, placed: list[Call], old: list[Call], withdrawn: dict[str, bool], struck: float
    ) -> None:
        reader = Reader(self._house)
        outcome.phases = {phase: Found() for phase in PHASES}
        patience = WAIT + _DECISION + _SLACK + _MORE.get((outcome.target, outcome.fault), 0.0)
        for call in placed:
            taken_back = _taken_back(call)
            kept = self._stored(call)
            if taken_back is not None and kept and taken_back > struck - _HEARD:
                outcome.unheard += 1
                taken_back = None
            gone = taken_back is not None or withdrawn.get(call.recording, False)
            outcome.phases[call.phase].add(reader.call(call, patience=patience, withdrawn=gone))
            if kept and not gone and call.line == "service":
                self._kept.append(call)
        for call in old:
            found = Found(erased=1)
            reader.gone(call.recording, call.channel, found)
            outcome.phases["erasing"].add(found)
        refused = [recording for recording, taken in withdrawn.items() if not taken]
        outcome.phases["erasing"].wrong += [f"the withdrawal of {each} was never taken in" for each in refused]
        self._all += placed
        outcome.phases["starting"].wrong += [f"{each} was recorded by nobody" for each in reader.strangers(self._all)]
        for found in outcome.phases.values():
            outcome.total.add(found)
        outcome.unproved = self._unproved(placed, struck)
        for call in placed:
            (self._house.tapes / f"{call.recording}.wav").unlink(missing_ok=True)

    def _stored(self, call: Call) -> bool:
        return bool(
            call.recording
            and self._house.inspector.rows(
                "SELECT 1 FROM recording WHERE recording_id = %s AND state = 'stored'", call.recording
            )
        )

    def _unproved(self, placed: list[Call], struck: float) -> list[str]:
        there = set()
        for call in placed:
            facts = {fact[0]: when for when, fact in reversed(call.facts)}
            if was_there(call.phase, facts, struck):
                there.add(call.phase)
        there.discard("erasing")
        if self._house.inspector.rows(
            "SELECT 1 FROM erasure, to_timestamp(%s) struck WHERE requested_at < struck AND erased_at > struck", struck
        ):
            there.add("erasing")
        return [phase for phase in PHASES if phase not in there]


def _taken_back(call: Call) -> float | None:
    """When FreeSWITCH heard the key that takes consent back."""
    bridged = call.at("bridged")
    if bridged is None:
        return None
    return next((when for when, fact in call.facts if fact == ("key", "2") and when > bridged), None)


def _sleep_until(moment: float) -> None:
    gevent.sleep(max(0.0, moment - time.time()))


def red(found: Found) -> bool:
    return bool(found.wrong) or any(getattr(found, name) for name in _NO_LOSS)
