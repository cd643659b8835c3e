"""`python -m forebay.worker`. The guard matters: engines start processes that import this module again."""

from forebay.worker.main import main

if __name__ == "__main__":
    main()
