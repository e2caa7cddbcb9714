"""A real Prometheus for tests: it scrapes one callrec every second, and judges by the rules that it is given.

Prometheus, MONITORING, RULES and DASHBOARD are imported from here; no fixtures.
"""

import contextlib
import json
import math
import shutil
import signal
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

from fix_stack import stack_directory, wait_until

from callrec.demo.process import Child, free_port

MONITORING = Path(__file__).parents[1] / "monitoring"
RULES = (MONITORING / "alerts.yaml").read_text()
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())


class Prometheus:
    """Scrapes `target` (host and port). `rules` is the text of a rule file. A context manager; leaves nothing."""

    def __init__(self, target, rules):
        self._directory = stack_directory()
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        (self._directory / "rules.yml").write_text(rules)
        scrape = {"job_name": "callrec", "static_configs": [{"targets": ["{}:{}".format(*target)]}]}
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yml"], "scrape_configs": [scrape]}
        (self._directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._argv = [
            "prometheus", f"--config.file={self._directory}/prometheus.yml", f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.tsdb.path={self._directory}/data", "--log.level=warn",
        ]  # fmt: skip

    def __enter__(self):
        self._child = Child(self._argv, self._directory / "log")
        with contextlib.ExitStack() as failed:
            failed.callback(self.__exit__)
            wait_until(self._ready, 30, "Prometheus")
            failed.pop_all()
        return self

    def __exit__(self, *_):
        self._child.end(signal.SIGTERM)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _ready(self):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._url}/-/ready", timeout=2):
            return True

    def ask(self, page, **about):
        """The `data` of an answer of the HTTP API."""
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{page}?{urlencode(about)}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{about}: {error.read().decode()}") from None

    def alarms(self):
        """The names of the alerts that fire now."""
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}

    def curves(self, query, start, end, step):
        """[(labels, [(time, value)])] of a query over a range, without what is not a number. Unix time, seconds."""
        found = self.ask("query_range", query=query, start=start, end=end, step=step)["result"]
        curves = [(each["metric"], [(at, float(value)) for at, value in each["values"]]) for each in found]
        return [(labels, [point for point in points if math.isfinite(point[1])]) for labels, points in curves]
