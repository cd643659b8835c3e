"""Runs the router: `python -m forebay.router --config FILE`."""

from forebay.router.main import main

if __name__ == "__main__":
    main()
