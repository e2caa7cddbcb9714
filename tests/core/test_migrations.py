"""A migration is safe while the version before it still runs: it adds, and takes nothing away that it may use.

`callrec migrate` runs before the new version is started anywhere (README, "Upgrades"), so for a while the old one's
statements meet the new schema, on every node that has not had its turn. What they read, write and may do has to stay.
"""

import re
from pathlib import Path

import pytest

SQL = Path(__file__).parents[2] / "sql"
FIRST = "0001_calls.sql"  # there is no version before it
BREAKING = {
    "takes something away": r"DROP (?!NOT NULL|DEFAULT)",
    "gives something another name": r"RENAME",
    "changes a type": r"ALTER COLUMN \w+ (SET DATA )?TYPE",
    "wants what the old version does not write": r"SET NOT NULL|ADD COLUMN (?!.* DEFAULT )[^,;]* NOT NULL",
    "takes a right away": r"REVOKE|ALTER \w+ \w+(\(\))? OWNER TO",
    "may refuse what the old version writes": r"ADD (CONSTRAINT|CHECK|UNIQUE|FOREIGN|PRIMARY)|CREATE (UNIQUE|TRIGGER)"
    r"|ENABLE ROW",
    "empties a table": r"^(TRUNCATE|DELETE FROM)",
}  # fmt: skip
# What breaks nobody all the same, and why: file -> the statement's beginning -> reason.
HARMLESS = {
    "0002_rights.sql": {
        "ALTER TABLE recording DROP CONSTRAINT recording_state_check": "made again in the same transaction, wider",
        "ALTER TABLE recording ADD CONSTRAINT recording_state_check": "the states that were, and more",
    },
    "0003_tree.sql": {
        "EXECUTE format('CREATE TRIGGER ledger_": "on the tables that the file makes",
        "ALTER TABLE ledger ADD CONSTRAINT ledger_can_be_hashed": "all that any version writes passes: JSON objects, "
        "small, with numbers and times far within",
        "REVOKE CREATE ON SCHEMA public FROM callrec_ledger": "was granted in the same file, to a role without a login",
        "REVOKE callrec_ledger FROM CURRENT_USER": "as above, to who migrates",
    },
    "0004_anchors.sql": {
        "REVOKE CREATE ON SCHEMA public FROM callrec_ledger": "as in 0003",
        "REVOKE callrec_ledger FROM CURRENT_USER": "as in 0003",
    },
    "0006_pruning.sql": {
        "ALTER TABLE ledger DROP CONSTRAINT ledger_can_be_hashed": "made again in the same transaction, wider",
        "ALTER TABLE ledger ADD CONSTRAINT ledger_can_be_hashed": "wider than that of 0003, in whose place it stands",
        "DROP TRIGGER ledger_only_grows": "made again in the same transaction, and lets more through",
        "CREATE TRIGGER ledger_only_grows": "as above",
        "CREATE TRIGGER recording_forgets_its_code": "no version reads the code of what is gone",
        "REVOKE CREATE ON SCHEMA public FROM callrec_ledger": "as in 0003",
        "REVOKE callrec_ledger FROM CURRENT_USER": "as in 0003",
    },
    "0008_policy.sql": {
        "ALTER TABLE ledger ENABLE ROW LEVEL SECURITY": "lets through what the constraint did, and every reader",
        "ALTER TABLE ledger DROP CONSTRAINT ledger_can_be_hashed": "the policy says the same",
        "REVOKE callrec_ledger FROM CURRENT_USER": "as in 0003",
    },
    "0009_erasing.sql": {
        "CREATE TRIGGER hold_needs_a_key": "what it refuses, the old version's own condition means to",
        "CREATE TRIGGER hold_keeps_the_key": "as above",
        "REVOKE INSERT ON erasure FROM callrec_api": "the columns that any version writes are granted again",
    },
}


def statements(sql):
    """Each statement in one line; of a DO block those in it, of a function none: it has no old callers to break."""
    sql = re.sub(r"--[^\n]*", "", sql)
    sql = re.sub(r"(CREATE FUNCTION[^;]*?AS )\$\$.*?\$\$", r"\1''", sql, flags=re.DOTALL)
    sql = re.sub(
        r"\bDO \$\$|\$\$;|\b(BEGIN|END( IF| LOOP)?)\b;?|\b(IF|FOREACH)\b.*?\b(THEN|LOOP)\b", ";", sql, flags=re.DOTALL
    )
    return [" ".join(each.split()) for each in sql.split(";") if each.strip()]


