"""`callrec` and `python -m callrec`."""

import sys

from gevent import monkey

monkey.patch_all()  # before anything else is imported: psycopg chooses its way of waiting at import


def main() -> None:
    from callrec.cli import main as run  # noqa: PLC0415 # after the patch

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
