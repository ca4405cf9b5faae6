"""``python -m trioserve`` is the command ``trioserve``."""

from trioserve.app import main

if __name__ == "__main__":
    main()
