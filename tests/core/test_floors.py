"""The house is what the design says: who may import whom, who knows what, how long a module may be.

A module stands on a floor and imports from floors below, or from its own floor if no cycle comes of it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "callrec"
MAX_LINES = 400
FLOORS = {
    "ahead": 0,
    "errors": 0,
    "log": 0,
    "metrics": 0,
    "output": 0,
    "config": 0,
    "credentials": 0,
    "lines": 0,
    "signing": 0,
    "sound": 0,
    "strict_toml": 0,
    "tables": 0,
    "terms": 0,
    "call.policy": 0,
    "call.commands": 0,
    "call.events": 0,
    "call.spoken": 0,
    "call.state": 0,
    "call.machine": 0,
    "esl.wire": 0,
    "recording.wav": 0,
    "recording.envelope": 0,
    "recording.facts": 0,
    "recording.note": 0,
    "recording.segments": 0,
    "recording.plain": 0,
    "ledger.entry": 0,
    "ledger.caller": 0,
    "ledger.checkpoint": 0,
    "ledger.note": 0,
    "ledger.verdict": 0,
    "ledger.tree": 0,
    "ledger.verify": 0,
    "ledger.receipt": 0,
    "ledger.leaflet": 0,
    "rights.calendar": 0,
    "rights.disposition": 0,
    "rights.erasure_steps": 0,
    "rights.holds": 0,
    "rights.reference_code": 0,
    "rights.retention": 0,
    "rights.revocation": 0,
    "prompts": 1,
    "esl.link": 1,
    "esl.pipe": 1,
    "esl.server": 1,
    "esl.dialect": 1,
    "recording.spool": 1,
    "recording.playback": 1,
    "recording.transport": 1,
    "recording.bucket": 1,
    "recording.exchange": 1,
    "recording.lifecycle": 1,
    "recording.threads": 1,
    "recording.objects": 1,
    "recording.read_back": 1,
    "recording.inventory": 1,
    "ledger.completeness": 1,
    "store.audit": 1,
    "store.db": 1,
    "store.group_commit": 1,
    "store.wait": 1,
    "store.orders": 1,
    "store.scribe": 1,
    "store.tree": 1,
    "store.reading": 1,
    "ledger.archive": 1,
    "store.segments": 1,
    "store.shipping": 1,
    "store.evidence": 1,
    "store.records": 1,
    "store.rights": 1,
    "store.live": 1,
    "esl.listener": 2,
    "esl.conduct": 2,
    "esl.recorder": 2,
    "esl.registry": 2,
    "esl.watcher": 2,
    "recording.leftovers": 2,
    "recording.probe": 2,
    "recording.recovery": 2,
    "recording.stream": 2,
    "recording.upload": 2,
    "process": 2,
    "ledger.timestamp": 1,
    "ledger.anchors": 2,
    "ledger.restore": 2,
    "ledger.audit": 2,
    "ledger.bundle": 2,
    "ledger.sequencer": 2,
    "ledger.examination": 2,
    "rights.desk": 2,
    "rights.erasure": 2,
    "rights.pruning": 2,
    "rights.remnants": 2,
    "rights.sweeper": 2,
    "rights.vigil": 2,
    "web.api": 2,
    "web.auth": 2,
    "web.webhooks": 2,
    "web.health": 2,
    "adapters": 3,
    "service": 3,
    "supervisor": 3,
    "check": 3,
    "cli": 4,
    "ledger_cli": 4,
    "evidence_cli": 4,
    "rights_cli": 4,
    "storage_cli": 4,
    "__main__": 5,
}
ROOM_FLOORS = {"demo": 3}  # every module of the room
# Who speaks SQL runs statements: calling a function of store/ that is named for a fact is not that.
SQL = {"store.db", "psycopg", "psycopg_pool"}
ESL = {"esl.wire", "esl.pipe", "esl.link", "esl.dialect", "greenswitch"}
KNOWS_BOTH = {"service", "cli", "demo"}  # they put the parts together


def modules():
    """{dotted name within the package: path}; a package's __init__ has the package's name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source, name, names):
    """What a module imports, wherever in it: modules of the package by their name in `names`, others by top name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the floor, write {PACKAGE}."
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in full:
            top, _, rest = target.partition(".")
            if top != PACKAGE:
                yield top
                continue
            while rest and rest not in names:
                rest = rest.rpartition(".")[0]
            if rest:
                yield rest


def import_graph():
    found = modules()
    return {name: set(imported(path.read_text(), name, found)) - {name} for name, path in found.items()}


def room(name):
    return name.partition(".")[0]


def floor(name):
    return FLOORS.get(name, ROOM_FLOORS.get(room(name)))


def upward(graph):
    """Pairs (importer, imported) where the arrow does not point down or along."""
    placed = {name: floor(name) for name in graph if floor(name) is not None}
    return [
        (name, target)
        for name, targets in graph.items()
        for target in sorted(targets)
        if name in placed and target in placed and placed[target] > placed[name]
    ]


def cycle(graph):
    """One cycle as a list of names, or None."""
    done = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done or name not in graph:
            return None
        for target in sorted(graph[name]):
            if found := walk(target, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := walk(name, []))), None)


def knows_both(graph):
    """Modules that know Postgres and the event socket at once."""
    return [
        name
        for name, targets in graph.items()
        if room(name) not in KNOWS_BOTH and (targets | {name}) & SQL and (targets | {name}) & ESL
    ]


def packages():
    return {name for name, path in modules().items() if path.name == "__init__.py"}


def test_every_module_has_a_floor():
    homeless = [name for name in modules() if name not in packages() and floor(name) is None]
    assert homeless == [], "give them a place in FLOORS, and in the design"


def test_no_import_points_up():
    assert upward(import_graph()) == []


def test_no_cycle():
    assert cycle(import_graph()) is None


def test_no_module_knows_both_sql_and_esl():
    assert knows_both(import_graph()) == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_is_short(name):
    assert len(modules()[name].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", sorted(packages() - {""}))
def test_a_package_says_what_it_is_and_nothing_else(name):
    tree = ast.parse(modules()[name].read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_these_checks_see_what_they_look_for():
    assert upward({"call.machine": {"store.db"}, "store.db": set()}) == [("call.machine", "store.db")]
    assert upward({"esl.link": {"esl.dialect"}, "esl.dialect": set()}) == []
    assert cycle({"esl.link": {"esl.dialect"}, "esl.dialect": {"esl.link"}}) == [
        "esl.dialect",
        "esl.link",
        "esl.dialect",
    ]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    both = {"esl.listener": {"store.db", "esl.link"}, "service": {"store.db", "esl.link"}}
    assert knows_both(both) == ["esl.listener"]
    assert knows_both({"web.api": {"psycopg", "greenswitch"}, "esl.link": {"greenswitch"}}) == ["web.api"]
    source = "def f():\n    from callrec.store import db\nimport callrec.esl.wire\nimport psycopg.sql\n"
    assert set(imported(source, "x", {"store", "store.db", "esl", "esl.wire"})) == {"store.db", "esl.wire", "psycopg"}
