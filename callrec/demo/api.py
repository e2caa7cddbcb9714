"""The api commands of the simulated switch, with the answers of 1.10.12 word for word."""

import json
from collections.abc import Callable
from uuid import uuid4

from callrec.demo.apps import channel_row
from callrec.demo.channel import Board, Channel

VERSION = "1.10.12-release+git~20240802T210227Z~a88d069d6f~64bit (git a88d069 2024-08-02 21:02:27Z 64bit)"
_NO_CHANNEL = "-ERR No such channel!\n"
_RECORD_USAGE = "-USAGE: <uuid> [start|stop|mask|unmask] <path> [<limit>] [<recording_vars>]\n"
_RECORD_WORDS = 5  # of uuid_record; the last takes whatever follows
_RECORD_NEEDED = 3
_VERBS = {"stop": "stop record", "mask": "mask recording", "unmask": "unmask recording",
          "pause": "pause recording", "resume": "resume recording"}  # fmt: skip


def run(switch: Board, text: str) -> bytes:
    """The output of one api command, as the body of an api/response or a BACKGROUND_JOB carries it."""
    name, _, arg = text.partition(" ")
    command = _COMMANDS.get(name)
    answer = command(switch, arg.strip()) if command else f"-ERR {name} Command not found!\n"
    return answer.encode("utf-8", "replace")


def _split(arg: str, limit: int) -> list[str]:
    """Words apart by single spaces, the rest of the line in the last one (switch_separate_string)."""
    words = arg.split(" ", limit - 1)
    return [word for word in words if word]


def _uuid_record(switch: Board, arg: str) -> str:
    words = _split(arg, _RECORD_WORDS)
    if len(words) < _RECORD_NEEDED:
        return _RECORD_USAGE
    uuid, action, path, *rest = words
    call = switch.calls.get(uuid)
    if call is None:
        return "-ERR Cannot locate session!\n"
    if action == "start":
        call.mark("record")
        limit = int(rest[0]) if rest and rest[0].isdecimal() else 0
        # One word too many and the last one no longer starts with its brace: all variables are dropped, silently.
        own = _braces(rest[1]) if len(rest) > 1 else {}
        done = call.tape.start(path, float(limit), own)
        return "+OK Success\n" if done else "-ERR Cannot record session!\n"
    if action not in _VERBS:
        return _RECORD_USAGE
    done = call.tape.stop(path) if action == "stop" else call.tape.change(path, action)
    return "+OK Success\n" if done else f"-ERR Cannot {_VERBS[action]} session!\n"


def _braces(text: str) -> dict[str, str]:
    if not (text.startswith("{") and "}" in text):
        return {}
    pairs = (item.partition("=") for item in text[1 : text.index("}")].split(","))
    return {name.strip(): value.strip() for name, sign, value in pairs if sign}


def _channel(answer: Callable[[Channel, list[str]], str], usage: str, needed: int = 1) -> "Command":
    """A command whose first word is a channel's uuid."""

    def run_on(switch: Board, arg: str) -> str:
        words = _split(arg, 3)
        if len(words) < needed:
            return f"-USAGE: {usage}\n"
        call = switch.calls.get(words[0])
        return answer(call, words[1:]) if call else _NO_CHANNEL

    return run_on


def _getvar(call: Channel, words: list[str]) -> str:
    return call.text.variables.get(words[0], "_undef_")


def _setvar(call: Channel, words: list[str]) -> str:
    call.set(words[0], words[1] if len(words) > 1 else "")
    return "+OK\n"


def _kill(call: Channel, words: list[str]) -> str:
    call.hangup(words[0] if words else "NORMAL_CLEARING", now=True)
    return "+OK\n"


def _break(call: Channel, words: list[str]) -> str:
    call.interrupt(everything="all" in words)
    return "+OK\n"


def _transfer(call: Channel, words: list[str]) -> str:
    call.transfer(words[0], words[1].partition(" ")[2].strip() if len(words) > 1 else "")
    return "+OK\n"


