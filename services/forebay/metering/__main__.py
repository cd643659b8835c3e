"""Runs the metering service: `python -m forebay.metering --config FILE`."""

from forebay.metering.main import main

main()
