"""What a call is at one moment: an immutable value that only `machine.step` replaces."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from callrec.call.events import PromptEnded
from callrec.call.policy import Line


class State(StrEnum):
    NEW = "new"
    ANNOUNCING = "announcing"
    ASKING = "asking"
    AUTHORISING = "authorising"
    STARTING = "starting"
    RECORDING = "recording"
    CLOSING = "closing"
    STOPPED = "stopped"
    DISCARDING = "discarding"
    UNRECORDED = "unrecorded"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines in seconds."""

    prompt: float = 10.0  # beyond a prompt's own length, until it must have ended
    hangup: float = 0.25  # from the end of a notice that was cut short to the hang-up that cut it
    unknown_prompt: float = 180.0  # for a prompt whose length is not known
    authorise: float = 0.5  # the listener answers within the decision timeout; this is its backstop
    start: float = 1.0  # from uuid_record to RECORD_START
    close: float = 5.0  # from hang-up, or stop, to RECORD_STOP


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `deadline` is on the monotonic clock of the `now` that `step` is given; None: wait for ever."""

    id: UUID
    recording_id: UUID
    timing: Timing = Timing()
    state: State = State.NEW
    line: Line | None = None
    deadline: float | None = None
    token: str = ""  # of the prompt that plays
    prompts: int = 0  # played so far; makes each token new
    completed: PromptEnded | None = None  # what FreeSWITCH said of the notice as a whole
    unbroken: bool | None = None  # whether PLAYBACK_STOP of the notice said done; None: not said yet
    heard_whole: bool = False  # the notice was played from its first to its last sample
    listening_from: int | None = None  # Event-Sequence after which a `1` counts
    early: bool = False  # a `1` came during the notice
    repeats: int = 0  # of the question
    keys: tuple[tuple[int, str], ...] = ()  # (Event-Sequence, digit), as far as they may belong to a withdrawal
    decision: str = ""
    started: bool = False  # RECORD_START was seen
    released: bool = False
    hung_up: bool = False

    @property
    def rule(self) -> Line:
        """What holds for this call. Only a call to a known line leaves NEW for a state that asks."""
        assert self.line is not None
        return self.line
