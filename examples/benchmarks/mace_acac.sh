#!/bin/sh
# Train MACE 0.3.16 on the frames of examples/configs/acac_race_plus_15min.yaml, on one thread, for
# comparison: 450 frames of acetylacetone at 300 K to train on, the next 50 to validate.
#
#   . MACE_ENVIRONMENT/bin/activate         # mace-torch 0.3.16
#   BAYESMLIP_DATA=... sh examples/benchmarks/mace_acac.sh runs/mace 45
#   python examples/benchmarks/mace_accuracy.py runs/mace/acac_stagetwo.model \
#       $BAYESMLIP_DATA/acac/test_MD_300K_A.extxyz.xz $BAYESMLIP_DATA/acac/test_MD_600K_A.extxyz.xz
#
# Arguments: the folder to write, and the number of epochs, of which the last fifth is stage two.
set -eu

out=${1:?folder to write}
epochs=${2:?number of epochs}
mkdir -p "$out"

# MACE 0.3.16 pickles whole models, which torch reads only with this switch.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
export OMP_NUM_THREADS=1

# The frames, and the energies of the isolated atoms as a dictionary of atomic numbers.
python - "$BAYESMLIP_DATA/acac" "$out" <<'END'
import sys

from ase.io import read, write

source, out = sys.argv[1:]
frames = read(f"{source}/train_300K.extxyz.xz", ":")
write(f"{out}/train.xyz", frames[:450])
write(f"{out}/valid.xyz", frames[450:500])
atoms = read(f"{source}/isolated_atoms.extxyz.xz", ":")
energies = {int(atom.numbers[0]): float(atom.info["REF_energy"]) for atom in atoms}
with open(f"{out}/E0s.txt", "w") as file:
    file.write(str(energies))
END

# Shape, batches and cutoff are those of our configuration. The rest is what MACE's README recommends
# (moving average, AMSGrad, stage two for the last fifth) or MACE's default, but for two settings
# that help a short training: atoms start with the mean energy of the training set, as ours do
# (ScaleShiftMACE: after 3 epochs a validation error of 103 meV/Å instead of 128), and the learning
# rate falls after 5 epochs without improvement instead of 50, which is more than there are.
mace_run_train \
    --name=acac \
    --work_dir="$out" \
    --model_dir="$out" \
    --train_file="$out/train.xyz" \
    --valid_file="$out/valid.xyz" \
    --E0s="$(cat "$out/E0s.txt")" \
    --model=ScaleShiftMACE \
    --hidden_irreps="32x0e + 32x1o" \
    --num_interactions=2 \
    --r_max=5.0 \
    --batch_size=5 \
    --valid_batch_size=10 \
    --default_dtype=float32 \
    --max_num_epochs="$epochs" \
    --swa \
    --start_swa=$((epochs * 4 / 5)) \
    --ema \
    --ema_decay=0.99 \
    --amsgrad \
    --scheduler_patience=5 \
    --plot=False \
    --seed=1 \
    --device=cpu
