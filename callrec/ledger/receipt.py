"""What a bundle says of a call in other people's formats. It repeats the entries, and adds the operator's word.

receipt.json   a receipt by ISO/IEC TS 27560:2023, as the W3C community group's Data Privacy Vocabulary writes it
vcon.json      a vCon with its lawful basis, as two drafts of the IETF's have it, which say so: both will change

What both repeat, the events and the states of consent, is what ledger/verify.py reads from the entries, and it compares
them: what is told otherwise is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from callrec.ledger.verify import Fact, repeated

GUIDE = "ISO/IEC TS 27560:2023 by the DPV guide, Final Community Group Report of 1 August 2024"
DRAFTS = ("draft-ietf-vcon-vcon-core-02", "draft-howe-vcon-lawful-basis-02")
_SCHEMA = "https://w3id.org/dpv/schema/dpv-27560"
_CONTEXT = {
    "dpv": "https://w3id.org/dpv#",
    "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
    "loc": "https://w3id.org/dpv/loc#",
    "dct": "http://purl.org/dc/terms/",
    "callrec": "urn:callrec:evidence#",
}
# GDPR, Article 6(1): the letters, as the draft calls them.
_LAWFUL = dict(
    zip(
        "abcdef",
        ("consent", "contract", "legal_obligation", "vital_interests", "public_task", "legitimate_interests"),
        strict=True,
    )
)
_RIGHTS = {"A15": "access", "A16": "rectification", "A17": "erasure", "A18": "restriction", "A77": "complaint"}


@dataclass(frozen=True, slots=True)
class Controller:
    """Who recorded, and where it keeps recordings."""

    name: str
    address: str
    contact: str
    country: str  # ISO 3166-1 alpha-2
    language: str  # of the notices
    location: str  # of the storage


def told(facts: Sequence[Fact], kind: str) -> Mapping[str, Any]:
    """The body of the call's last entry of this kind; empty where there is none, or where it is not known any more."""
    return next((fact["said"] for fact in reversed(facts) if fact["kind"] == kind), {})


def receipt(facts: Sequence[Fact], controller: Controller, *, receipt_id: UUID, made_at: str) -> dict[str, Any]:
    """The receipt. Where the basis is no consent, the record in it is one of processing in general, without states."""
    arrived, basis = told(facts, "call_arrived"), told(facts, "basis_established")
    notice, same = told(facts, "notice_completed"), repeated(facts)
    asked = bool(same["dpv:hasConsentStatus"])
    record: dict[str, Any] = {
        "@id": f"urn:uuid:{facts[0]['call']}",
        "@type": "dpv:ConsentRecord" if asked else "dpv:DataProcessingRecord",
        "dct:identifier": facts[0]["call"],
        **({"dct:conformsTo": f"{_SCHEMA}#record-eu-gdpr"} if asked else {}),
        "dpv:hasDataSubject": {"@type": "dpv:DataSubject", "callrec:known_as": "the caller of this call"},
        "dpv:hasDataController": {
            "@type": "dpv:DataController",
            "dpv:hasName": controller.name,
            "dpv:hasAddress": controller.address,
            "dpv:hasContact": controller.contact,
        },
        "dpv:hasJurisdiction": f"loc:{controller.country}",
        "dpv:hasApplicableLaw": "eu-gdpr:GDPR",
        "dpv:hasNotice": {
            "@type": "dpv:ConsentNotice" if asked else "dpv:PrivacyNotice",
            "dct:identifier": arrived.get("notice"),
            "dct:hasVersion": arrived.get("notice_version"),
            "dct:language": controller.language,
            "dct:source": notice.get("notice_url"),
            "callrec:text_sha256": notice.get("text_sha256"),
            "callrec:audio_sha256": notice.get("audio_sha256"),
        },
        "dpv:hasRight": [
            {"@type": ["dpv:DataSubjectRight", f"eu-gdpr:{article}"], "dct:title": title,
             "dpv:isExercisedAt": controller.contact}
            for article, title in (({"A7-3": "withdrawal of consent"} if asked else {}) | _RIGHTS).items()
        ],
        **same,
    }  # fmt: skip
    if basis:
        letter = _letter(basis)
        record |= {
            "dpv:hasLegalBasis": f"eu-gdpr:A6-1-{letter}" if letter else basis["citation"],
            "callrec:citation": basis["citation"],
            "dpv:hasProcess": {
                "@type": "dpv:Process",
                "dpv:hasPurpose": basis["purposes"],
                "dpv:hasPersonalData": ["the voice and what was said", "the number", "the times of the call"],
                "dpv:hasRecipient": [],
                "dpv:hasStorageCondition": [
                    {"@type": "dpv:StorageLocation", "dpv:hasLocation": controller.location},
                    {"@type": "dpv:StorageDuration", "dpv:hasDuration": basis.get("retention")},
                ],
            },
        }
    return {
        "@context": _CONTEXT,
        "@id": f"urn:uuid:{receipt_id}",
        "@type": "dpv:ConsentReceipt" if asked else "dpv:DataProcessingRecord",
        "dct:identifier": str(receipt_id),
        **({"dct:conformsTo": f"{_SCHEMA}#receipt-eu-gdpr"} if asked else {}),
        "callrec:profile": GUIDE,
        "dct:created": made_at,
        "dct:publisher": controller.name,
        "dpv:hasRecordOfActivity": record,
    }


