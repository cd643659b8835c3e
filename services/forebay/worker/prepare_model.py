"""Makes a model's files ready, as a process of its own: `python -m forebay.worker.prepare_model REF --cache DIR`.

Progress goes to standard error; the last line of standard output is the model's directory.
"""

import argparse
import sys
from pathlib import Path
from typing import TextIO

from forebay.errors import MeshError
from forebay.worker.model_files import DEFAULT_CACHE, model_directory


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def main() -> None:
    """Runs the command; exits with 1 and the reason when there is no such model."""
    parser = argparse.ArgumentParser(prog="python -m forebay.worker.prepare_model", description=__doc__)
    parser.add_argument("reference", metavar="REF", help="simulated, wheel:smollm2, a directory or a hub id")
    parser.add_argument("--cache", metavar="DIR", type=Path, default=DEFAULT_CACHE, help="where models are kept")
    arguments = parser.parse_args()
    try:
        directory = model_directory(arguments.reference, arguments.cache, lambda line: _write(sys.stderr, line))
    except MeshError as error:
        sys.exit(str(error))
    _write(sys.stdout, str(directory))


if __name__ == "__main__":
    main()
