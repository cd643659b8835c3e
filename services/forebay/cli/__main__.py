"""`python -m forebay.cli` is the `forebay` command."""

from forebay.cli.main import main

if __name__ == "__main__":
    main()
