"""What the operator says about the ledger's signatures: the table [ledger], and the keys that sign."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from callrec.credentials import LEDGER_KEY, Secrets
from callrec.errors import ConfigError, LedgerError
from callrec.ledger.checkpoint import Lineage
from callrec.ledger.note import Signer, Verifier
from callrec.strict_toml import Table, quoted

_ORIGIN = r"[a-z0-9][a-z0-9./-]{0,99}"
_PROOF = "What an inspector is shown is worth what this key is worth"


@dataclass(frozen=True, slots=True)
class Signing:
    """The ledger's name, and who may have signed it."""

    origin: str  # C2SP: unique, a URL without its scheme; each key bears it as its name
    verifiers: tuple[Verifier, ...]  # every key that ever signed
    anchor_seconds: int  # between anchors while there are new entries, at most
    tsa_url: str  # of an RFC 3161 time-stamp authority; empty: none is asked
    tsa_roots: Path | None  # PEM: whom that authority is believed by

    @property
    def lineage(self) -> Lineage:
        return Lineage(self.origin, self.verifiers)

    def signers(self, secrets: Secrets) -> list[Signer]:
        """The keys that sign from now on; ConfigError if there are none, or one is not among the verifiers."""
        signers = []
        for line in secrets.ledger_key().split():
            try:
                signer = Signer.parse(line)
            except LedgerError as error:
                how = "Give what `callrec keys` made, one key a line"
                raise ConfigError(f"{LEDGER_KEY} holds what is no key", detail=error.detail, hint=how) from None
            if signer.verifier not in self.verifiers:
                how = f'Add "{signer.verifier}" to [ledger] verifiers'
                raise ConfigError(f"{LEDGER_KEY} is not among [ledger] verifiers: nobody would know it", hint=how)
            signers.append(signer)
        return signers

    def faults(self, secrets: Secrets) -> Iterator[tuple[str, str, str]]:
        """What is wrong with the keys that are given: (variable, what, how) each."""
        if secrets.given(LEDGER_KEY):
            try:
                self.signers(secrets)
            except ConfigError as error:
                yield LEDGER_KEY, error.message, error.hint


def read(table: Table) -> Signing:
    """The table [ledger]."""
    origin = table.text("origin", wanted="a name such as ledger.example.com/calls", pattern=_ORIGIN)
    verifiers = []
    for text in table.texts("verifiers", wanted='a list such as ["NAME+ID+KEY"]', pattern=r"[^\s]+"):
        try:
            verifier = Verifier.parse(text)
        except LedgerError:
            table.fault(
                "verifiers", f"holds {quoted(text)}, no public key", _PROOF, "Paste it as `callrec keys` gave it"
            )
            continue
        if origin and verifier.name != origin:
            how = f"Make one with this name: callrec keys --ledger --origin {origin}"
            table.fault("verifiers", f"holds a key of {quoted(verifier.name)}", "The origin is the key's name", how)
        verifiers.append(verifier)
    if table.has("verifiers") and not verifiers:
        table.fault("verifiers", "names no public key", _PROOF, "Paste the public half of what `callrec keys` gave")
    url = table.text("tsa_url", "", wanted="a URL that begins with https:// or http://", pattern=r"(https?://[^\s@]+)?")
    roots = table.text("tsa_roots", "", wanted="the path of a PEM file")
    if url and not roots:
        why = "A time stamp of somebody who is not known proves nothing"
        table.fault("tsa_roots", "is missing", why, "Name the file with the authority's root certificates")
    if roots and not url:
        table.fault(
            "tsa_url", "is missing", "Nobody would be asked for a stamp", "Name the authority, or remove tsa_roots"
        )
    return Signing(
        origin=origin,
        verifiers=tuple(verifiers),
        anchor_seconds=table.integer("anchor_seconds", 60, 1, 3600),
        tsa_url=url,
        tsa_roots=Path(roots) if roots else None,
    )
