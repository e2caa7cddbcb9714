"""What can go wrong, in callrec's own words.

Foreign exceptions stop at the adapter that meets them and leave it as one of these. Each says what happened
(`message`), why (`detail`) and what to do (`hint`); the last two may be empty.
"""


class CallrecError(Exception):
    """Base of everything that callrec raises on purpose."""

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return ". ".join(part.rstrip(".") for part in (self.message, self.detail, self.hint) if part)


class ConfigError(CallrecError):
    """The configuration can't be used as it is."""


class WireError(CallrecError):
    """What came over the event socket is not the event-socket protocol, or exceeds its bounds.

    `kind` is one of a closed list (esl/wire.py, esl/link.py) and goes into metric labels.
    """

    def __init__(self, message: str, *, kind: str = "wire", detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.kind = kind


class LinkError(CallrecError):
    """The event socket can't do what was asked of it."""


class LinkClosedError(LinkError):
    """The connection is gone; whoever waited on it will get no answer."""


class LinkTimeoutError(LinkError):
    """FreeSWITCH did not answer within the deadline."""


class StoreError(CallrecError):
    """Postgres or Redis refused, or could not be reached within the deadline."""


class StatementRefusedError(StoreError):
    """Postgres answered, and refused the statement for what is in it: sent again it would be refused again."""


class StorageError(CallrecError):
    """The object store refused, could not be reached, or did not keep what it was given.

    `transient`: the same request may succeed later (network, overload, 5xx); otherwise someone has to mend something.
    """

    def __init__(self, message: str, *, detail: str = "", hint: str = "", transient: bool = False) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.transient = transient


class SpoolError(CallrecError):
    """The spool directory can't hold or give what it should."""


class OtherFileError(SpoolError):
    """What stands in a recording's place is not the file that was begun: shorter, replaced, or no file of ours."""


class WavError(CallrecError):
    """A recording's file is not the WAV that FreeSWITCH writes."""


class EnvelopeError(CallrecError):
    """A sealed recording does not open: wrong key, cut short, or changed."""


class LedgerError(CallrecError):
    """An entry, a proof or a checkpoint of the ledger is not what it is said to be."""


class AccessDeniedError(CallrecError):
    """This purpose may not be served with this recording."""


class RightsError(CallrecError):
    """What was asked for is incomplete, or the law has it otherwise."""


class ConflictError(RightsError):
    """What was asked for contradicts what stands."""


class UnknownError(RightsError):
    """What was named is not there."""
