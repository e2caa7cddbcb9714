"""A real FreeSWITCH for tests: booted from the configuration that callrec ships, its callers scripted from outside.

`RealSwitch.place` takes the very CallScript that the simulated switch takes. The caller is a leg of its own that plays
one tone per 100 ms from the moment it is answered; whatever else it does (keys, hanging up) is commanded over the
event socket at the script's moments. Real time: a second is a second.
"""

import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import ear
import gevent
import pytest
from gevent.event import Event

from callrec.demo import audio, caller
from callrec.demo.process import free_port
from callrec.errors import LinkError
from callrec.esl.link import InboundLink
from callrec.process import die_with_parent

CONFIGURATION = Path(__file__).parents[2] / "freeswitch-conf" / "minimal"
LOOPBACK, SIP, WIDEBAND = "loopback", "sip", "sip, G.722"

_BOOT = 60.0
_ANSWER = 20.0  # seconds for FreeSWITCH to do what it was told
_SPEECH = 44  # times 15 s that a caller or an agent can speak: eleven minutes
_EVENTS = (
    "event plain CHANNEL_CREATE CHANNEL_ANSWER CHANNEL_EXECUTE CHANNEL_BRIDGE CHANNEL_UNBRIDGE PLAYBACK_START"
    " PLAYBACK_STOP RECORD_START RECORD_STOP DTMF CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE"
)


