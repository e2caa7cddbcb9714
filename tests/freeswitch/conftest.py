"""A real FreeSWITCH, and a whole callrec beside it, for the tests here. CALLREC_TEST_FREESWITCH names its prefix.

house           .switch .installation .inspector .desk: one for the session; whoever breaks a part mends it
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from house import SUMMARY, House
from real_switch import RealSwitch

from callrec.demo.scenarios import SCENARIOS

PREFIX = os.environ.get("CALLREC_TEST_FREESWITCH", "")


def pytest_collection_modifyitems(items):
    if not PREFIX:
        skip = pytest.mark.skip(reason="CALLREC_TEST_FREESWITCH names no FreeSWITCH")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter):
    """Each scenario beside what it did on each way into the switch."""
    if not SUMMARY:
        return
    ways = list(SUMMARY)
    terminalreporter.section("scenario x switch")
    terminalreporter.write_line(f"{'scenario':<14} {'demanded by law':<45} " + " ".join(f"{way:<20}" for way in ways))
    for scenario in SCENARIOS:
        said = [SUMMARY[way].get(scenario.name, "not played") for way in ways]
        terminalreporter.write_line(
            f"{scenario.name:<14} {scenario.demand.law:<45} " + " ".join(f"{word:<20}" for word in said)
        )


@pytest.fixture(scope="session")
def house(stack):
    directory = Path(tempfile.mkdtemp(prefix="callrec-freeswitch-"))
    directory.chmod(0o755)
    with contextlib.ExitStack() as open_:
        open_.callback(shutil.rmtree, directory, ignore_errors=True)
        yield open_.enter_context(House(directory, stack, RealSwitch(PREFIX, directory / "freeswitch")))
