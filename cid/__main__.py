"""The command line for those who have no identities: ``python -m cid weigh|audit|leaks``."""

import sys

from cid.door.cli import main

if __name__ == "__main__":
    sys.exit(main())
