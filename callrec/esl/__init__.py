"""Talking to FreeSWITCH over its event socket."""
