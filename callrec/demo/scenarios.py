"""The calls that show what callrec does, and what the law demands of each: data, for any switch to place.

Moments are those of demo/caller.py; orders come from the agent's desk, seconds into the conversation.
"""

from dataclasses import dataclass

from callrec.demo.caller import CallScript, after_prompt, during_prompt, hang_up, in_conversation, press

_SALES, _SERVICE, _UNKNOWN = "040404045", "+38640404040", "040404099"


@dataclass(frozen=True, slots=True)
class Demand:
    """What must be there afterwards, and what must not."""

    law: str  # in a few words, with the requirements it follows from
    decision: str
    basis: str | None = None  # of the one stored recording; None: no file, no object, no key
    kinds: tuple[str, ...] = ()  # of ledger entries that must stand in this order, others may stand between
    never: tuple[str, ...] = ()  # of ledger entries that must not be there
    reached_agent: bool = True
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    script: CallScript
    demand: Demand
    orders: tuple[tuple[float, str], ...] = ()


_UNRECORDED = ("basis_established", "recording_started", "recording_stored")
_RECORDED = ("notice_completed", "basis_established", "recording_started", "recording_stopped", "recording_stored")

SCENARIOS = (
    Scenario(
        "sale",
        "a call to the sales line",
        CallScript(_SALES, talk=6),
        Demand("notice whole, then recorded, 3 years (A1, C1)", "notice_given", "market_transaction", _RECORDED),
    ),
    Scenario(
        "consent",
        "a caller who agrees: 1 after the notice",
        CallScript(_SERVICE, steps=((after_prompt(1.0), press("1")),), talk=6),
        Demand("recorded from the key on, 3 months (A4, C2)", "granted", "consent", _RECORDED),
    ),
    Scenario(
        "refusal",
        "a caller who refuses: 2 during the notice",
        CallScript("0038640404030", steps=((during_prompt(0.4), press("2")),), talk=3),
        Demand("nothing recorded, same way on (A5, A6, D7)", "refused", None, ("consent_refused",), _UNRECORDED),
    ),
    Scenario(
        "early-key",
        "1 during the notice, then nothing",
        CallScript("38640404085", steps=((during_prompt(0.5), press("1")),), talk=3),
        Demand("1 does not count, is asked again (A5)", "no_input", None, ("asked_again", "no_consent"), _UNRECORDED),
    ),
    Scenario(
        "silence",
        "a caller who presses nothing",
        CallScript("040404042", talk=3),
        Demand("silence is no consent (A7)", "no_input", None, ("asked_again", "no_consent"), _UNRECORDED),
    ),
    Scenario(
        "wrong-keys",
        "a caller who presses 5, 7, 9",
        CallScript(
            "+38640404066",
            steps=tuple((after_prompt(1.0, number), press(key)) for number, key in ((1, "5"), (2, "7"), (3, "9"))),
            talk=3,
        ),
        Demand("wrong keys are no consent (A4, A7)", "wrong_key", None, ("asked_again", "no_consent"), _UNRECORDED),
    ),
    Scenario(
        "hang-up",
        "a caller who hangs up during the notice",
        CallScript(_SALES, steps=((during_prompt(0.5), hang_up()),)),
        Demand(
            "nothing exists (A3)", "abandoned", None, ("abandoned_during_notice",), _UNRECORDED, reached_agent=False
        ),
    ),
    Scenario(
        "unknown-line",
        "a call to a number that is in no document",
        CallScript(_UNKNOWN, talk=3),
        Demand(
            "nothing played, nothing recorded (B8)", "unknown_line", None, ("released_unrecorded",),
            ("notice_started", *_UNRECORDED),
        ),
    ),
    Scenario(
        "withdrawal",
        "consent, taken back in the conversation with *2",
        CallScript(
            "040404041", steps=((after_prompt(1.0), press("1")), (in_conversation(3.0), press("*2"))), talk=8
        ),
        Demand(
            "stopped and discarded at once (D1, D2)", "withdrawn", None,
            ("recording_started", "consent_withdrawn", "recording_discarded"), ("recording_stored",),
        ),
    ),
    Scenario(
        "masked",
        "consent, with a passage that the agent masks",
        CallScript(_SERVICE, steps=((after_prompt(1.0), press("1")),), talk=16),
        Demand(
            "recorded, the passage silent (A11)", "granted", "consent",
            (*_RECORDED[:3], "recording_masked", "recording_unmasked", *_RECORDED[3:]), masked=True,
        ),
        orders=((4.0, "mask"), (9.0, "unmask")),
    ),
)  # fmt: skip


def by_name(name: str) -> Scenario | None:
    return next((scenario for scenario in SCENARIOS if scenario.name == name), None)
