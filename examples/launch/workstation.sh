#!/usr/bin/env bash
# One machine with all of its GPUs (or GPUS of them). The same command resumes.
#   examples/launch/workstation.sh imagenet-256-b4 --out runs/b4
set -euo pipefail
# a worker that dies takes the others with it; all are started again, from the newest whole checkpoint
exec torchrun --standalone --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-3}" \
    -m anystep train "$@"
