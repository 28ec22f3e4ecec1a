"""The former name of a command, for one version: `python -m study people` renders the virtual people."""

from study.commands import run_renamed

if __name__ == "__main__":
    run_renamed(__spec__.name)
