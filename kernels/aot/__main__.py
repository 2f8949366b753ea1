import sys

from .compile import main

if __name__ == "__main__":
    sys.exit(main())
