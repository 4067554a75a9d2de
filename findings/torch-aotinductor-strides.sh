#!/usr/bin/env bash
# A program compiled with AOTInductor reads its inputs as if they were contiguous, whatever they are.
#
# Seen in torch 2.13.0 on the CPU. A module that returns x * w + x is exported with a contiguous x,
# compiled and packaged, and loaded again. Called with x.mT, a transposed view of the right shape,
# it returns the numbers of another matrix: the memory is read in the order of x. Eager PyTorch gives
# the right ones for the same view. Nothing is raised and nothing warns.
# In this field such views are common: a cell that ASE completes comes in column order.
# Source: torch/_inductor (the generated wrapper takes sizes from the inputs and strides from the
# export; checks of inputs are off by default).
# Our guard: everything that enters a compiled program is made contiguous in one place, and programs
# are compared with TorchScript when compiled and when loaded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
cd "$work"
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import torch


class Product(torch.nn.Module):
    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w + x


module = Product()
x = torch.arange(9.0).reshape(3, 3)
w = 1.0 + torch.arange(9.0).reshape(3, 3)
exported = torch.export.export(module, (x, w))
torch._inductor.aoti_compile_and_package(exported, package_path="product.pt2")
run = torch._inductor.aoti_load_package("product.pt2")

view = x.mT
eager, found = module(view, w), run(view, w)
print("contiguous input:", torch.equal(run(x, w), module(x, w)))
print("transposed view: ", torch.equal(found, eager), "largest deviation", float((found - eager).abs().max()))
print("read as the memory lies:", torch.equal(found, module(x, w)))
assert torch.equal(run(x, w), module(x, w))
assert not torch.equal(found, eager), "changed: strides of inputs are heeded"
PY
