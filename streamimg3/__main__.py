"""``python -m streamimg3``."""

from streamimg3.cli import main

if __name__ == "__main__":
    main()
