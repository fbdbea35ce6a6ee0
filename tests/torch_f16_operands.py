#!/usr/bin/env python3
"""How far PyTorch's f16 strays from the goldens, by what is rounded.

    torch_f16_operands.py SHARED/tools [CASE...]

tools/f16_noise.py rounds frozen weights, what modules give and its gradient. This runs golden cases of set `open` (2, 28
and 29) so, then with one kind of rounding alone, then with what tensor cores ask for besides: f16 of what linear layers
read, and of trained biases and tables. Trained weights of products are read as a sum of two f16. It prints the most that
ten losses are off and how often that is the deviation of the first run. Where one kind of rounding strays further alone
than all of them together, roundings cancelled in that run. tests/device_steps.rs cites the figures; no test runs this.
"""
import sys

sys.path.insert(0, sys.argv[1])
import f16_noise
import reference as ref
import torch
from torch import nn
from torch.nn.utils import parametrize

ATTACH = ref.attach
SCALE = f16_noise.SCALE
MODULES = (nn.Linear, nn.LayerNorm, nn.Embedding, ref.Lora, ref.Adapter, ref.Compacter)


class RoundValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


class RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (grad * SCALE).half().to(grad.dtype) / SCALE


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


def alone(weights=False, rounding=None):
    """Frozen weights in f16, or what modules give passed through `rounding`."""
    def attach(model, pet, gen):
        train = ATTACH(model, pet, gen)
        ids = {id(p) for p in train.values()}
        with torch.no_grad():
            for p in model.parameters():
                if weights and id(p) not in ids:
                    p.copy_(p.half().float())
        for module in model.modules():
            if rounding and isinstance(module, MODULES):
                module.register_forward_hook(lambda _, args, out: rounding.apply(out) if torch.is_tensor(out) else out)
        return train
    return attach


def with_operands(vectors):
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


WAYS = {
    "as f16_noise.py": f16_noise.rounded_attach(ATTACH),
    "frozen weights alone": alone(weights=True),
    "outputs alone": alone(rounding=RoundValue),
    "gradients alone": alone(rounding=RoundGradient),
    "operands too": with_operands(vectors=False),
    "biases and tables too": with_operands(vectors=True),
}


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
        off = {name: (losses(attach, *run) - exact).abs().max().item() for name, attach in WAYS.items()}
        unit = next(iter(off.values()))
        for name, most in off.items():
            times = f"{most / unit:.1f} times" if unit else ""
            print(f"{case['name']:40} {name:22} {most:.1e} {times}")


main()
