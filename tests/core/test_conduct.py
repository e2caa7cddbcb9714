"""One call conducted, with fakes at its ports: what is durable before what is sent, released whatever breaks.

The spool is real. `Stage.journal` has everything that left the call, over whichever port, in the order in which it did.
"""

import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import gevent
import pytest
import redis
from gevent import monkey
from gevent.event import Event
from prometheus_client import REGISTRY

from callrec.call import events as on
from callrec.call.policy import Basis, BasisKind, Line, LockMode, Notice, Policy, Prompt, Retention
from callrec.call.state import Call, State, Timing
from callrec.errors import LinkClosedError, StoreError
from callrec.esl import conduct as module
from callrec.esl import wire
from callrec.esl.conduct import Conduct, Node
from callrec.esl.dialect import Before
from callrec.esl.registry import Registry
from callrec.ledger.caller import Concealed
from callrec.log import JsonFormatter
from callrec.recording.spool import Spool
from callrec.store.live import LiveState
from callrec.store.records import CallFacts, OpenRecording

CALLER = "+38640111222"
PROMPT = Prompt("/p/notice.wav", "text", "0" * 64, "1" * 64, 1.0)
NOTICE = Notice("B", "1", PROMPT, Retention(months=3), "https://x", "1", frozenset())
CONSENT = Basis("consent", BasisKind.CONSENT, "art. 6", "a", Retention(months=3), LockMode.GOVERNANCE, "c/",
                frozenset({"quality"}), grant_key="1", refuse_key="2", withdraw_keys="*2")  # fmt: skip
MARKET = replace(CONSENT, id="market", kind=BasisKind.NOTICE, grant_key="", refuse_key="", withdraw_keys="")
SERVICE = Line("service", "+38640404040", CONSENT, NOTICE)
SALES = Line("sales", "+38640404045", MARKET, NOTICE)


def until(condition, what="the condition"):
    deadline = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        gevent.sleep(0.002)
    return value


class Link:
    """Both links to FreeSWITCH, as far as a call knows them: what is posted goes into the journal and is answered."""

    def __init__(self, name, journal):
        self.name, self.journal = name, journal
        self.connected = True
        self.answer = "+OK Success"
        self.on_exit = None

    @property
    def up(self):
        return self.connected

    def post(self, payload, on_reply=None):
        if not self.connected:
            raise LinkClosedError("down")
        self.journal.append((self.name, payload.decode().strip()))
        if on_reply:
            gevent.spawn(on_reply, self.answer)
        if payload == b"exit\n\n" and self.on_exit:
            gevent.spawn(self.on_exit)

    def post_all(self, payloads):
        for payload in payloads:
            self.post(payload)

    def close(self):
        self.connected = False


class Records:  # it has the parameters of store/records.py
    """Postgres, kept in the journal."""

    def __init__(self, journal):
        self.journal = journal
        self.before_commit = lambda: None

    def authorise(self, facts, decision, notes, caller, *, timeout):  # noqa: ARG002 # the port's signature
        notes = list(notes)
        self.before_commit()
        self.journal.append(("authorise", decision))
        self.journal += [("entry", note) for note in notes]
        self.caller = caller

    def note(self, facts, state, decision, notes, ended_at=None):  # noqa: ARG002 # the port's signature
        self.journal += [("entry", note) for note in notes]
        if ended_at:
            self.journal.append(("ended", str(state)))

    def started(self, facts, at):
        self.journal.append(("started", facts.recording_id, at))

    def finished(self, recording_id, at, samples, *, abrupt):  # noqa: ARG002 # the port's signature
        self.journal.append(("finished", samples, abrupt))
        self.finished_at = at

    def void(self, recording_id, reason):  # noqa: ARG002 # the port's signature
        self.journal.append(("void", reason))


class Live:
    def __init__(self):
        self.states = []

    def put(self, channel, fields, *, ended=False):
        self.states.append({**fields, "ended": ended, "channel": channel})


