"""The dialplan applications of the simulated switch, and what a channel reports of itself at its end."""

import re
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

from callrec.demo import caller
from callrec.demo.audio import RATE, prompt_samples
from callrec.demo.channel import Channel
from callrec.demo.events import block

_READ_AHEAD = 16384  # samples that switch_ivr_play_file reads at once; playback_samples counts what was read
_MICROS = 1_000_000 // RATE  # a sample lasts
_LEAST_WAIT = 1000  # milliseconds; play_and_get_digits takes no shorter timeout
_MISSING, _BROKEN, _FAILED, _WHOLE = "missing", "broken", "failed", "whole"
_RESPONSES = {_MISSING: "FILE NOT FOUND", _BROKEN: "FILE PLAYED", _FAILED: "PLAYBACK ERROR", _WHOLE: "FILE PLAYED"}
_RESPONSE = "current_application_response"
_Q850 = {"NORMAL_CLEARING": "16", "USER_BUSY": "17", "NO_ANSWER": "19", "DESTINATION_OUT_OF_ORDER": "27"}


def announce(call: Channel, name: str, data: str, token: str) -> str:
    """CHANNEL_EXECUTE. What comes back is the Application-UUID: the Event-UUID of the sendmsg, or a new one."""
    token = token or str(uuid4())
    call.set(_RESPONSE, "")
    call.set("current_application_data", data)
    call.set("current_application", name)
    call.fire("CHANNEL_EXECUTE", _application(name, data, token))
    return token


def complete(call: Channel, name: str, data: str, token: str) -> None:
    response = call.text.variables.get(_RESPONSE, "_none_")
    call.fire("CHANNEL_EXECUTE_COMPLETE", _application(name, data, token, response))


def _application(name: str, data: str, token: str, response: str = "") -> bytes:
    lines = [("Application", name), ("Application-Data", data), ("Application-Response", response)]
    return block([*((key, value) for key, value in lines if value), ("Application-UUID", token)])


def execute(call: Channel, name: str, data: str, token: str) -> None:
    """Run one application. An unknown one hangs the caller up, without a CHANNEL_EXECUTE."""
    application = _APPLICATIONS.get(name)
    if application is None:
        call.hangup("DESTINATION_OUT_OF_ORDER")
        return
    token = announce(call, name, data, token)
    application(call, data)
    complete(call, name, data, token)


def from_message(call: Channel, headers: dict[str, str]) -> None:
    """Run what a sendmsg asks for; under event-lock nothing else runs inside it."""
    was, call.locked = call.locked, headers.get("event-lock") == "true"
    call.set("current_loop", "1")
    call.set("total_loops", "1")
    execute(
        call, headers.get("execute-app-name", ""), headers.get("execute-app-arg", ""), headers.get("event-uuid", "")
    )
    call.locked = was


