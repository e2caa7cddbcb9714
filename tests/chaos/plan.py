"""Calls that are in every phase at once when the fault strikes, and what is withdrawn then.

Times are seconds of the wall clock, counted from the moment when the fault strikes.
"""

from dataclasses import dataclass

from house import NOTICE, SPEED

PHASES = ("notice", "asking", "starting", "recording", "after", "erasing")
NUMBER = "+38640123456"
_SALES, _SERVICE = "040404045", "040404040"
_HEARD = NOTICE / SPEED  # seconds that a notice lasts
_KEY = 0.3  # seconds after the notice
_CLOSE = 0.25  # seconds around a decision in which its recording starts


@dataclass(frozen=True, slots=True)
class Planned:
    """A call to place at `at`; `withdrawn_at`: the portal then says that its consent is withdrawn."""

    at: float
    phase: str
    script: dict
    withdrawn_at: float | None = None


def _script(dialled: str, talk: float, *steps: tuple) -> dict:
    return {"dialled": dialled, "caller_number": NUMBER, "talk": max(0.1, talk) * SPEED, "steps": steps}


def sale(phase: str, heard: float, until: float) -> Planned:
    """Hears the notice until `heard`, is recorded and hangs up at `until`."""
    return Planned(heard - _HEARD, phase, _script(_SALES, until - heard))


def consent(phase: str, key: float, until: float, *steps: tuple, wait: float = _KEY, **more: float) -> Planned:
    """Agrees at `key`, `wait` after the notice, and hangs up at `until`."""
    agree = ("after_prompt", wait * SPEED, 1, "press", "1")
    return Planned(key - wait - _HEARD, phase, _script(_SERVICE, until - key, agree, *steps), **more)


def taken_back(key: float, at: float) -> Planned:
    """Agrees at `key`, and takes that back with *2 at `at`."""
    return consent("erasing", key, at + 2.0, ("in_conversation", (at - key) * SPEED, 1, "press", "*2"))


def calls(lasts: float) -> list[Planned]:
    """For a fault of that many seconds, in the order in which they are placed."""
    planned = [
        sale("notice", 0.3, lasts + 0.5),
        sale("notice", 0.6, 1.6),
        consent("notice", 0.9, lasts + 0.5),
        Planned(-0.6, "notice", _script(_SERVICE, 1.0, ("prompt", 0.9, 1, "press", "2"))),
        *(sale("notice", at + _HEARD, at + _HEARD + 1.0) for at in (0.3, lasts - 0.8)),
        *(consent("notice", at + _HEARD + _KEY, at + 3.0) for at in (0.7, lasts - 0.4)),
        consent("asking", 0.3, lasts + 0.5, wait=0.7),
        consent("asking", 0.15, 1.6, wait=0.6),
        Planned(-0.4 - _HEARD, "asking", _script(_SERVICE, 1.0)),  # presses nothing
        *(consent("starting", at / 100, 1.0 + at / 10) for at in (-9, -6, -4, -2, 0, 2, 5)),
        *(sale("starting", at / 100, 2.0 + at / 10) for at in (-7, -4, -1, 1)),
        sale("recording", -1.5, 1.0),
        sale("recording", -1.3, lasts + 0.7),
        consent("recording", -1.0, lasts / 2),
        consent("recording", -0.9, lasts + 1.0),
        sale("after", -2.4, -0.5),
        sale("after", -2.2, -0.15),
        consent("after", -1.8, -0.03),
        taken_back(-1.4, -0.3),
        taken_back(-1.2, -0.05),
        consent("erasing", -1.1, lasts + 1.0, withdrawn_at=-0.2),
        consent("erasing", -1.0, lasts + 1.0, withdrawn_at=0.4),
    ]
    return sorted(planned, key=lambda each: each.at)


LEAD = 4.0  # seconds from the beginning of an experiment to its fault
# The portal withdraws a stored recording each time.
STORED_WITHDRAWN = (-1.3, -1.1, -0.9, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.3)


def was_there(phase: str, facts: dict[str, float], struck: float) -> bool:
    """Whether a call was in that phase when the fault struck. `facts`: when each first happened to it."""
    inf = float("inf")
    heard = facts.get("prompt", inf)
    decided = min(facts.get("key", inf), facts.get("released", inf))
    match phase:
        case "notice":
            return facts.get("answered", inf) <= struck < heard
        case "asking":
            return heard <= struck < decided
        case "starting":
            return abs(facts.get("key", heard) - struck) < _CLOSE
        case "recording":
            return facts.get("recording", inf) <= struck < facts.get("recorded", inf)
        case _:
            return facts.get("recorded", inf) <= struck
