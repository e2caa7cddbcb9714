"""One simulated inbound call: its greenlet runs the dialplan (`socket`, then `bridge`) and ends it as 1.10.12 does."""

from uuid import uuid4

from gevent import socket
from gevent.event import Event

from callrec.demo import apps, caller
from callrec.demo.caller import CallScript
from callrec.demo.channel import Board, Channel, Fact
from callrec.demo.events import block
from callrec.demo.eventsocket import EventSocket
from callrec.demo.tape import Tape
from callrec.errors import LinkTimeoutError

_CONNECT = 10.0  # seconds of the clock on the wall


class SimCall(Channel):
    """A call. `timeline` tells what happened: connected, answered, pressed, key (dequeued), prompt, released (how:
    refused, closed, timeout, exit, resume, died, parked, transferred), transferred (number), recording, recorded
    (path), bridged, hangup (cause), killed.
    """

    def __init__(self, switch: Board, script: CallScript, *, late: bool = False) -> None:
        super().__init__(switch, script, late=late)
        self._tape = self.tape = Tape(self)
        self._ended = Event()
        self._where = f"{switch.listener[0]}:{switch.listener[1]} async full"

    def result(self, timeout: float) -> list[Fact]:
        """The timeline, once the call is over. `timeout` is in seconds of the wall clock; LinkTimeoutError after it."""
        if not self._ended.wait(timeout):
            raise LinkTimeoutError("The simulated call did not end", detail=f"So far: {self.timeline}")
        return self.timeline

    @property
    def age(self) -> float:
        """Simulated seconds since the call came in, as the timeline counts them."""
        return (self.switch.clock.micros() - self.text.created) / 1e6

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    # The dialplan

    def run(self) -> None:
        """The whole call. Whatever ends it, the call ends tidily."""
        self._begin()
        self._socket_application()
        if not (self.down or self.destination):
            self._bridge_application()
        while not self.down and self.destination:
            self._route(*self.destination)
        self.hangup("NORMAL_CLEARING")
        self._end()

    def _begin(self) -> None:
        self.text.state, self.text.state_number, self.text.call_state = "CS_NEW", 0, "DOWN"
        self.fire("CODEC", full=False)  # of what is read
        self.fire("CODEC", full=False)  # of what is written
        self.text.state, self.text.state_number = "CS_INIT", 1
        self.text.changed()
        self.fire("CHANNEL_CREATE")
        self.text.state, self.text.state_number, self.text.call_state = "CS_EXECUTE", 4, "RINGING"
        self.text.changed()
        leg = str(uuid4())
        for name, value in {
            "direction": "inbound", "uuid": self.uuid, "session_id": str(self.switch.placed),
            "channel_name": self.text.name, "read_codec": "L16", "read_rate": "8000", "write_codec": "L16",
            "write_rate": "8000", "origination_uuid": leg, "origination_caller_id_number": self.script.caller_number,
            "origination_caller_id_name": self.script.caller_name, "other_loopback_leg_uuid": leg, "loopback_leg": "B",
            "DP_MATCH": f"ARRAY::{self.script.dialled}|:{self.script.dialled}", "call_uuid": self.uuid,
            **self.script.variables,
        }.items():  # fmt: skip
            self.set(name, value)
        if self.switch.socket_resume:
            apps.execute(self, "set", "socket_resume=true", "")
        self.reached(caller.ARRIVAL)

    def _route(self, dialled: str, context: str) -> None:
        """The dialplan after a transfer: in the context `agents` another agent, in any other callrec first."""
        self.state("CS_ROUTING", 2)
        self.destination, self.agent_gone, self.broken = None, False, False
        self.state("CS_EXECUTE", 4)
        self.fact("transferred", dialled)
        if context != "agents":
            if self.switch.socket_resume:
                apps.execute(self, "set", "socket_resume=true", "")
            self._socket_application()
        if not (self.down or self.destination):
            self._bridge_application()

    def _socket_application(self) -> None:
        """`socket`, from the connection to the moment when the dialplan goes on."""
        token = apps.announce(self, "socket", self._where, "")
        self.set("socket_host", self.switch.listener[0])
        how = self._listen()
        if self.down:
            self.show_hangup()
        else:
            self.fact("released", how)
        apps.complete(self, "socket", self._where, token)
        self.cut = False

    def _listen(self) -> str:
        """How the listener let go of the call."""
        self.mark("dialled")
        try:
            sock = socket.create_connection(self.switch.listener, timeout=_CONNECT)
        except OSError:
            return "refused"
        link = EventSocket(self.switch, sock, self)
        self.links.append(link)
        self.switch.attach(link)
        self.wait(None, lambda: link.connected or link.finished or self.destination is not None)
        if link.connected:
            self.fact("connected")
        elif not self.switch.socket_resume and not self.down:
            # switch_ivr_park begins after the listener has ended, and nobody will ever unpark the call (13b).
            self.fact("parked")
            self.fire("CHANNEL_PARK")
            self.wait(None, lambda: False)
            self.fire("CHANNEL_UNPARK")
            return "parked"
        if link.connected and not self.down:
            self.fire("CHANNEL_PARK")
            self._park(link)
            self.fire("CHANNEL_UNPARK")
            while self.destination and self.queue:
                apps.from_message(self, self.queue.pop(0))
        if self.destination:
            return "transferred"
        if not link.connected:
            return "timeout" if link.timed_out else "closed"
        return "died" if not link.said_exit else "resume" if link.resume else "exit"

    def _park(self, link: EventSocket) -> None:
        while not self.down:
            if self.taken_back():
                return
            if self.queue:
                apps.from_message(self, self.queue.pop(0))
            elif self._hears_keys():
                self.dequeue()
            elif link.finished:
                return
            else:
                self.broken = False
                self.wait(None, lambda: bool(self.queue or link.finished or self._hears_keys()))

    def _hears_keys(self) -> bool:
        """Without media nothing reads the channel, and keys stay in its queue."""
        return bool(self.digits and (self.text.answered or self.text.media))

    def _bridge_application(self) -> None:
        """`bridge` to the agent, until one of the two hangs up."""
        where = "loopback/agent/default"
        token = apps.announce(self, "bridge", where, "")
        if not self.script.agent_answers:
            self.hangup("NO_ANSWER")  # continue_on_fail is not set
        else:
            apps.converse(self)
        apps.complete(self, "bridge", where, token)

    def _end(self) -> None:
        """The order of the end, as 76 of 80 calls had it (10b); the others: CHANNEL_HANGUP late."""
        if self.late:
            self.show_hangup()
            self.fire("CHANNEL_HANGUP")
        self.state("CS_HANGUP", 10)
        self._tape.finish()
        self.call_state("HANGUP")
        self.state("CS_REPORTING", 11)
        for name, value in apps.report(self):
            self.set(name, value)
        self.switch.gone(self.uuid)  # from here on the api knows it no more
        self.fire("CHANNEL_HANGUP_COMPLETE", lead=block([("Hangup-Cause", self.text.cause)]))
        for link in self.links:
            link.hung_up()
        self._ended.set()
        self.outlive_link()  # which holds the session: its own client never sees CHANNEL_DESTROY
        self.state("CS_DESTROY", 12)
        self.fire("CHANNEL_DESTROY")

    def killed(self) -> None:
        """The process is gone: the files stay as they are, nobody is told."""
        self._tape.abandon()
        self.down = True
        self.fact("killed")
        self._ended.set()
