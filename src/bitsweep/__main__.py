"""``python -m bitsweep``."""

from bitsweep.cli import main

if __name__ == "__main__":
    main()