class Stage:
    """A node and one call on it."""

    def __init__(self, directory):
        self.journal = []
        self.link, self.control = Link("link", self.journal), Link("control", self.journal)
        self.link.on_exit = self.exited
        self.records, self.live = Records(self.journal), Live()
        self.spool = Spool(directory, 0, 10**12)
        self.spool.prepare()
        self.node = Node(
            Policy("SI"), self.records, self.live, self.spool, self.control, lambda line: line, self.conceal, "node-1",
            decision_timeout=5.0,
        )  # fmt: skip
        self.sequence = 1000
        self.closes_after_exit = True

    def conceal(self, number):
        assert number == CALLER
        return Concealed(b"l" * 32, b"s" * 32, b"sealed", "c" * 64)

    def exited(self):
        if self.closes_after_exit:
            self.link_lost()

    def link_lost(self):
        self.link.connected = False
        self.conduct.link_ended()

    def begin(self, line=SERVICE, caller=CALLER, before=None):
        facts = CallFacts(uuid4(), uuid4(), str(uuid4()), line, datetime.now(UTC))
        call = Call(facts.call_id, facts.recording_id, self.node.timing)
        self.conduct = Conduct(self.node, facts, call, self.link, caller, before=before)
        self.greenlet = gevent.spawn(self.conduct.run, on.Arrived(line))
        self.reach(State.ANNOUNCING if line else State.UNRECORDED)
        return self

    def reach(self, *states):
        until(lambda: self.conduct.call.state in states, f"{states} from {self.conduct.call.state}")

    def hear(self, name, *, number=None, **headers):
        """FreeSWITCH says something, with the next number unless one is given."""
        self.sequence += 1
        about = {
            key if "-" in key or key.startswith("variable_") else key.replace("_", "-"): value
            for key, value in headers.items()
        }
        samples = {"variable_record_samples": "8000"} if name == "RECORD_STOP" else {}
        [frame] = wire.FrameParser().feed(
            wire.build_event(
                name, {"Event-Sequence": str(number or self.sequence), "Answer-State": "answered"} | about | samples
            )
        )
        self.conduct.hear(frame.event)

    def notice_heard(self):
        self.hear("PLAYBACK_START")
        self.hear("PLAYBACK_STOP", Playback_Status="done")
        token = self.conduct.call.token
        done = {
            "Application_UUID": token,
            "Application_Response": "FILE PLAYED",
            "variable_playback_last_offset_pos": "800000",  # the whole of it, and more than any prompt here
            "variable_write_rate": "8000",
        }
        self.hear("CHANNEL_EXECUTE_COMPLETE", Application="playback", **done)
        self.hear("CHANNEL_EXECUTE_COMPLETE", Application="flush_dtmf", Application_UUID=token)

    def agrees(self):
        self.notice_heard()
        self.reach(State.ASKING)
        self.key("1")

    def cut_by_transfer(self):
        error = {"Application_UUID": self.conduct.call.token, "Application_Response": "PLAYBACK ERROR"}
        self.hear("CHANNEL_EXECUTE_COMPLETE", Application="playback", variable_transfer_source="second", **error)

    def key(self, digit, number=None):
        self.hear("DTMF", DTMF_Digit=digit, number=number)

    def record_started(self, **about):
        variables = {"Recording-Variable-RECORD_STEREO": "true", "Recording-Variable-RECORD_PRE_BUFFER_FRAMES": "0"}
        self.hear("RECORD_START", Record_File_Path=self.conduct.path, **variables, **about)

    def recording(self, line=SERVICE):
        """A call in the middle of its conversation, with a file that grows."""
        self.begin(line)
        if line is SERVICE:
            self.agrees()
        else:
            self.notice_heard()
        self.reach(State.STARTING)
        self.file.write_bytes(b"RIFF")
        self.record_started()
        self.reach(State.RECORDING)
        return self

    def hangs_up(self):
        self.hear("CHANNEL_HANGUP", Answer_State="hangup")
        self.hear("RECORD_STOP", Record_File_Path=self.conduct.path)
        self.over()

    def over(self):
        self.greenlet.join(10)
        assert self.greenlet.ready(), f"the call is still {self.conduct.call.state}"

    @property
    def file(self):
        return self.spool.path(self.conduct.facts.recording_id)

    def kinds(self):
        return [entry[1].kind for entry in self.journal if entry[0] == "entry"]

    def posted(self, name="link"):
        return [entry[1] for entry in self.journal if entry[0] == name]

    def place(self, what, text=""):
        return next(i for i, entry in enumerate(self.journal) if entry[0] == what and text in str(entry[1:]))

    def was_handed_on(self):
        return self.posted()[-2:] == ["resume", "exit"]

    def started(self):
        return [text for text in self.posted() if " start " in text]


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path / "spool")