def made_here(everything):
    """The tables and functions that a file makes: no version before it knows them."""
    found = (re.match(r"CREATE (?:TABLE|FUNCTION|TYPE|VIEW) (\w+)", each) for each in everything)
    return {match[1] for match in found if match}


def breaking(sql):
    """(what it does, statement) of each that may break the version before."""
    everything = statements(sql)
    new, found = made_here(everything), []
    for each in everything:
        about = re.match(
            r"(?:ALTER (?:TABLE|FUNCTION)|(?:REVOKE|CREATE (?:UNIQUE|TRIGGER)) .*? ON(?: FUNCTION)?) "
            r"((?:\w+(?:\(\))?, )*\w+)", each,
        )  # fmt: skip
        if about and {name.removesuffix("()") for name in about[1].split(", ")} <= new:
            continue
        found += [(why, each) for why, pattern in BREAKING.items() if re.search(rf"\b({pattern})", each, re.IGNORECASE)]
    return found


LATER = sorted(path.name for path in SQL.glob("[0-9][0-9][0-9][0-9]_*.sql") if path.name != FIRST)


@pytest.mark.parametrize("name", LATER)
def test_the_version_before_goes_on_with_the_schema_of_the_next(name):
    known = HARMLESS.get(name, {})
    found = breaking((SQL / name).read_text())
    new = [each for each in found if not any(each[1].startswith(begin) for begin in known)]
    assert new == [], "say it in another way, in two versions, or here why it breaks nobody"
    unused = [begin for begin in known if not any(each[1].startswith(begin) for each in found)]
    assert unused == []


@pytest.mark.parametrize("sql", [
    "DROP TABLE caller;", "ALTER TABLE call DROP COLUMN line;", "ALTER TABLE call RENAME COLUMN line TO number;",
    "ALTER TABLE call RENAME TO calls;", "ALTER TABLE call ALTER COLUMN line TYPE uuid USING line::uuid;",
    "ALTER TABLE call ALTER COLUMN line SET DATA TYPE uuid;", "ALTER TABLE call ALTER COLUMN line SET NOT NULL;",
    "ALTER TABLE call ADD COLUMN who text NOT NULL;", "CREATE UNIQUE INDEX one ON call (line);",
    "ALTER TABLE call ADD CONSTRAINT short CHECK (length(line) < 3);", "REVOKE INSERT ON call FROM callrec_listen;",
    "ALTER TABLE call OWNER TO callrec_ledger;",
    "ALTER TABLE call DROP CONSTRAINT call_pkey;", "DROP FUNCTION f();", "TRUNCATE call;", "DELETE FROM caller;",
    "DO $$\nBEGIN\n    IF true THEN\n        REVOKE SELECT ON call FROM callrec_api;\n    END IF;\nEND\n$$;",
    "CREATE TABLE n (a int);\nALTER TABLE call -- of n\n    DROP COLUMN line;",
    "CREATE TABLE n (a int);\nREVOKE ALL ON n, call FROM PUBLIC;",
    "CREATE TRIGGER t BEFORE UPDATE ON call FOR EACH ROW EXECUTE FUNCTION f();",
])  # fmt: skip
def test_what_would_break_it_is_found(sql):
    assert len(breaking(sql)) == 1


@pytest.mark.parametrize("sql", [
    "CREATE TABLE n (a int NOT NULL);\nREVOKE ALL ON n FROM PUBLIC;\nALTER TABLE n ADD CONSTRAINT c CHECK (a > 0);",
    "ALTER TABLE call ADD COLUMN who text;", "ALTER TABLE call ADD COLUMN n int NOT NULL DEFAULT 0;",
    "ALTER TABLE call ALTER COLUMN line DROP NOT NULL;", "ALTER TABLE call ALTER COLUMN line DROP DEFAULT;",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    DELETE FROM n;\nEND\n$$;\n"
    "REVOKE ALL ON FUNCTION f() FROM PUBLIC;",
    "CREATE TABLE n (a int);\nCREATE UNIQUE INDEX one ON n (a);",
    "GRANT SELECT ON call TO callrec_api;", "CREATE INDEX i ON call (line);", "-- DROP TABLE call;\n",
])  # fmt: skip
def test_what_only_adds_is_let_through(sql):
    assert breaking(sql) == []
