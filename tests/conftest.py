"""Patches gevent before anything else, as `callrec` itself does, and brings in the fixtures: one file per resource.

Hypothesis: the same examples each time, so that a red run is red again; `--hypothesis-profile=explore` seeks new ones.
Neither minds a machine that is slow at the moment.
"""

from gevent import monkey

monkey.patch_all()

from hypothesis import HealthCheck, settings  # noqa: E402 # after the patch

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeat", settings.get_profile("explore"), derandomize=True)
settings.load_profile("repeat")

pytest_plugins = ["fix_stack", "fix_callrec", "fix_store", "fix_rights", "fix_stream", "fix_ledger"]
