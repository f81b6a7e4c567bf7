"""``python -m keywise``: the command line."""

from keywise.cli import main

if __name__ == "__main__":
    main()
