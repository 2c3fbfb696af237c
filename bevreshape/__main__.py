"""``python -m bevreshape COMMAND``: the same as ``bevreshape COMMAND``."""

from bevreshape.cli import main

if __name__ == "__main__":
    main()