def unrecorded(reason):
    return REGISTRY.get_sample_value("callrec_unrecorded_total", {"reason": reason}) or 0.0


def wrong_clocks():
    return REGISTRY.get_sample_value("callrec_esl_errors_total", {"link": "either", "kind": "clock"}) or 0.0


def in_states():
    return {
        sample.labels["state"]: sample.value
        for metric in REGISTRY.collect()
        if metric.name == "callrec_calls_in_state"
        for sample in metric.samples
        if sample.value
    }


# the order is the guarantee


def test_the_basis_is_committed_before_the_recording_is_asked_for(stage):
    committed = Event()
    stage.records.before_commit = lambda: committed.wait(10)
    stage.begin().agrees()
    stage.reach(State.AUTHORISING)
    for _ in range(20):
        gevent.sleep(0)
    assert not stage.started()
    committed.set()
    until(stage.started)
    stage.record_started()
    stage.reach(State.RECORDING)
    stage.hangs_up()
    assert (
        stage.place("authorise", "granted") < stage.place("entry", "basis_established") < stage.place("link", "start")
    )
    assert stage.place("link", " start ") < stage.place("started") < stage.place("link", "resume")
    assert stage.started() == [
        f"api uuid_record {stage.conduct.facts.channel} start {stage.conduct.path} 0 "
        "{RECORD_STEREO=true,RECORD_PRE_BUFFER_FRAMES=0,enable_file_write_buffering=false,RECORD_MIN_SEC=0}"
    ]
    assert stage.was_handed_on()


def test_the_notes_of_a_call_are_in_order_and_numbered_upwards(stage):
    stage.recording().hangs_up()
    assert stage.kinds() == [
        "call_arrived", "notice_started", "notice_completed", "key_pressed", "basis_established", "recording_started",
        "recording_stopped",
    ]  # fmt: skip
    ordinals = [entry[1].ordinal for entry in stage.journal if entry[0] == "entry"]
    assert ordinals == sorted(set(ordinals))
    assert stage.place("entry", "recording_stopped") < stage.place("finished") < stage.place("ended")
    assert stage.journal[stage.place("finished")] == ("finished", 8000, False)
    basis = next(
        entry[1].body for entry in stage.journal if entry[0] == "entry" and entry[1].kind == "basis_established"
    )
    assert basis == {
        "basis": "consent", "citation": "art. 6", "gdpr_article_6": "a", "retention": "P3M",
        "purposes": ["quality"], "decision": "granted",
        "recording": str(stage.conduct.facts.recording_id), "caller_commitment": "c" * 64,
    }  # fmt: skip


def test_the_prompt_is_not_interruptible_and_unread_keys_are_flushed_after_it_a5(stage):
    stage.begin()
    commands = [text.splitlines() for text in stage.posted()]
    assert [lines[2] for lines in commands] == [
        f"execute-app-name: {name}" for name in ("answer", "set", "playback", "flush_dtmf")
    ]
    assert "execute-app-arg: playback_terminators=none" in commands[1]
    assert all("event-lock: true" in lines for lines in commands)
    stage.key("2")
    stage.over()


def test_an_unknown_line_hears_nothing_but_the_way_on_b8(stage):
    before = unrecorded("unknown_line")
    stage.begin(None)
    stage.over()
    assert stage.posted() == ["resume", "exit"]
    assert unrecorded("unknown_line") == before + 1
    assert stage.kinds() == ["released_unrecorded"]


