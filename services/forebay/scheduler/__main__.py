"""Runs the scheduler: `python -m forebay.scheduler --config FILE`."""

from forebay.scheduler.main import main

main()
