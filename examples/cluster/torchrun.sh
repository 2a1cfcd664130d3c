#!/bin/bash
# Train on all GPUs of one machine:          bash examples/cluster/torchrun.sh 4
# On two machines, started on both of them:  NODES=2 NODE=0 HEAD=first-host:29500 bash examples/cluster/torchrun.sh 4
#                                            NODES=2 NODE=1 HEAD=first-host:29500 bash examples/cluster/torchrun.sh 4
# On one machine `prism train --devices 4` alone does the same. The batch size is that of all devices together.
set -e
DEVICES=${1:-1}
NODES=${NODES:-1}
torchrun --nproc_per_node "$DEVICES" --nnodes "$NODES" --node_rank "${NODE:-0}" \
    --rdzv_backend c10d --rdzv_endpoint "${HEAD:-localhost:0}" --rdzv_id prism \
    -m prism_plugin.cli train --preset jarvis/formation_energy --out runs/jarvis --devices "$DEVICES" --nodes "$NODES"
