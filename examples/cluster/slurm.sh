#!/bin/bash
#SBATCH --job-name=prism
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# sbatch examples/cluster/slurm.sh. Interrupted by the time limit or not: submit it again, and it goes on.
# The nodes of a cluster often have no network: download the data first, on the login node, by
#     python -c "from prism_plugin.data import load_named; load_named('jarvis', 'formation_energy')"
set -e
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
RUN=runs/jarvis
if [ -e "$RUN/checkpoints/last.ckpt" ]; then
    WHAT=(--resume "$RUN")
else
    WHAT=(--preset jarvis/formation_energy --out "$RUN")
fi
srun prism train "${WHAT[@]}" --devices "$SLURM_NTASKS_PER_NODE" --nodes "$SLURM_NNODES"