def test_every_caller_is_handed_on_by_the_same_words_d7(tmp_path):
    ways = []
    for number, way in enumerate(("granted", "refused", "silent", "wrong")):
        stage = Stage(tmp_path / str(number))
        basis = replace(CONSENT, repeats=0, wait_seconds=0.01 if way == "silent" else 30.0)
        stage.begin(replace(SERVICE, basis=basis)).notice_heard()
        if way != "silent":
            stage.reach(State.ASKING)
            stage.key({"granted": "1", "refused": "2", "wrong": "5"}[way])
        if way == "granted":
            stage.reach(State.STARTING)
            stage.record_started()
            stage.reach(State.RECORDING)
            stage.hangs_up()
        stage.over()
        words = [text for text in stage.posted() if " start " not in text and not text.startswith("sendmsg")]
        ways.append([text.replace(stage.conduct.facts.channel, "CHANNEL") for text in words])
    assert ways == [["api uuid_setvar CHANNEL playback_terminators", "resume", "exit"]] * 4


# a call that moves


@pytest.mark.parametrize("before", ["", "any", "#9"])
def test_prompts_behind_us_end_at_the_keys_that_ended_them_before(stage, before):
    stage.begin(before=Before(before)).key("2")
    stage.over()
    restored, resume, leave = stage.posted()[-3:]
    assert restored == f"api uuid_setvar {stage.conduct.facts.channel} playback_terminators {before}".strip()
    assert (resume, leave) == ("resume", "exit")


@pytest.mark.parametrize("playing", [False, True])
def test_a_call_sent_elsewhere_in_the_interview_is_left_alone(stage, playing):
    stage.begin(before=Before(transfer="first"))
    if playing:
        stage.cut_by_transfer()
    stage.hear("CHANNEL_EXECUTE_COMPLETE", Application="socket")
    stage.reach(State.UNRECORDED)
    until(lambda: stage.live.states[-1]["ended"], "its end")
    assert stage.conduct.call.decision == "link_lost"
    assert not {"resume", "exit"} & set(stage.posted())  # either would tear it out of where it is now
    assert any("socket_resume" in text for text in stage.posted()), "if this process dies, the link is closed after all"
    assert stage.link.connected, "closing the link would, too"
    stage.link_lost()
    stage.over()


def test_a_mark_of_a_transfer_that_comes_late_parks_nobody(stage):
    """FreeSWITCH set it after the interview had begun in 3 of 160 calls that were transferred to us."""
    stage.begin(before=Before(transfer="first", sequence=1000))
    stage.hear("CHANNEL_EXECUTE_COMPLETE", Application="socket", number=999)  # of the interview before, late
    stage.hear("CHANNEL_EXECUTE_COMPLETE", Application="answer", variable_transfer_source="second")
    stage.notice_heard()
    stage.reach(State.ASKING)
    stage.key("2")
    stage.over()
    assert stage.was_handed_on()


def test_a_prompt_that_fails_beside_such_a_mark_lets_the_caller_go_by_its_deadline(stage):
    stage.node.timing = Timing(prompt=-0.9)  # the notice is said to last a second
    stage.begin(before=Before(transfer="first"))
    stage.cut_by_transfer()
    stage.over()
    assert (stage.conduct.call.decision, stage.was_handed_on()) == ("notice_overdue", True)


def test_the_calls_before_on_a_channel_stop_and_leave_its_live_state_to_the_next(stage):
    stage.recording()
    first, greenlet = stage.conduct, stage.greenlet
    first.supersede()
    stage.reach(State.CLOSING)
    published = len(stage.live.states)
    stage.hear("RECORD_STOP", Record_File_Path=first.path)
    stage.reach(State.STOPPED)
    stage.hear("CHANNEL_HANGUP_COMPLETE", Answer_State="hangup")
    greenlet.join(10)
    assert first.call.state is State.ENDED
    assert ("finished", 8000, False) in stage.journal
    assert len(stage.live.states) == published


