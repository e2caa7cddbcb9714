"""The most telling cells of the failure matrix (`make chaos` makes them all): no caller, recording or proof is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "chaos" / "run.py"
CELLS = ("node:killed", "postgres:cut")
PHASES = {"notice", "asking", "starting", "recording", "after", "erasing"}


@pytest.mark.slow
@pytest.mark.timeout(400)  # it takes less than a minute where nobody else needs the machine
def test_no_fault_loses_a_caller_a_recording_or_its_basis_and_none_keeps_what_must_go():
    """A2, A5, C2, C4, D2: calls in every phase at once; then everything is read back from where it must be."""
    only = [part for cell in CELLS for part in ("--only", cell)]
    done = subprocess.run([sys.executable, RUN, "--json", *only], capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f"{outcome['target']}:{outcome['fault']}" for outcome in outcomes] == list(CELLS), done.stderr
    for outcome in outcomes:
        total = outcome["total"]
        assert total["wrong"] == [], done.stderr
        assert outcome["unsettled"] == ""
        assert set(outcome["phases"]) == PHASES
        assert outcome["unproved"] == []
        assert (total["callers_lost"], total["recordings_lost"], total["audio_lost"]) == (0, 0, 0)
        assert (total["without_basis"], total["left"]) == (0, 0)
        assert total["stored"] >= 3  # it is not for want of recordings
        assert total["erased"] >= 3
    assert done.returncode == 0, done.stderr
