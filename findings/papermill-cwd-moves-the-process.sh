#!/bin/sh
# papermill 2.7.0: execute_notebook(cwd=FOLDER) moves the whole calling process, not only the kernel.
#
# A good guess: `cwd` is the folder in which the notebook's kernel starts, as nbclient's own `cwd` option is.
# What happens: os.chdir() is called in the caller for as long as the notebook runs. Another thread that opens
# a relative path meanwhile reads and writes in the notebook's folder. Who executes notebooks in several
# threads must use absolute paths everywhere.
#
# Output seen:
#   before: caller
#   while the notebook runs, seen by another thread: notebook
#   after: caller
#   a relative file written by the other thread is in: notebook
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q papermill==2.7.0 ipykernel==7.1.0
mkdir "$folder/caller" "$folder/notebook"
cd "$folder/caller"
cat > run.py <<'P'
import os
import threading
import time
from pathlib import Path

import nbformat
import papermill

wait = "import pathlib, time\npathlib.Path('running').touch()\ntime.sleep(3)"
nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(wait)])
nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(nb, "n.ipynb")
caller = Path.cwd()
inside = caller.parent / "notebook"
print("before:", Path.cwd().name)


def look() -> None:
    while not (inside / "running").exists():
        time.sleep(0.1)
    print("while the notebook runs, seen by another thread:", Path.cwd().name)
    Path("relative.txt").touch()


thread = threading.Thread(target=look)
thread.start()
papermill.execute_notebook(str(caller / "n.ipynb"), str(caller / "out.ipynb"), cwd=str(inside), progress_bar=False)
thread.join()
print("after:", Path.cwd().name)
place = "notebook" if (inside / "relative.txt").exists() else "caller"
print("a relative file written by the other thread is in:", place)
P
cat > expected <<'T'
before: caller
while the notebook runs, seen by another thread: notebook
after: caller
a relative file written by the other thread is in: notebook
T
"$folder/venv/bin/python" run.py 2>/dev/null | tee seen
cmp expected seen
