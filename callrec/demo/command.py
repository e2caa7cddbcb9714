"""`callrec demo`: boots a private stack, places one call per scenario, shows them, and reads back what is there."""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import gevent
from gevent.event import Event
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table

from callrec import log
from callrec.demo.call import SimCall
from callrec.demo.installation import Installation
from callrec.demo.scenarios import SCENARIOS, Scenario, by_name
from callrec.demo.stack import Stack
from callrec.demo.switch import Switch
from callrec.demo.verdict import Inspector, Verdict
from callrec.errors import CallrecError, ConfigError
from callrec.store.db import Database
from callrec.store.orders import carry_out

_SPEED = 8.0  # times as fast as real callers; prompts and conversations alike
_WAIT = 1.0  # seconds for a key, at that speed
_CALL = 60.0  # seconds that a call may take
_SETTLE = 30.0  # seconds until its recording must be where it belongs
_PASSWORD = "demo-event-socket"  # noqa: S105 # of the simulated switch, on loopback


def run(args: argparse.Namespace) -> int:
    log.setup("demo", os.environ.get("CALLREC_DEMO_LOG", "ERROR"))
    # SIGINT too: what a shell script starts with & ignores it otherwise, and who sends it means it.
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _interrupt)
    if args.event_socket and not args.serve:
        raise ConfigError("--event-socket needs --serve", hint="The demo's own calls come from the simulated switch")
    if args.serve:
        return _serve(args)
    chosen = [_chosen(name) for name in args.scenario] if args.scenario else list(SCENARIOS)
    return _show(chosen, as_json=args.json)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _chosen(name: str) -> Scenario:
    scenario = by_name(name)
    if scenario is None:
        raise ConfigError(
            f"There is no scenario {name!r}", hint=f"There are {', '.join(known.name for known in SCENARIOS)}"
        )
    return scenario


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory that FreeSWITCH and Postgres, which are other users, can reach; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="callrec-demo-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _serve(args: argparse.Namespace) -> int:
    """Everything up, in real time, until Ctrl-C or SIGTERM."""
    with contextlib.ExitStack() as stack, directory() as root:
        stores = Stack(root / "stack")
        stack.callback(stores.stop)
        stores.start()
        if args.event_socket:
            host, _, port = args.event_socket.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(f"--event-socket {args.event_socket} is no address", hint="Give HOST:PORT")
            event_socket, password = (host, int(port)), args.password
        else:
            switch = Switch(listener=("127.0.0.1", 0), password=_PASSWORD)
            switch.start()
            stack.callback(switch.stop)
            event_socket, password = switch.event_socket_address, _PASSWORD
        installation = Installation(root / "callrec", stores, event_socket=event_socket, password=password)
        installation.prepare()
        if not args.event_socket:
            switch.listener = installation.listen
        stack.callback(installation.stop)
        installation.start(wait_for_event_socket=not args.event_socket)
        sys.stdout.write(json.dumps(_addresses(installation, event_socket)) + "\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            Event().wait()
    return 0


def _addresses(installation: Installation, event_socket: tuple[str, int]) -> dict[str, object]:
    s3 = installation.stack.s3
    return {
        "esl_listen": f"{installation.listen[0]}:{installation.listen[1]}",
        "event_socket": f"{event_socket[0]}:{event_socket[1]}",
        "http": installation.url(""),
        "postgres": installation.stack.postgres_url,
        "redis": installation.stack.redis_url,
        "s3": {
            "endpoint": s3.endpoint, "access_key": s3.access_key, "secret_key": s3.secret_key,
            "bucket": installation.bucket,
        },
        "spool": str(installation.spool),
        "config": str(installation.config_path),
        "environment": installation.secrets,
    }  # fmt: skip


def _show(scenarios: list[Scenario], *, as_json: bool) -> int:
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = 140
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.1f} s[/]  {text}", highlight=False)

    with contextlib.ExitStack() as stack, directory() as root:
        say("booting Postgres, Redis and Ceph RGW in a directory of their own")
        stores = Stack(root / "stack")
        stack.callback(stores.stop)
        stores.start()
        switch = Switch(listener=("127.0.0.1", 0), password=_PASSWORD, speed=_SPEED)
        switch.start()
        stack.callback(switch.stop)
        say("making keys, prompts, tables, bucket; starting callrec")
        installation = Installation(
            root / "callrec", stores, event_socket=switch.event_socket_address, password=_PASSWORD,
            changes={"bases.consent": {"wait_seconds": _WAIT}},
        )  # fmt: skip
        installation.prepare()
        switch.listener = installation.listen
        stack.callback(installation.stop)
        installation.start()
        say(f"placing {len(scenarios)} calls, {_SPEED:.0f} times as fast as real callers\n")
        verdicts = place_and_judge(installation, switch, scenarios, say)
        bad = [verdict for verdict in verdicts if verdict.wrong]
        if as_json:
            for verdict in verdicts:
                sys.stdout.write(json.dumps(asdict(verdict) | {"met": not verdict.wrong}, ensure_ascii=False) + "\n")
        else:
            console.print()
            console.print(_table(verdicts))
        for verdict in bad:
            for fault in verdict.wrong:
                console.print(f"[red]{verdict.scenario}[/]: {fault}", highlight=False)
        if bad:
            console.print(f"\n[red]{len(bad)} of {len(verdicts)} calls differ from what the law demands.[/]")
            console.print(installation.log_tail(), style="dim")
        else:
            console.print(f"\n[green]All {len(verdicts)} calls are as the law demands.[/]")
        say("stopping everything")
    return 1 if bad else 0


