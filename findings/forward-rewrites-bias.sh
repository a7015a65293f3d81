#!/usr/bin/env bash
# A forward pass of a bitsandbytes layer rewrites its bias: another dtype, other memory, fewer bits.
#
# Seen with: bitsandbytes 0.50.2, torch 2.13.0, CPU.
#
# Guess:     a forward in eval mode under no_grad leaves the parameters alone; a bias of another
#            dtype is cast for the sum, as torch.autocast does.
# Behaviour: both layers assign `bias.data = bias.data.to(dtype)`: Linear4bit to its compute_dtype,
#            Linear8bitLt to the dtype of the input at hand. It is the same Parameter object, in
#            another storage. An fp32 bias that sees one bf16 batch is rounded for good: the next
#            fp32 batch is answered with the rounded values, and in Linear8bitLt the dtype goes
#            back to fp32 as though nothing had been. The fp32 answer depends on what came before.
# So:        views, flat buffers, optimizer masters or data_ptr()s taken of such a bias before the
#            first forward point to memory that the layer no longer reads. Run one forward in the
#            dtype of the run first, or keep biases in that dtype from the start.
#
# Output seen (an fp32 batch; for Linear8bitLt a bf16 batch and the fp32 batch again after it):
#   bitsandbytes 0.50.2 torch 2.13.0
#   Linear4bit: bias float32 -> bfloat16
#     off by 2.3e-04, same Parameter: True, same storage: False
#   Linear8bitLt: bias float32 -> bfloat16 -> float32
#     off by 2.4e-04, same Parameter: True, same storage: False
#     the same fp32 batch again: another answer, by 2.4e-04
#   as stated
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3.11}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -I -W ignore - <<'PY'
import logging
from importlib.metadata import version

import bitsandbytes as bnb
import torch

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its casts to fp16
print("bitsandbytes", version("bitsandbytes"), "torch", version("torch").split("+")[0])
torch.manual_seed(0)
layers = {
    "Linear4bit": bnb.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16),
    "Linear8bitLt": bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False),
}
batch = torch.randn(4, 64)
kept = True
for name, layer in layers.items():
    layer = layer.to("cpu").eval()  # the move quantises the weight
    bias = layer.bias
    values, view = bias.detach().clone(), bias.detach()
    seen = [bias.dtype]
    with torch.no_grad():
        if name == "Linear8bitLt":  # an input in fp32 leaves an fp32 bias as it is
            first = layer(batch)
            kept &= torch.equal(bias, values)
            layer(batch.bfloat16())
            seen.append(bias.dtype)
            again = layer(batch)
            moved = float((again - first).abs().max())
        else:
            layer(batch)
            moved = None
    seen.append(bias.dtype)
    lost = float((bias.float() - values).abs().max())
    shared = view.data_ptr() == bias.data_ptr()
    print(f"{name}: bias", " -> ".join(str(d).removeprefix("torch.") for d in seen))
    print(f"  off by {lost:.1e}, same Parameter: {bias is layer.bias}, same storage: {shared}")
    if moved is not None:
        print(f"  the same fp32 batch again: another answer, by {moved:.1e}")
    expected = [torch.float32, torch.bfloat16] + [torch.float32] * (moved is not None)
    kept &= seen == expected and lost > 1e-5 and not shared and bias is layer.bias
    kept &= moved is None or moved > 1e-5
if kept:
    print("as stated")
else:
    raise SystemExit("the behaviour changed")
PY