def test_a_registry_knows_every_call_of_a_channel(stage):
    registry = Registry()
    first = stage.begin().conduct
    again = Conduct(stage.node, first.facts, first.call, None)
    registry.add(first)
    registry.add(again)
    assert (registry.on(first.facts.channel), registry.get(first.facts.channel)) == ([first, again], again)
    assert registry.get(first.facts.channel, str(uuid4())) is None
    registry.remove(again)
    assert (registry.all(), len(registry), registry.get(first.facts.channel)) == ([first], 1, first)
    registry.remove(first)
    assert (registry.on(first.facts.channel), registry.get(first.facts.channel)) == ([], None)


# a clock that is wrong


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(days=-9000), timedelta(days=400)])
def test_freeswitch_whose_clock_is_wrong_moves_no_retention_c1(stage, off):
    """It keeps the time of its start by a monotonic clock: started before the host's was set, it stays wrong."""
    stamp = str(int((datetime.now(UTC) + off).timestamp() * 1_000_000))
    begun, before = datetime.now(UTC), wrong_clocks()
    stage.begin().agrees()
    stage.reach(State.STARTING)
    stage.record_started(Event_Date_Timestamp=stamp)
    stage.reach(State.RECORDING)
    stage.hear("RECORD_STOP", Record_File_Path=stage.conduct.path, Event_Date_Timestamp=stamp)
    stage.hear("CHANNEL_HANGUP", Answer_State="hangup")
    stage.over()
    assert begun <= stage.journal[stage.place("started")][2] <= stage.records.finished_at <= datetime.now(UTC)
    assert wrong_clocks() == before + 2


def test_when_a_recording_began_is_as_freeswitch_says(stage):
    """Nearer to the first sample than when we heard of it."""
    said = datetime.now(UTC) - timedelta(seconds=5)
    stage.begin().agrees()
    stage.reach(State.STARTING)
    stage.record_started(Event_Date_Timestamp=str(int(said.timestamp() * 1_000_000)))
    stage.reach(State.RECORDING)
    assert abs(stage.journal[stage.place("started")][2] - said) < timedelta(milliseconds=1)
    stage.hangs_up()


# what is missing


def test_without_postgres_the_call_goes_on_unrecorded(stage):
    def down():
        raise StoreError("No connection to Postgres")

    stage.records.before_commit = down
    before = unrecorded("ledger_down")
    stage.begin().agrees()
    stage.over()
    assert stage.was_handed_on()
    assert not stage.started()
    assert unrecorded("ledger_down") == before + 1
    assert "basis_established" not in stage.kinds()  # nobody may read there that it was
    assert stage.kinds()[-1] == "released_unrecorded"
    assert stage.journal[-2] == ("void", "ledger_down")  # should it have become durable all the same
    assert not stage.file.exists()


def test_a_basis_that_comes_too_late_starts_nothing(stage):
    stage.node.decision_timeout = 0.01
    stage.records.before_commit = lambda: gevent.sleep(0.05)
    before = unrecorded("decision_overdue")
    stage.begin().agrees()
    stage.over()
    assert stage.was_handed_on()
    assert not stage.started()
    assert unrecorded("decision_overdue") == before + 1
    assert stage.place("entry", "basis_established") < stage.place("void", "decision_overdue")


def test_without_redis_everything_goes_on(stage):
    class Dead:
        def pipeline(self, **_):
            raise redis.ConnectionError

    live = LiveState(Dead(), live_ttl=10, ended_ttl=10)
    live.start()
    stage.node.live = live
    stage.recording().hangs_up()
    live.stop(timeout=0.01)
    assert ("finished", 8000, False) in stage.journal
    assert stage.was_handed_on()


def test_without_room_in_the_spool_nothing_is_authorised(stage):
    stage.node.room = False
    before = unrecorded("spool_full")
    stage.begin(SALES).notice_heard()
    stage.over()
    assert stage.was_handed_on()
    assert "authorise" not in [entry[0] for entry in stage.journal]
    assert unrecorded("spool_full") == before + 1


def test_the_last_room_in_the_spool_is_for_evidence(stage):
    stage.node.room_for_consent = False
    stage.begin().agrees()
    stage.over()
    assert "authorise" not in [entry[0] for entry in stage.journal]