def vcon(
    facts: Sequence[Fact], controller: Controller, *, vcon_id: UUID, made_at: str, line: str, number: str = ""
) -> dict[str, Any]:
    """The vCon of a call that a basis was established for. `line`, `number`: E.164; the number only for its owner."""
    basis, stored = told(facts, "basis_established"), told(facts, "recording_stored")
    begun = told(facts, "recording_started")
    established = next(fact["at"] for fact in facts if fact["kind"] == "basis_established")
    same = repeated(facts)
    gone = any(state["@type"] == "dpv:ConsentWithdrawn" for state in same["dpv:hasConsentStatus"])
    grant = {"granted": not gone, "granted_at": established}
    dialog = {
        "type": "recording",
        "start": begun.get("at") or established,
        "duration": stored.get("duration_seconds", 0),
        "parties": [0, 1],
        "mediatype": "audio/x-wav",
        "filename": "audio.wav",
    }
    proof = {"proof_type": "external_system", "timestamp": established, "proof_data": {"method": basis.get("decision")}}
    return {
        "vcon": "0.4.0",
        "uuid": str(vcon_id),
        "extensions": ["lawful_basis"],
        "created_at": made_at,
        "parties": [
            {"tel": f"tel:{number}"} if number else {"uuid": facts[0]["call"]},
            {"name": controller.name, **({"tel": f"tel:{line}"} if line else {})},
        ],
        "dialog": [dialog],
        "analysis": [],
        "attachments": [
            {
                "purpose": "lawful_basis",
                "start": established,
                "party": 0,
                "dialog": 0,
                "encoding": "json",
                "body": {
                    # None of the six is a national permission: where the operator names none, nor do we.
                    "lawful_basis": _LAWFUL.get(_letter(basis)),
                    "expiration": stored.get("retain_until"),
                    "purpose_grants": [{"purpose": purpose, **grant} for purpose in basis.get("purposes", ())],
                    "proof_mechanisms": [proof],
                    "metadata": {"drafts": DRAFTS, "national_law": basis.get("citation"), **same},
                },
            }
        ],
    }


def _letter(basis: Mapping[str, Any]) -> str:
    """Of GDPR, Article 6(1), as the configuration writes it: 6(1)(a)."""
    article = str(basis.get("gdpr_article_6") or "")
    return (
        article[5] if article.startswith("6(1)(") and article.endswith(")") and len(article) == len("6(1)(a)") else ""
    )
