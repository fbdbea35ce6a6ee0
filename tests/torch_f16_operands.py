#!/usr/bin/env python3
"""How far PyTorch's f16 strays from the goldens where products' operands are f16 too.

    torch_f16_operands.py SHARED/tools [CASE...]

tools/f16_noise.py rounds what modules give; tensor cores also need what linear layers read in f16. This runs golden
cases of set `open` (2, 28 and 29) as it does, then with those inputs rounded, then with trained biases and tables
rounded too, and prints the most that ten losses are off. Trained weights of products are read as a sum of two f16.
tests/device_steps.rs cites the figures; no test runs this.
"""
import sys

sys.path.insert(0, sys.argv[1])
import f16_noise
import reference as ref
import torch
from torch import nn
from torch.nn.utils import parametrize

ATTACH = ref.attach


class Read(nn.Module):
    """A trained tensor as kernels read it: the sum of `halves` f16."""

    def __init__(self, halves):
        super().__init__()
        self.halves = halves

    def forward(self, x):
        seen, rest = 0, x.detach()
        for _ in range(self.halves):
            half = rest.half().float()
            seen, rest = seen + half, rest - half
        return x + (seen - x).detach()


def rounded(vectors):
    def attach(model, pet, gen):
        train = f16_noise.rounded_attach(ATTACH)(model, pet, gen)
        ids = {id(p) for p in train.values()}
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, args: tuple(f16_noise.RoundHalf.apply(a) for a in args))
            if not isinstance(module, (nn.Linear, nn.Embedding)):
                continue
            for name, p in list(module.named_parameters(recurse=False)):
                is_product = isinstance(module, nn.Linear) and name == "weight"
                if id(p) in ids and (is_product or vectors):
                    parametrize.register_parametrization(module, name, Read(2 if is_product else 1))
        return train
    return attach


def losses(attach, *case):
    ref.attach = attach
    return ref.run_case(*case)[0]["losses"]


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    spec = dict(ref.SETS["open"], name="open")
    gen = torch.Generator().manual_seed(spec["seed"])
    model, _ = ref.build_text_model(spec, gen)
    batches = ref.make_batches(spec, model, gen)
    wanted = [int(i) for i in sys.argv[2:]] or [2, 28, 29]
    for i, case in enumerate(ref.case_list(spec)):
        if i not in wanted:
            continue
        run = (model, case, batches, torch.float32, spec["seed"] + 1000 + i)
        exact = losses(ATTACH, *run)
        ways = {
            "outputs": f16_noise.rounded_attach(ATTACH),
            "operands too": rounded(vectors=False),
            "biases and tables too": rounded(vectors=True),
        }
        for name, attach in ways.items():
            off = (losses(attach, *run) - exact).abs().max().item()
            print(f"{case['name']:40} {name:22} {off:.1e}")


main()
