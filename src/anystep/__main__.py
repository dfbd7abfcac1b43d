"""`anystep`, which is `python -m anystep`."""

import sys


def main() -> int:
    try:
        from anystep.cli import main as run

        return run()
    except KeyboardInterrupt:  # before there was a command
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