def play(call: Channel, path: str, stops: Callable[[str], bool] | None) -> str:
    """Play a prompt or a silence. Keys are dequeued while it plays; `stops` says which of them end it.

    `stops` None leaves the keys in their queue, as prompts played without an input callback do.
    """
    samples = prompt_samples(path)
    if samples is None:
        return _MISSING
    if not (call.text.answered or call.text.media):
        call.text.media = call.at
        call.text.changed()
        call.fire("CHANNEL_PROGRESS_MEDIA")
        call.call_state("EARLY")
    where = [("Playback-File-Path", path)]
    if path.startswith("tone_stream:"):
        where.insert(0, ("Playback-File-Type", "tone_stream"))
    call.fire("PLAYBACK_START", block(where))
    start = call.at
    end = start + samples * _MICROS
    number = 0
    if not path.startswith("silence_stream:"):
        call.prompts += 1
        number = call.prompts
        call.reached(caller.PROMPT, number, samples / RATE)
    call.broken = False
    status = _play_on(call, end, stops)
    played = min(samples, (call.at - start) // _MICROS)
    read = min(samples, (played // _READ_AHEAD + 1) * _READ_AHEAD)
    for key, value in (("last_offset_pos", played), ("seconds", read // RATE), ("ms", read // 8), ("samples", read)):
        call.set(f"playback_{key}", str(value))
    call.fire("PLAYBACK_STOP", block([*where, ("Playback-Status", "break" if status == _BROKEN else "done")]))
    if number:
        call.fact("prompt", path, played / RATE)
        call.reached(caller.AFTER_PROMPT, number)
    return status


def _play_on(call: Channel, end: int, stops: Callable[[str], bool] | None) -> str:
    while True:
        if call.down and call.script.unnoticed_hangup:
            return _WHOLE if call.script.unnoticed_hangup == _RESPONSES[_WHOLE] else _FAILED
        if call.down or call.taken_back():
            return _FAILED
        if call.broken:
            call.broken = False
            return _BROKEN
        if call.queue and not call.locked:
            # Without event-lock the next application runs inside this one and ends before it.
            began = call.at
            from_message(call, call.queue.pop(0))
            end += call.at - began
        elif call.digits and stops is not None:
            if stops(call.dequeue()):
                return _BROKEN
        elif call.at >= end:
            return _WHOLE
        else:
            call.wait(end, lambda: _disturbed(call, stops is not None))


def _disturbed(call: Channel, keys: bool) -> bool:
    return bool(call.broken or (keys and call.digits) or (call.queue and not call.locked) or call.taken_back())


def _playback(call: Channel, data: str) -> None:
    call.set("playback_terminator_used", "")

    def stops(digit: str) -> bool:
        ends = call.text.variables.get("playback_terminators", "*")
        if ends.lower() == "none" or (ends.lower() != "any" and digit not in ends):
            return False
        call.set("playback_terminator_used", digit)
        return True

    call.set(_RESPONSE, _RESPONSES[play(call, data, stops)])


def _play_and_get_digits(call: Channel, data: str) -> None:
    """<min> <max> <tries> <timeout> <terminators> <file> <invalid_file> [<var> [<regex> [<digit_timeout>]]]"""
    words = [*data.split(" "), "", "", ""]
    least, most, tries, timeout = (int(word) for word in words[:4])
    ends, file, invalid, name, regex, pause = words[4:10]
    digit_timeout = int(pause) if pause.isdecimal() else timeout
    call.set(f"{name}_invalid", "")
    for _ in range(tries):
        call.set("read_result", "")
        call.set(name, "")
        got = _collect(call, (least, most), (timeout, digit_timeout), ends, file)
        if call.down or call.taken_back():
            return
        good = len(got) >= least
        call.set("read_result", "success" if good else "failure")
        call.set(name, got)
        if got and good and re.search(regex, got):
            return
        if got and good:
            call.set(name, "")
            call.set(f"{name}_invalid", got)
        play(call, invalid, None)


def _collect(call: Channel, size: tuple[int, int], waits: tuple[int, int], ends: str, file: str) -> str:
    """The keys of one try. The first one ends the prompt; a terminator or the last one ends the try."""
    got, finished = "", False

    def take(digit: str) -> bool:
        nonlocal got, finished
        if digit in ends:
            call.set("read_terminator_used", digit)
            finished = True
        else:
            got += digit
        finished = finished or len(got) >= size[1]
        return True

    call.set("read_terminator_used", "")
    if file and file != "silence":
        play(call, file, take)
    while not (finished or call.down or call.taken_back()):
        until = call.at + max(waits[1] if got else waits[0], _LEAST_WAIT if not got else 0) * 1000
        call.wait(until, lambda: bool(call.digits) or call.taken_back())
        if not call.digits:
            break
        take(call.dequeue())
    return got


def _sleep(call: Channel, data: str) -> None:
    call.wait(call.at + (int(data) if data.isdecimal() else 0) * 1000, call.taken_back)


def _set(call: Channel, data: str) -> None:
    name, _, value = data.partition("=")
    call.set(name.strip(), value)


def _multiset(call: Channel, data: str) -> None:
    separator, pairs = (data[2], data[3:]) if data.startswith("^^") else (" ", data)
    for pair in pairs.split(separator):
        _set(call, pair)


def _flush_dtmf(call: Channel, _data: str) -> None:
    call.digits.clear()


def _record_session(call: Channel, data: str) -> None:
    path, _, limit = data.partition("+")
    call.tape.start(path, float(limit) if limit.isdecimal() else 0.0, {})


def converse(call: Channel) -> None:
    """The caller talks to the agent."""
    agent = str(uuid4())
    call.answer()
    call.tape.advance(call.seconds())
    call.text.bridged = call.at
    call.text.changed()
    call.set("bridge_uuid", agent)
    call.set("signal_bond", agent)
    call.fact("bridged")
    lead = block([("Bridge-A-Unique-ID", call.uuid), ("Bridge-B-Unique-ID", agent)])
    call.fire("CHANNEL_BRIDGE", lead=lead)
    call.reached(caller.CONVERSATION)
    ends = (caller.AGENT_HANGS_UP, caller.HANG_UP)
    if call.script.talk and not any(w.point == caller.CONVERSATION and a.kind in ends for w, a in call.script.steps):
        call.plan(call.script.talk, caller.hang_up())
    while not (call.down or call.agent_gone or call.destination):
        if call.digits:
            call.dequeue()
        elif call.queue:
            from_message(call, call.queue.pop(0))
        else:
            call.wait(None, lambda: bool(call.agent_gone or call.digits or call.queue or call.destination))
    call.fire("CHANNEL_UNBRIDGE", lead=lead)


_APPLICATIONS: dict[str, Callable[[Channel, str], object]] = {
    "answer": lambda call, _data: call.answer(),
    "bridge": lambda call, _data: converse(call),
    "export": _set,
    "flush_dtmf": _flush_dtmf,
    "hangup": lambda call, data: call.hangup(data or "NORMAL_CLEARING"),
    "info": lambda _call, _data: None,
    "log": lambda _call, _data: None,
    "multiset": _multiset,
    "play_and_get_digits": _play_and_get_digits,
    "playback": _playback,
    "record_session": _record_session,
    "set": _set,
    "sleep": _sleep,
    "stop_record_session": lambda call, data: call.tape.stop(data),
    "unset": lambda call, data: call.set(data, ""),
}


def report(call: Channel) -> Iterator[tuple[str, str]]:
    """The variables that CHANNEL_HANGUP_COMPLETE has more than the events before it, in its order."""
    text = call.text
    times = {"start": text.created, "answer": text.answered, "bridge": text.bridged, "end": text.hung_up}
    yield "hangup_cause", text.cause
    yield "hangup_cause_q850", _Q850.get(text.cause, "31")
    yield "digits_dialed", "".join(str(what[1]) for _, what in call.timeline if what[0] == "key") or "none"
    for name in ("start", "answer", "end"):
        if times[name]:
            yield f"{name}_stamp", time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(times[name] // 1_000_000))
    for name in ("start", "answer", "bridge", "end"):
        yield f"{name}_epoch", str(times[name] // 1_000_000)
        yield f"{name}_uepoch", str(times[name])
    yield "last_app", text.variables.get("current_application", "")
    yield "last_arg", text.variables.get("current_application_data", "")
    yield "caller_id", f'"{call.script.caller_name}" <{call.script.caller_number}>'
    whole = text.hung_up - text.created
    billed = text.hung_up - text.answered if text.answered else 0
    for unit, part in (("", 1_000_000), ("m", 1000), ("u", 1)):
        yield f"{unit}duration", str(whole // part)
        yield {"": "billsec", "m": "billmsec", "u": "billusec"}[unit], str(billed // part)


def channel_row(call: Channel) -> dict[str, str]:
    """The line of `show channels`, its columns as 1.10.12 names and orders them."""
    text, script = call.text, call.script
    created = text.created // 1_000_000
    codec = {"codec": "L16", "rate": "8000", "bit_rate": "128000"}
    return {
        "uuid": call.uuid, "direction": "inbound",
        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(created)), "created_epoch": str(created),
        "name": text.name, "state": text.state, "cid_name": script.caller_name, "cid_num": script.caller_number,
        "ip_addr": "", "dest": script.dialled, "application": text.variables.get("current_application", ""),
        "application_data": text.variables.get("current_application_data", ""), "dialplan": "xml", "context": "default",
        **{f"read_{key}": value for key, value in codec.items()},
        **{f"write_{key}": value for key, value in codec.items()},
        "secure": "", "hostname": call.switch.host, "presence_id": "", "presence_data": "", "accountcode": "",
        "callstate": text.call_state, "callee_name": "Outbound Call", "callee_num": "default", "callee_direction": "",
        "call_uuid": "", "sent_callee_name": "", "sent_callee_num": "", "initial_cid_name": script.caller_name,
        "initial_cid_num": script.caller_number, "initial_ip_addr": "", "initial_dest": script.dialled,
        "initial_dialplan": "xml", "initial_context": "default",
    }  # fmt: skip
