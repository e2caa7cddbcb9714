"""Patches gevent before anything else, as `callrec` itself does, and brings in the fixtures: one file per resource."""

from gevent import monkey

monkey.patch_all()

pytest_plugins = ["fix_stack", "fix_callrec", "fix_store", "fix_rights"]