def test_the_last_room_in_the_spool_is_taken_by_evidence(stage):
    stage.node.room_for_consent = False
    stage.begin(SALES).notice_heard()
    stage.reach(State.STARTING)
    stage.greenlet.kill()  # its deadlines would fall into the tests that follow


def test_what_could_not_be_withdrawn_is_not_begun_d1(stage):
    stage.control.connected = False
    before = unrecorded("control_link_down")
    stage.begin().agrees()
    stage.over()
    assert stage.was_handed_on()
    assert not stage.started()
    assert unrecorded("control_link_down") == before + 1


def test_what_can_not_be_withdrawn_anyway_is_recorded_without_the_control_link(stage):
    stage.control.connected = False
    stage.recording(SALES).hangs_up()
    assert ("finished", 8000, False) in stage.journal


def test_a_start_that_never_comes_is_stopped_discarded_and_counted(stage):
    stage.node.timing = Timing(start=0.02, close=0.02)
    before = unrecorded("start_overdue")
    stage.begin().agrees()
    stage.over()
    assert stage.was_handed_on()
    assert unrecorded("start_overdue") == before + 1
    assert ("void", "start_overdue") in stage.journal
    assert stage.spool.withdrawn(stage.conduct.facts.recording_id)


def test_a_deadline_that_we_slept_through_is_not_held_against_freeswitch(stage):
    """What it recorded while this process, or the machine, stood still has its basis and is kept."""
    stage.node.timing = Timing(start=0.1)
    stage.begin().agrees()
    stage.reach(State.STARTING)
    monkey.get_original("time", "sleep")(0.5)  # the hub, too
    gevent.spawn_later(0.02, stage.record_started)  # it was on its way, and is read after the deadline is noticed
    stage.reach(State.RECORDING)
    stage.hangs_up()
    assert ("finished", 8000, False) in stage.journal


def test_a_link_that_takes_nothing_is_given_up_at_the_deadline(stage):
    stage.node.timing = Timing(prompt=0.01)
    stage.link.connected = False
    short = replace(NOTICE, prompt=replace(PROMPT, seconds=0.01))
    stage.begin(replace(SERVICE, notice=short))
    stage.over()
    assert (stage.conduct.call.state, stage.conduct.call.decision) == (State.UNRECORDED, "notice_overdue")


def test_a_link_that_is_lost_while_the_recording_starts_leaves_it_to_the_control_link(stage):
    stage.begin().agrees()
    stage.reach(State.STARTING)
    stage.link_lost()
    stage.reach(State.DISCARDING)
    channel, path = stage.conduct.facts.channel, stage.conduct.path
    assert stage.conduct.handed_on  # from now on the watcher tells this call what it hears
    until(lambda: stage.posted("control"))
    stage.record_started()
    until(lambda: len(stage.posted("control")) > 1)
    assert stage.posted("control") == [f"api uuid_record {channel} stop {path}"] * 2
    stage.hear("RECORD_STOP", Record_File_Path=path)
    stage.over()
    assert not stage.file.exists()


# faults of ours


@pytest.mark.parametrize("where", ["authorise", "conceal", "publish"])
def test_a_bug_releases_the_caller(stage, where, monkeypatch):
    def bug(*_, **__):
        raise RuntimeError("a bug")

    before, states = unrecorded("fault"), in_states()
    stage.begin()
    if where == "authorise":
        stage.records.before_commit = bug
    elif where == "conceal":
        stage.node.conceal = bug
    else:
        monkeypatch.setattr(stage.live, "put", bug)
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    stage.agrees() if where != "publish" else stage.notice_heard()
    stage.over()
    assert isinstance(stage.greenlet.exception, RuntimeError)
    assert stage.was_handed_on()
    assert not stage.started()
    assert unrecorded("fault") == before + 1
    assert in_states() == states
    assert stage.kinds()[-1] == "released_unrecorded"
    assert "basis_established" not in stage.kinds()