class RealSwitch:
    """One FreeSWITCH in `root`. Its event socket and ports stay the same over restarts."""

    def __init__(self, prefix, root):
        self.password = secrets.token_hex(12)
        self.address = ("127.0.0.1", free_port())
        self.sip_port = free_port()
        self.prompts = ""  # directory of callrec's prompts
        self.environment = {}  # more of it, at the next start
        self._prefix = Path(prefix)
        self._root = root
        self._process = None
        self._link = None
        self._calls = {}  # by the Unique-ID of either leg
        self._expected = {}  # callers whose call has not come in yet, by number
        self._numbers = itertools.count(5550000)

    def start(self, listener):
        """Boot it; `listener` is (host, port) of `callrec listen`. Returns when its event socket answers."""
        self._root.mkdir(parents=True, exist_ok=True)
        for who, name in ((audio.CALLER, "caller.wav"), (audio.AGENT, "agent.wav")):
            ear.write(self._root / name, ear.speech(who, audio.TONES // 10) * _SPEECH)
        places = ("log", "db", "run", "temp", "recordings", "storage", "cache", "scripts", "certs")
        arguments = [word for place in places for word in (f"-{place}", str(self._root))]
        with (self._root / "freeswitch.out").open("ab") as output:
            self._process = self._boot(output, arguments, listener)
        deadline = time.monotonic() + _BOOT
        while not self._connected():
            assert self._process.poll() is None, f"FreeSWITCH ended: {self.output()}"
            assert time.monotonic() < deadline, f"FreeSWITCH does not answer: {self.output()}"
            gevent.sleep(0.1)

    def _boot(self, output, arguments, listener):
        rtp = 20000 + 2 * (self.sip_port % 5000)
        return subprocess.Popen(
            [self._prefix / "bin" / "freeswitch", "-nf", "-nc", "-nonat", "-nonatmap",
             "-conf", CONFIGURATION, *arguments],
            env=os.environ | {
                "CALLREC_EVENT_SOCKET_PASSWORD": self.password,
                "CALLREC_EVENT_SOCKET_PORT": str(self.address[1]),
                "CALLREC_LISTEN": f"{listener[0]}:{listener[1]}",
                "CALLREC_SIP_PORT": str(self.sip_port),
                "CALLREC_RTP_START": str(rtp),
                "CALLREC_RTP_END": str(rtp + 998),
                "CALLREC_AGENT_SAYS": str(self._root / "agent.wav"),
            } | self.environment,
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with_parent(),  # noqa: PLW1509 # one prctl; it takes no lock
        )  # fmt: skip

    def _connected(self):
        link = InboundLink(*self.address, self.password, on_event=self._hear, on_close=lambda: None)
        try:
            link.connect()
            up = link.request("api status", _ANSWER).reply.startswith("UP ")
            up = up and "RUNNING" in link.request("api sofia status", _ANSWER).reply
            link.request(_EVENTS, _ANSWER)
        except LinkError:
            return False
        if not up:
            link.close()
            return False
        self._link = link
        return True

    def output(self):
        files = (self._root / "freeswitch.out", self._root / "freeswitch.log")
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in files if path.exists())

    def stop(self):
        self._end(signal.SIGTERM)

    def kill(self):
        """kill -9. Whatever was going on is gone."""
        self._end(signal.SIGKILL)

    def shut_down(self):
        """`fsctl shutdown now`, and wait for it. Nothing is finished."""
        self._link.post(b"api fsctl shutdown now\n\n")
        self._process.wait(20)
        self.gone()

    @contextlib.contextmanager
    def quiet(self):
        """Hear no events meanwhile: at many calls a second they cost more than the calls."""
        self._link.request("noevents", _ANSWER)
        try:
            yield
        finally:
            self._link.request(_EVENTS, _ANSWER)

    @property
    def pid(self):
        return self._process.pid

    @property
    def running(self):
        return self._process is not None

    def _end(self, how):
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.gone()

    def gone(self):
        """Its process has ended: every call with it."""
        self._process = None
        if self._link is not None:
            self._link.close()
        for call in self._calls.values():
            call.over("killed")
        self._calls.clear()

    def api(self, command):
        return self._link.request(f"api {command}", _ANSWER).reply

    def needs(self, module):
        """Skip a test for which this FreeSWITCH lacks a module."""
        if self.api(f"module_exists {module}") != "true":
            pytest.skip(f"this FreeSWITCH has no {module}")

    def place(self, script, via=LOOPBACK, **options):
        """Have a caller call. Returns when the call has come in."""
        if via == WIDEBAND:
            self.needs("mod_spandsp")
        call = RealCall(self, script, str(next(self._numbers)))
        self._expected[call.number] = call
        endpoint = (
            f"loopback/{script.dialled}/public"
            if via == LOOPBACK
            else (f"sofia/public/{script.dialled}@127.0.0.1:{self.sip_port}")
        )
        codec = {SIP: {"absolute_codec_string": "PCMA"}, WIDEBAND: {"absolute_codec_string": "G722"}}
        variables = {
            "origination_uuid": call.far, "origination_caller_id_number": call.number, "ignore_early_media": "true",
            "origination_caller_id_name": script.caller_name, **codec.get(via, {}), **options,
        }  # fmt: skip
        pairs = ",".join(f"{name}={value}" for name, value in variables.items())
        self._calls[call.far] = call
        reply = self._link.request(
            f"bgapi originate {{{pairs}}}{endpoint} &playback({self._root / 'caller.wav'})", _ANSWER
        )
        assert reply.reply.startswith("+OK"), reply.reply
        assert call.arrived.wait(_ANSWER), f"the call did not come in: {self.output()}"
        return call

    def _hear(self, headers):
        channel = headers.get("Unique-ID")
        call = self._calls.get(channel)
        if (
            call is None
            and headers.get("Event-Name") == "CHANNEL_CREATE"
            and headers.get("Call-Direction") == "inbound"
        ):
            call = self._expected.pop(headers.get("Caller-Caller-ID-Number"), None)
            if call is not None:
                call.uuid = channel
                self._calls[channel] = call
        if call is None and headers.get("Playback-File-Path") == str(self._root / "agent.wav"):
            self._agent_speaks(headers)
        if call is not None:
            call.hear(headers, far=channel == call.far)

    def _agent_speaks(self, headers):
        number = headers.get("Caller-Caller-ID-Number")
        for call in self._calls.values():
            if call.number == number and headers.get("Event-Name") == "PLAYBACK_START":
                call.agent_speaks_from = stamp(headers)


def stamp(headers):
    return int(headers.get("Event-Date-Timestamp")) / 1e6


_DUAL_TONES = {
    key: (low, high)
    for low, row in zip((697, 770, 852, 941), ("123", "456", "789", "*0#"), strict=True)
    for high, key in zip((1209, 1336, 1477), row, strict=True)
}  # ITU-T Q.23, in Hz


class RealCall:
    """A call, seen from the switch. The same `timeline`, `uuid`, `age`, `ended` and `result` as the simulated one's.

    `far` is the caller's own leg, `uuid` the one that comes in and that callrec knows.
    """

    def __init__(self, switch, script, number):
        self.switch, self.script, self.number = switch, script, number
        self.far = str(uuid4())
        self.uuid = ""
        self.arrived = Event()
        self.timeline = []
        self.began = 0.0
        self.speaks_from = 0.0  # when the caller began to speak, on FreeSWITCH's clock
        self.agent_speaks_from = 0.0
        self.ordered = {}  # by order: when it was given and when it was known to be carried out, in seconds of the call
        self._ended = Event()
        self._prompts = 0

    def result(self, timeout):
        assert self._ended.wait(timeout), f"the call did not end: {self.timeline}"
        return self.timeline

    @property
    def age(self):
        return time.time() - self.began

    @property
    def ended(self):
        return self._ended.is_set()

    def at(self, what):
        """Seconds of the call at which `what` was seen first, None before."""
        return next((at for at, fact in self.timeline if fact[0] == what), None)

    def until(self, what, seconds=30.0):
        deadline = time.monotonic() + seconds
        while self.at(what) is None:
            assert not self.ended, f"no {what}: {self.timeline}"
            assert time.monotonic() < deadline, f"no {what} in {seconds} s: {self.timeline}"
            gevent.sleep(0.005)
        return self.at(what)

    def fact(self, at, *what):
        self.timeline.append((round(at - self.began, 4), what))

    def over(self, what="hangup"):
        if not self.ended:
            self.fact(time.time(), what)
            self._ended.set()

    def hear(self, headers, *, far):  # noqa: PLR0912 # one branch an event, nothing else
        now, name = stamp(headers), headers.get("Event-Name")
        if far:
            if name == "PLAYBACK_START":
                self.speaks_from = now
            return
        match name:
            case "CHANNEL_CREATE":
                self.began = now
                self.arrived.set()
                self._reached(caller.ARRIVAL)
            case "CHANNEL_ANSWER":
                self.fact(now, "answered")
                self._reached(caller.ANSWER)
            case "CHANNEL_EXECUTE" if headers.get("Application-Data") == "callrec_reached=agents":
                self.fact(now, "released")
            case "CHANNEL_BRIDGE":
                self.fact(now, "bridged")
                self._reached(caller.CONVERSATION)
                ends = (caller.AGENT_HANGS_UP, caller.HANG_UP)
                scripted = any(w.point == caller.CONVERSATION and a.kind in ends for w, a in self.script.steps)
                if self.script.talk and not scripted:
                    self._later(self.script.talk, caller.hang_up())
            case "PLAYBACK_START" if self._is_prompt(headers):
                self._prompts += 1
                self.fact(now, "prompting", headers.get("Playback-File-Path"))
                seconds = (audio.prompt_samples(headers.get("Playback-File-Path")) or 0) / audio.RATE
                self._reached(caller.PROMPT, seconds)
            case "PLAYBACK_STOP" if self._is_prompt(headers):
                self.fact(now, "prompt", headers.get("Playback-File-Path"), headers.get("Playback-Status"))
                self._reached(caller.AFTER_PROMPT)
            case "DTMF":
                self.fact(now, "key", headers.get("DTMF-Digit"), headers.get("DTMF-Source"))
            case "RECORD_START":
                self.fact(now, "recording", headers.get("Record-File-Path"))
            case "RECORD_STOP":
                self.fact(now, "recorded", headers.get("Record-File-Path"), headers.get("variable_record_ms"))
            case "CHANNEL_HANGUP":
                self.fact(now, "hangup", headers.get("Hangup-Cause"))
            case "CHANNEL_HANGUP_COMPLETE":
                self._ended.set()

    def _is_prompt(self, headers):
        return headers.get("Playback-File-Path").startswith(self.switch.prompts)

    def _reached(self, point, seconds=1.0):
        for moment, act in self.script.steps:
            counted = point not in (caller.PROMPT, caller.AFTER_PROMPT) or moment.number == self._prompts
            if moment.point == point and counted:
                self._later(moment.offset * seconds, act)

    def _later(self, seconds, act):
        gevent.spawn_later(seconds, self._do, act)

    def _do(self, act):
        if self.ended:
            return
        match act.kind:
            case caller.PRESS:
                self.press(act.value)
            case caller.HANG_UP:
                self.hang_up(act.value)
            case caller.AGENT_HANGS_UP:
                self.switch.api(f"uuid_kill {self.agent()}")

    def press(self, keys):
        """Press these, one after the other; after a `~` as sound, for the switch to hear."""
        self.fact(time.time(), "pressed", keys)
        if keys[0] != "~":
            self.switch.api(f"uuid_send_dtmf {self.far} {keys}")
            return
        tones = ";".join(f"%(120,120,{low},{high})" for low, high in map(_DUAL_TONES.__getitem__, keys[1:]))
        self.switch.api(f"uuid_broadcast {self.far} tone_stream://{tones}")

    def hang_up(self, cause=""):
        self.switch.api(f"uuid_kill {self.far} {cause}")

    def agent(self):
        """The Unique-ID of the leg that this call is bridged to."""
        return self.switch.api(f"uuid_getvar {self.uuid} bridge_uuid")
