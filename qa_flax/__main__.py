"""Make `python -m qa_flax` the same as the command `qa-flax`."""

from qa_flax.cli import main

if __name__ == "__main__":
    main()
