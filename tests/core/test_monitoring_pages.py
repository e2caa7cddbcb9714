"""monitoring/: the page, the rules and the dashboard name the metrics that there are, and the rules' own tests pass."""

import re
import subprocess

import pytest
from fix_prometheus import DASHBOARD, MONITORING, RULES
from prometheus_client import Counter, Gauge, Histogram

from callrec import metrics
from callrec.demo.process import program
from callrec.supervisor import Supervisor

ROOT = MONITORING.parent
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
_NAME = re.compile(r"callrec_[a-z_]+")
_SELECTOR = re.compile(r"(callrec_[a-z_]+)\{([^}]*)\}")
_MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def in_the_code():
    """{name as it is scraped: (kind, label names)}"""
    supervisor = Supervisor(None, ("127.0.0.1", 0))
    found = [*vars(metrics).values(), supervisor._up, supervisor._starts]
    return {
        each._name + "_total" * isinstance(each, Counter): (KINDS[type(each)], each._labelnames)
        for each in found
        if type(each) in KINDS
    }


def on_the_page():
    """The same, and {name: {label: its values; empty where the list is open}}"""
    page, values = {}, {}
    for line in (MONITORING / "METRICS.md").read_text().splitlines():
        if row := re.fullmatch(r"\| `(callrec_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|", line):
            labels = [part.partition(": ") for part in row[3].split("; ") if part]
            assert row[1] not in page, row[1]
            page[row[1]] = (row[2], tuple(name.strip("`") for name, _, _ in labels))
            values[row[1]] = {name.strip("`"): set(re.findall(r"`(\w+)`", said)) for name, _, said in labels}
    return page, values


def queries():
    rules = re.findall(r"^ +expr: (.+)$", RULES, re.MULTILINE)
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(rules) > 20
    assert len(panels) > 40
    return rules + panels


def test_the_page_names_every_metric_with_its_labels_and_no_other():
    assert on_the_page()[0] == in_the_code()


def test_every_metric_is_fed():
    source = "".join(path.read_text() for path in (ROOT / "callrec").rglob("*.py") if path.name != "metrics.py")
    assert [
        name for name, each in vars(metrics).items() if type(each) in KINDS and not re.search(rf"\b{name}\b", source)
    ] == []


def test_what_stands_at_zero_from_the_beginning_is_what_the_page_lists():
    _, values = on_the_page()
    for name, label in (
        ("unrecorded", "reason"), ("uploads", "result"), ("revocation_deadlines", "how"), ("erasures", "cause"),
    ):  # fmt: skip
        metric = next(each for each in vars(metrics).values() if getattr(each, "_name", "") == f"callrec_{name}")
        assert {sample.labels[label] for family in metric.collect() for sample in family.samples} == values[
            f"callrec_{name}_total"
        ][label]


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_metrics_labels_and_values_that_there_are(query):
    page, values = on_the_page()
    series = {name for name, (kind, _) in page.items() if kind != "histogram"}
    series |= {f"{name}_bucket" for name, (kind, _) in page.items() if kind == "histogram"}
    assert set(_NAME.findall(query)) <= series
    for name, matchers in _SELECTOR.findall(query):
        for label, value in _MATCHER.findall(matchers):
            known = values[name.removesuffix("_bucket")] | {"instance": set()}
            assert label in known
            assert not known[label] or set(value.split("|")) <= known[label]


def promtool(*arguments):
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_sound_and_each_fires_at_its_time_and_not_before():
    promtool("check", "rules", "alerts.yaml")
    promtool("test", "rules", "alerts.test.yaml")
    names = re.findall(r"- alert: (\w+)", RULES)
    assert re.findall(r"^  - name: (\w+)", (MONITORING / "alerts.test.yaml").read_text(), re.MULTILINE) == names
    for what in (r"\{severity: (?:critical|warning)\}", "summary: '.+'", "description: '.+'"):
        assert len(re.findall(what, RULES)) == len(names)


def test_what_a_description_sends_to_is_there():
    """Whom an alert wakes finds the chapter, the line of the log and the command that it names."""
    said = " ".join(re.findall("description: '(.+)'", RULES))
    readme = (ROOT / "README.md").read_text()
    chapters = re.findall(r'README, "([^"]+)"', said) + re.findall(r"README \((\w+)\)", said)
    assert len(chapters) >= 3
    assert [each for each in chapters if f"**{each}.**" not in readme and f"## {each}\n" not in readme] == []
    source = "".join(path.read_text() for path in (ROOT / "callrec").rglob("*.py"))
    events = set(re.findall(r'"([a-z]+(?:_[a-z]+)+)"', said))
    assert len(events) >= 8
    assert [each for each in sorted(events) if not re.search(rf'\(\s*"{each}"', source)] == []
    commands = set(re.findall(r"`callrec ([a-z-]+)", said))
    assert len(commands) >= 8
    assert [each for each in sorted(commands) if not re.search(rf'"{each}"', source)] == []


def test_the_dashboard_has_a_place_for_each_panel():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