@pytest.mark.parametrize("state", [State.ANNOUNCING, State.ASKING, State.AUTHORISING, State.STARTING])
def test_the_end_of_the_process_releases_the_caller(stage, state):
    states = in_states()
    if state is State.AUTHORISING:
        stage.records.before_commit = lambda: gevent.sleep(60)
    stage.begin()
    if state is State.ASKING:
        stage.notice_heard()
    elif state is not State.ANNOUNCING:
        stage.agrees()
    stage.reach(state)
    stage.greenlet.kill()
    assert stage.was_handed_on()
    assert stage.posted().count("exit") == 1
    assert in_states() == states


def test_the_end_of_the_process_leaves_a_recording_alone(stage):
    stage.recording()
    sent = list(stage.journal)
    stage.greenlet.kill()
    assert stage.journal == sent
    assert stage.file.exists()


def test_a_freeswitch_that_does_not_close_is_not_waited_for(stage, monkeypatch):
    monkeypatch.setattr(module, "EXIT", 0.05)
    stage.closes_after_exit = False
    stage.begin(None)
    stage.over()
    assert stage.posted() == ["resume", "exit"]
    assert not stage.link.connected


# the conversation


def test_what_comes_over_both_links_is_taken_once(stage):
    stage.begin(replace(SERVICE, basis=replace(CONSENT, withdraw_keys="**"))).agrees()
    stage.reach(State.STARTING)
    stage.record_started()
    stage.reach(State.RECORDING)
    stage.key("*", number=5000)
    stage.key("*", number=5000)
    stage.key("5", number=5001)
    until(lambda: len(stage.conduct.call.keys) == 2)
    assert stage.conduct.call.state is State.RECORDING
    stage.key("*", number=5002)
    stage.key("*", number=5003)
    stage.reach(State.DISCARDING)
    stage.hear("CHANNEL_HANGUP")
    stage.over()


def test_mask_goes_over_the_control_link_and_is_believed_when_it_is_answered_a11(stage):
    stage.recording()
    channel, path = stage.conduct.facts.channel, stage.conduct.path
    for order, masked in ((on.Order.MASK, "1"), (on.Order.UNMASK, "0")):
        stage.conduct.mailbox.put(on.Ordered(order))
        until(lambda order=order: f"recording_{order}ed" in stage.kinds())
        until(lambda masked=masked: stage.live.states[-1]["masked"] == masked)
        assert stage.posted("control")[-1] == f"api uuid_record {channel} {order} {path}"
    stage.control.answer = "-ERR Cannot locate session!"
    stage.conduct.mailbox.put(on.Ordered(on.Order.MASK))
    until(lambda: "recording_not_masked" in stage.kinds())
    assert stage.live.states[-1]["masked"] == "0"
    stage.hangs_up()


def test_a_mask_that_nobody_carried_out_says_so_a11(stage):
    stage.recording()
    stage.control.connected = False
    stage.conduct.mailbox.put(on.Ordered(on.Order.MASK))
    until(lambda: "recording_not_masked" in stage.kinds())
    assert stage.conduct.call.state is State.RECORDING
    stage.hangs_up()


@pytest.mark.parametrize("how", ["order", "keys"])
def test_a_withdrawal_removes_the_file_at_once_and_leaves_the_marker_d1(stage, how):
    stage.recording()
    assert stage.file.exists()
    if how == "order":
        stage.conduct.mailbox.put(on.Ordered(on.Order.WITHDRAW))
    else:
        stage.key("*")
        stage.key("2")
    stage.reach(State.DISCARDING)
    until(lambda: ("void", "withdrawn") in stage.journal)
    assert not stage.file.exists()
    assert stage.spool.withdrawals() == {stage.conduct.facts.recording_id}
    assert stage.posted("control") == [f"api uuid_record {stage.conduct.facts.channel} stop {stage.conduct.path}"]
    assert stage.place("entry", "consent_withdrawn") < stage.place("void", "withdrawn")
    stage.file.write_bytes(b"RIFF")  # a last write of FreeSWITCH's
    stage.hear("RECORD_STOP", Record_File_Path=stage.conduct.path)
    stage.over()
    assert not stage.file.exists()
    assert stage.live.states[-1]["decision"] == "withdrawn"
    assert "finished" not in [entry[0] for entry in stage.journal]


