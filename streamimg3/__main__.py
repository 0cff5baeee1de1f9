"""``python -m streamimg3``."""

from streamimg3.cli import entry

if __name__ == "__main__":
    entry()
