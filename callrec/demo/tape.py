"""The recordings of one simulated call: what uuid_record starts, changes and stops, and the events that tell of it."""

from collections.abc import Mapping, Sequence

from callrec.demo import caller
from callrec.demo.audio import AGENT, CALLER
from callrec.demo.channel import Channel
from callrec.demo.events import block
from callrec.demo.recorder import Recording


class Tape:
    """Everything that records this call, by path."""

    def __init__(self, call: Channel) -> None:
        self._call = call
        self._running: dict[str, Recording] = {}

    def __bool__(self) -> bool:
        return bool(self._running)

    def start(self, path: str, limit: float, own: Mapping[str, str]) -> bool:
        """uuid_record start; False where FreeSWITCH can't. A path being recorded counts as success, without an event.

        `limit` is in seconds, 0 for none; `own` are the variables in braces, which win over the channel's.
        """
        call = self._call
        call.poke()
        if path in self._running:
            return True
        try:
            recording = Recording(
                path,
                call.seconds(),
                lambda name: own.get(name) or call.text.variables.get(name, ""),
                own=own,
                sound=None if call.script.audio is None else self._sound,
                rate=lambda: call.text.rate,
                limit=limit,
                umask=call.switch.spool_umask,
            )
        except (OSError, ValueError):
            call.set("record_completion_cause", "uri-failure")
            return False
        self._running[path] = recording
        call.switch.tick()
        call.fact("recording", path)
        call.fire("RECORD_START", block([("Record-File-Path", path), *_own(recording)]))
        return True

    def stop(self, path: str) -> bool:
        """uuid_record stop; `all` stops every one."""
        paths = list(self._running) if path == "all" else [path] if path in self._running else []
        self._call.poke()
        for each in paths:
            self._close(self._running.pop(each))
        return bool(paths)

    def change(self, path: str, verb: str) -> bool:
        """uuid_record mask, unmask, pause or resume: what was said until now is written as it was said."""
        recording = self._running.get(path)
        if recording is None:
            return False
        self._call.poke()
        recording.write(self._call.seconds())
        if verb in {"mask", "unmask"}:
            recording.masked = verb == "mask"
        else:
            recording.paused = verb == "pause"
        return True

    def advance(self, now: float) -> None:
        """Write what was said until `now`, in seconds of the call, and stop what has reached its limit."""
        for path, recording in list(self._running.items()):
            if recording.due(now):
                self.stop(path)
            else:
                recording.write(now)

    def finish(self) -> None:
        """The channel is down: each file is closed, then its RECORD_STOP comes."""
        while self._running:
            self._close(self._running.popitem()[1])

    def abandon(self) -> None:
        """The process is gone: the files stay as they are."""
        for recording in self._running.values():
            recording.abandon()
        self._running.clear()

    def _sound(self, _block: int) -> tuple[str | None, str | None]:
        if self._call.script.audio != caller.CLOCK:
            return None, None
        return CALLER, AGENT if self._call.text.bridged else None

    def _close(self, recording: Recording) -> None:
        call = self._call
        size = recording.close(call.seconds())
        milliseconds = recording.samples * 1000 // call.text.rate
        cause = "success-maxtime" if size else "empty-file"
        if size and call.down:
            cause = "success-silence" if call.script.audio == caller.CLOCK else "no-input-timeout"
        if recording.failed:
            cause = "uri-failure"
        if not size:
            call.set("RECORD_DISCARDED", "true")
        call.set("record_file_size", str(size))
        call.set("record_samples", str(recording.samples))
        call.set("record_seconds", str(milliseconds // 1000))
        call.set("record_ms", str(milliseconds))
        call.set("record_completion_cause", cause)
        call.fact("recorded", recording.path)
        if not call.script.lose_record_stop:
            lines = [("Record-File-Path", recording.path), *_own(recording), ("Record-Completion-Cause", cause)]
            call.fire("RECORD_STOP", block(lines))


def _own(recording: Recording) -> Sequence[tuple[str, str]]:
    return [(f"Recording-Variable-{name}", value) for name, value in recording.own.items()]
