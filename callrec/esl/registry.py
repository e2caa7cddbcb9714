"""The calls of this node that are being conducted."""

import gevent

from callrec.esl.conduct import Conduct

_LOOK = 0.1  # seconds


class Registry:
    """The calls that are being conducted, by FreeSWITCH's Unique-ID.

    A caller who is transferred to another line is a new call on the same channel, beside the one before.
    """

    def __init__(self) -> None:
        self._by_channel: dict[str, list[Conduct]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_channel.values()))

    def add(self, conduct: Conduct) -> None:
        self._by_channel.setdefault(conduct.facts.channel, []).append(conduct)

    def remove(self, conduct: Conduct) -> None:
        channel = conduct.facts.channel
        left = [other for other in self._by_channel.pop(channel, []) if other is not conduct]
        if left:
            self._by_channel[channel] = left

    def get(self, channel: str, call: str = "") -> Conduct | None:
        """The call of this id on this channel; without one the latest."""
        named = [conduct for conduct in self.on(channel) if call in ("", str(conduct.facts.call_id))]
        return named[-1] if named else None

    def on(self, channel: str) -> list[Conduct]:
        """Every call on this channel, the latest last."""
        return list(self._by_channel.get(channel, ()))

    def all(self) -> list[Conduct]:
        return [conduct for conducts in self._by_channel.values() for conduct in conducts]

    def await_interviews(self, seconds: float) -> None:
        """Until every caller has been handed on, but no longer than that."""
        with gevent.Timeout(seconds, False):  # type: ignore[arg-type] # False: end the block quietly (gevent's manual)
            while any(not conduct.handed_on for conduct in self.all()):
                gevent.sleep(_LOOK)
