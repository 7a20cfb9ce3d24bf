#!/usr/bin/env bash
# One run on one machine or several: start this on each machine with the same arguments.
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 launch/torchrun.sh sd3-medium --out /shared/runs/sd3
#
# NODES  how many machines (default 1)         NODE  number of this one, from 0
# HEAD   address of machine 0                  PORT  a free port there (default 29500)
# GPUS   processes a machine (default: one per GPU)
#
# The run folder must be on a disk that all machines share. Started again, the run goes on.
set -euo pipefail

recipe=${1:?usage: torchrun.sh RECIPE [distill options]}
shift
# A stop signal lets the step end and saves; the default of 30 s is short for a large model.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun \
  --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" \
  --nproc-per-node "${GPUS:-gpu}" \
  --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" \
  -m fewstep distill "$recipe" --resume "$@"
