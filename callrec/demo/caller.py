"""What a simulated caller does, and when. A script is data: nothing here runs.

Moments are relative to what the caller notices (the call being answered, the progress of a prompt, the conversation),
never to the wall clock, so that one script holds at any speed. Prompts are counted from 1; silence is no prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from callrec.errors import ConfigError

ARRIVAL, ANSWER, PROMPT, AFTER_PROMPT, CONVERSATION = "arrival", "answer", "prompt", "after_prompt", "conversation"
PRESS, HANG_UP, AGENT_HANGS_UP, CHANGE_CODEC = "press", "hang_up", "agent_hangs_up", "change_codec"

CLOCK, SILENCE = "clock", "silence"  # what a call sounds like; None: nothing is said, and files are filled at close


@dataclass(frozen=True, slots=True)
class When:
    """A moment: `offset` seconds after `point` number `number`; of a prompt in progress, the part of it (0 to 1)."""

    point: str
    offset: float = 0.0
    number: int = 1


@dataclass(frozen=True, slots=True)
class Act:
    """press: the keys, one after the other; hang_up: the cause, as FreeSWITCH names it; change_codec: the new rate."""

    kind: str
    value: str = ""


def on_arrival(seconds: float = 0.0) -> When:
    """`seconds` after the call came in, answered or not."""
    return When(ARRIVAL, seconds)


def at_answer(seconds: float = 0.0) -> When:
    return When(ANSWER, seconds)


def during_prompt(part: float, number: int = 1) -> When:
    """When this part (0 to 1) of the prompt has been played."""
    return When(PROMPT, part, number)


def after_prompt(seconds: float, number: int = 1) -> When:
    return When(AFTER_PROMPT, seconds, number)


def in_conversation(seconds: float) -> When:
    """`seconds` after the agent was reached."""
    return When(CONVERSATION, seconds)


def press(keys: str) -> Act:
    return Act(PRESS, keys)


def hang_up(cause: str = "NORMAL_CLEARING") -> Act:
    return Act(HANG_UP, cause)


def agent_hangs_up() -> Act:
    return Act(AGENT_HANGS_UP)


def change_codec(rate: int) -> Act:
    """The caller's side sends a re-INVITE: from then on so many samples a second come in."""
    return Act(CHANGE_CODEC, str(rate))


@dataclass(frozen=True, slots=True)
class CallScript:
    """One inbound call. Without a step that ends it, the caller talks for `talk` seconds to the agent and hangs up."""

    dialled: str
    caller_number: str = "5551234"
    caller_name: str = "Tester"
    steps: tuple[tuple[When, Act], ...] = ()
    talk: float = 5.0  # seconds of conversation before the caller hangs up; 0: nobody does
    audio: str | None = CLOCK
    agent_answers: bool = True  # False: the bridge fails with NO_ANSWER, and the call ends
    variables: Mapping[str, str] = field(default_factory=dict)  # more channel variables, set before `socket`
    late_hangup: bool = False  # the rare order: CHANNEL_HANGUP after EXECUTE_COMPLETE (3 of 80 calls)
    # A prompt cut by hanging up is called done, on a channel answered (1 of 80), and this, as FreeSWITCH puts it:
    unnoticed_hangup: str = ""  # FILE PLAYED or PLAYBACK ERROR; empty: it is not called so
    lose_record_stop: bool = False  # RECORD_STOP never comes (FreeSWITCH issue 765)


def from_json(data: Mapping[str, Any]) -> CallScript:
    """A script from its JSON form: the fields by name; a step is [point, offset, number, kind, value].

    ConfigError for a field that no script has.
    """
    known = {f.name for f in fields(CallScript)}
    if unknown := set(data) - known:
        raise ConfigError(f"A call script has no {', '.join(sorted(unknown))}", hint=f"It has {', '.join(known)}.")
    steps = tuple(
        (When(str(point), float(offset), int(number)), Act(str(kind), str(value)))
        for point, offset, number, kind, value in data.get("steps", ())
    )
    return CallScript(**{**data, "steps": steps})
