"""The life of a call, pure: no clock, socket, log or database."""
