#!/bin/sh
# dvc 3.67.1: what is edited while a stage runs is recorded as what the stage ran with.
#
# A good guess: `dvc repro` writes into dvc.lock the parameters and files that a stage found when it began, so
# that an edit made meanwhile makes the stage run again.
# What happens: dvc.lock gets what is there when the stage ends. The edit is then "up to date", and the next
# `dvc repro` skips the stage, whose output is of the values before. Who lets people edit during long stages
# must compare the inputs at the end of the stage with those at its beginning.
#
# Output seen:
#   the stage read: x: 1
#   dvc.lock says: x: 2
#   the next run: Data and pipelines are up to date.
#   the output still holds: x: 1
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dvc==3.67.1
export PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1
mkdir "$folder/project"
cd "$folder/project"
dvc init -q --no-scm
echo 'x: 1' > params.yaml
cat > stage.sh <<'P'
cp params.yaml output
until grep -q 2 params.yaml; do sleep 0.1; done
P
cat > dvc.yaml <<'P'
stages:
  one:
    cmd: sh stage.sh
    params: [x]
    outs: [output]
P
dvc repro -q &
until [ -s output ]; do sleep 0.1; done
printf 'the stage read: %s\n' "$(cat output)" > seen
echo 'x: 2' > params.yaml
wait
printf 'dvc.lock says: %s\n' "$(grep -o 'x: .' dvc.lock)" >> seen
printf 'the next run: %s\n' "$(dvc repro 2>&1 | tail -n 1)" >> seen
printf 'the output still holds: %s\n' "$(cat output)" >> seen
cat > expected <<'T'
the stage read: x: 1
dvc.lock says: x: 2
the next run: Data and pipelines are up to date.
the output still holds: x: 1
T
cat seen
cmp expected seen