def test_a_withdrawal_after_a_stop_still_counts_d1(stage):
    stage.recording()
    stage.conduct.mailbox.put(on.Ordered(on.Order.STOP))
    stage.reach(State.CLOSING)
    stage.hear("RECORD_STOP", Record_File_Path=stage.conduct.path)
    stage.reach(State.STOPPED)
    assert ("finished", 8000, False) in stage.journal
    stage.key("*")
    stage.key("2")
    until(lambda: ("void", "withdrawn") in stage.journal)
    assert stage.spool.withdrawn(stage.conduct.facts.recording_id)
    stage.hear("CHANNEL_HANGUP_COMPLETE")
    stage.over()


def test_what_another_line_follows_is_not_recorded_on_when_the_codec_changes_a9(stage):
    """Its stop went over the other line's link; opened again, the file would have what its basis does not cover."""
    stage.recording()
    stage.conduct.supersede()
    stage.hear("CODEC", **{"Channel-Read-Codec-Rate": "16000"})
    stage.reach(State.CLOSING)
    assert stage.posted("control") == [f"api uuid_record {stage.conduct.facts.channel} stop {stage.conduct.path}"]
    stage.hangs_up()


def test_a_call_of_a_listener_before_us_goes_on_and_is_numbered_on(stage):
    facts = CallFacts(uuid4(), uuid4(), str(uuid4()), SERVICE, datetime.now(UTC))
    stage.conduct = Conduct.revived(stage.node, OpenRecording(facts, True, datetime.now(UTC), "granted", 7))
    stage.greenlet = gevent.spawn(stage.conduct.run)
    assert stage.conduct.handed_on
    stage.hangs_up()
    [(_, note)] = [entry for entry in stage.journal if entry[0] == "entry"]
    assert (note.ordinal, note.kind) == (8, "recording_stopped")
    assert not stage.posted()


# what is told


def test_the_live_state_is_what_the_desk_needs(stage):
    stage.recording().hangs_up()
    states = [state["state"] for state in stage.live.states]
    assert list(dict.fromkeys(states)) == ["announcing", "asking", "starting", "recording", "closing", "ended"]
    recording = next(state for state in stage.live.states if state["state"] == "recording")
    facts = stage.conduct.facts
    assert recording | {"since": ""} == {
        "channel": facts.channel, "call": str(facts.call_id), "line": "service", "basis": "consent",
        "state": "recording", "decision": "granted", "recording": str(facts.recording_id), "masked": "0", "since": "",
        "node": "node-1", "ended": False,
    }  # fmt: skip
    assert [state["recording"] for state in stage.live.states if state["state"] in ("asking", "starting", "ended")] == [
        ""
    ] * sum(state in ("asking", "starting", "ended") for state in states)
    assert stage.live.states[-1]["ended"]


@pytest.mark.parametrize("fault", [False, True])
def test_the_callers_number_goes_nowhere_f1(stage, caplog, fault):
    def down():
        raise StoreError("No connection to Postgres")

    caplog.set_level(logging.DEBUG)
    if fault:
        stage.records.before_commit = down
        stage.begin().agrees()
        stage.over()
    else:
        stage.recording()
        for digit in "98765":
            stage.key(digit)
        stage.conduct.mailbox.put(on.Ordered(on.Order.WITHDRAW))
        stage.reach(State.DISCARDING)
        stage.hear("CHANNEL_HANGUP")
        stage.over()
        assert stage.records.caller.sealed == b"sealed"  # and there it did go
    told = [repr(stage.journal), json.dumps(stage.live.states)]
    told += [JsonFormatter("listen").format(record) for record in caplog.records]
    assert fault == any("basis_not_durable" in line for line in told)
    for line in told:
        assert CALLER.removeprefix("+386") not in line
        assert "9876" not in line
        assert "sealed" not in line


def test_a_caller_who_withholds_the_number_can_consent_d11(stage):
    stage.begin(caller="").agrees()
    stage.reach(State.STARTING)
    stage.record_started()
    stage.reach(State.RECORDING)
    assert stage.records.caller is None
    stage.hangs_up()
