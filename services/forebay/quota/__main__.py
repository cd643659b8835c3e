"""`python -m forebay.quota`."""

from forebay.quota.main import main

if __name__ == "__main__":
    main()
