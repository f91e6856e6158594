"""`python -m qa_flax` is `qa-flax`."""

from qa_flax.cli import main

if __name__ == "__main__":
    main()