def _dump(call: Channel, _words: list[str]) -> str:
    return call.data(full=True).partition(b"Content-Type: command/reply")[0].decode() + "\n"


def _status(switch: Board, _arg: str) -> str:
    seconds, micros = divmod(switch.clock.micros() - switch.started, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [("year", 0), ("day", days), ("hour", hours), ("minute", minutes), ("second", seconds),
             ("millisecond", micros // 1000), ("microsecond", micros % 1000)]  # fmt: skip
    up = ", ".join(f"{n} {unit}{'' if n == 1 else 's'}" for unit, n in units)
    return (
        f"UP {up}\nFreeSWITCH (Version 1.10.12-release git a88d069 2024-08-02 21:02:27Z 64bit) is ready\n"
        f"{switch.placed} session(s) since startup\n"
        f"{len(switch.calls)} session(s) - peak {switch.peak}, last 5min {switch.peak} \n"
        "0 session(s) per Sec out of max 500, peak 0, last 5min 0 \n5000 session(s) max\n"
        "min idle cpu 0.00/100.00\nCurrent Stack Size/Max 240K/240K\n"
    )


def _show(switch: Board, arg: str) -> str:
    words = arg.split()
    if words[:1] not in (["channels"], ["calls"]):
        return "-USAGE: codec|endpoint|channels|calls|…\n"
    # FreeSWITCH writes its channel table in the background: a new call is not in it at once.
    horizon = switch.clock.micros() - int(switch.channels_lag * 1e6)
    calls = [call for call in switch.calls.values() if call.text.created <= horizon]
    if words[-2:] != ["as", "json"]:
        rows = "".join(",".join(str(v) for v in channel_row(call).values()) + "\n" for call in calls)
        head = ",".join(channel_row(calls[0])) + "\n" if calls else ""
        return f"{head}{rows}\n{len(calls)} total.\n"
    if not calls:
        return '{"row_count": 0}\n'
    rows_json = [] if "count" in words else [channel_row(call) for call in calls]
    return json.dumps({"row_count": len(calls), "rows": rows_json}, separators=(",", ":"), ensure_ascii=False) + "\n"


def _fsctl(switch: Board, arg: str) -> str:
    if arg == "hupall":
        for call in list(switch.calls.values()):
            call.hangup("MANAGER_REQUEST", now=True)
    return "+OK\n"


def _global(switch: Board, arg: str) -> str:
    return {"hostname": switch.host, "core_uuid": switch.core_uuid}.get(arg, "-ERR no reply\n")


def _setvar_multi(switch: Board, arg: str) -> str:
    uuid, _, pairs = arg.partition(" ")
    call = switch.calls.get(uuid)
    if call is None:
        return _NO_CHANNEL
    for pair in pairs.split(";"):
        name, _, value = pair.partition("=")
        call.set(name, value)
    return "+OK\n"


Command = Callable[[Board, str], str]
_COMMANDS: dict[str, Command] = {
    "create_uuid": lambda _switch, _arg: str(uuid4()),
    "fsctl": _fsctl,
    "global_getvar": _global,
    "hupall": lambda switch, _arg: _fsctl(switch, "hupall"),
    "log": lambda _switch, _arg: "+OK\n",
    "show": _show,
    "status": _status,
    "uuid_break": _channel(_break, "<uuid> [all]"),
    "uuid_dump": _channel(_dump, "<uuid> [format]"),
    "uuid_exists": lambda switch, arg: "true" if arg in switch.calls else "false",
    "uuid_getvar": _channel(_getvar, "<uuid> <var>", 2),
    "uuid_kill": _channel(_kill, "<uuid> [cause]"),
    "uuid_record": _uuid_record,
    "uuid_setvar": _channel(_setvar, "<uuid> <var> [value]", 2),
    "uuid_setvar_multi": _setvar_multi,
    "uuid_transfer": _channel(_transfer, "<uuid> [-bleg|-both] <dest-exten> [<dialplan>] [<context>]", 2),
    "version": lambda _switch, _arg: f"FreeSWITCH Version {VERSION}\n",
}
