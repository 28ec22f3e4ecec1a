#!/bin/sh
# dvc 3.67.1: `dvc exp run -S key=value` writes every list of params.yaml anew, one value a line.
#
# A good guess: -S changes the value it names, as `dvc exp run --help` says ("use the specified param value"),
# and leaves the other lines of a file that people keep in order; comments and the style of mappings do stay.
# What happens: lists in flow style, [1, 2], become block style in every key of the file, and a comment behind
# one moves. An experiment's diff of params.yaml hides the one line that differs.
#
# Output seen:
#   -x: 1  # a number
#   -levels: [0.0, 0.5]  # a list
#   +x: 2  # a number
#   +levels:             # a list
#   +- 0.0
#   +- 0.5
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dvc==3.67.1
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project"
cd "$folder/project"
git init -q
git config user.name a
git config user.email a@example.org
dvc init -q
printf 'x: 1  # a number\nlevels: [0.0, 0.5]  # a list\n' > params.yaml
cat > dvc.yaml <<'P'
stages:
  one:
    cmd: cp params.yaml output
    params: [x]
    outs: [output]
P
git add -A
git commit -qm one
dvc exp run -q -S x=2
git diff -U0 params.yaml | grep '^[-+][^-+]\|^+- ' | sed 's/^\(+levels:\) */\1             /' | tee seen
cat > expected <<'T'
-x: 1  # a number
-levels: [0.0, 0.5]  # a list
+x: 2  # a number
+levels:             # a list
+- 0.0
+- 0.5
T
cmp expected seen
