"""The former name of a command, for one version: ``python -m people`` renders the virtual people."""

import sys

from study.faces.render import main

if __name__ == "__main__":
    print("warning: study.faces.people moved; run `python -m people`", file=sys.stderr)
    main()