def place_and_judge(
    installation: Installation,
    switch: Switch,
    scenarios: list[Scenario],
    say: Callable[[str], None] = lambda _text: None,
    placed: Callable[[SimCall], None] = lambda _call: None,
) -> list[Verdict]:
    """Place the calls, all at once, show what happens to them, and judge each when it has settled."""
    calls = [(scenario, switch.place(scenario.script)) for scenario in scenarios]
    desk = Database(
        installation.stack.postgres_url,
        str(conninfo_to_dict(installation.stack.postgres_url)["user"]),
        str(conninfo_to_dict(installation.stack.postgres_url).get("password") or ""),
    )
    with desk, Inspector(installation) as inspector:
        tasks: list[gevent.Greenlet[..., None]] = []
        for scenario, call in calls:
            placed(call)
            tasks.append(gevent.spawn(_give_orders, desk, scenario, call))
            tasks.append(gevent.spawn(_tell, scenario, call, say))
        verdicts = []
        for scenario, call in calls:
            facts = [str(what[0]) for _, what in call.result(_CALL)]
            with gevent.Timeout(_SETTLE, False):  # type: ignore[arg-type] # False: end the block quietly (gevent's manual)
                while not inspector.settled(call.uuid):
                    gevent.sleep(0.05)
            verdicts.append(inspector.judge(scenario, call.uuid, facts))
        gevent.joinall(tasks, timeout=1)
        gevent.killall(tasks)
    return verdicts


def _give_orders(desk: Database, scenario: Scenario, call: SimCall) -> None:
    """What the agent does at the desk, at its moments of the conversation."""
    if not scenario.orders:
        return
    while not (bridged := _moment(call, "bridged")) and not call.ended:
        gevent.sleep(0.01)
    for moment, order in scenario.orders:
        while bridged and call.age < bridged + moment:
            gevent.sleep(0.005)
        with contextlib.suppress(CallrecError):  # the ledger lacks it then, and the verdict says so
            carry_out(desk, call.uuid, order)


def _moment(call: SimCall, what: str) -> float | None:
    return next((at for at, fact in call.timeline if fact[0] == what), None)


_WORDS = {
    "connected": "callrec has the call", "answered": "answered", "pressed": "presses", "prompt": "heard",
    "released": "handed on to the agents", "recording": "recording starts", "recorded": "recording ends",
    "bridged": "talks to an agent", "hangup": "call over",
}  # fmt: skip


def _tell(scenario: Scenario, call: SimCall, say: Callable[[str], None]) -> None:
    told = 0
    while not call.ended or told < len(call.timeline):
        for _, fact in call.timeline[told:]:
            told += 1
            if (kind := str(fact[0])) in _WORDS:
                detail = ""
                if kind == "prompt":
                    detail = f" {Path(str(fact[1])).name}, {float(fact[2]):.1f} s"
                elif kind == "pressed":
                    detail = f" {fact[1]}"
                say(f"[bold]{scenario.name:<13}[/] {_WORDS[kind]}{detail}")
        gevent.sleep(0.05)


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(title="What the law demands of each call, and what is there", title_justify="left", show_lines=True)
    for column in ("call", "the law", "what is there", "verdict"):
        table.add_column(column)
    for verdict in verdicts:
        there = (
            f"agent    {verdict.agent}",
            f"spool    {verdict.spool}",
            f"S3       {verdict.storage}",
            f"ledger   {verdict.ledger}",
            f"Redis    {verdict.redis}",
        )
        met = "[red]differs[/]" if verdict.wrong else "[green]as demanded[/]"
        table.add_row(verdict.scenario, verdict.law, "\n".join(there), met)
    return table
