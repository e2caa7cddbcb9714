"""callrec: lawful call recording beside FreeSWITCH."""

__version__ = "0.1.0"
