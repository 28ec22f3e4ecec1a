#!/bin/sh
# dvc 3.67.1: `dvc exp show --drop NAME` fails where a parameter and a dependency have the same name.
#
# A good guess: --drop takes both columns away, or the message says that the name means two.
# What happens: the second removal of the name is a KeyError, shown as "unexpected error - 'data'".
#
# Output seen:
#   without --drop: 0
#   ERROR: unexpected error - 'data'
#   with --drop data: 255
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 1
"$folder/venv/bin/pip" install -q dvc==3.67.1 || exit 1
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project"
cd "$folder/project" || exit 1
git init -q
git config user.name a
git config user.email a@example.org
dvc init -q
echo a > data
echo 'data: people' > params.yaml
cat > dvc.yaml <<'P'
stages:
  one:
    cmd: cp data output
    deps: [data]
    params: [data]
    outs: [output]
P
dvc repro -q
git add -A
git commit -qm one
{
  dvc exp show --no-pager > shown 2>&1
  echo "without --drop: $?"
  dvc exp show --no-pager --drop data > shown 2>&1
  status=$?
  grep '^ERROR' shown
  echo "with --drop data: $status"
} | tee seen
cat > expected <<'T'
without --drop: 0
ERROR: unexpected error - 'data'
with --drop data: 255
T
cmp expected seen
