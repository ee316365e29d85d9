"""``python -m ftray`` is the command ``ftray``."""

from ftray._cli import main

if __name__ == "__main__":
    main()
