#!/usr/bin/env python3
"""PyTorch's side of examples/bench_step.rs: the same training step, one line of JSON.

  python3 torch_step.py train --size base --batch 32 --steps 5 --device cuda

An XLM-R tower of random weights, two texts an item (padded, as PyTorch's users have them), LoRA of rank 8
on query and value, layer norms trained, contrastive and MSE loss, Adam; f16 by autocast on CUDA, f32 on
a CPU. Needs PyTorch alone. Captions have the lengths that bench_step falls back to without research
data, so give neither side that data.
"""
import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

SIZES = {"tiny": (512, 3, 64, 4, 128, 48), "base": (250002, 12, 768, 12, 3072, 768), "large": (250002, 24, 1024, 16, 4096, 768)}
LIKE = [18, 18, 16, 21, 14, 22, 14, 24, 13, 20, 30, 12, 19, 35, 16, 25]


class Linear(nn.Module):
    def __init__(self, k, oc, rank=0):
        super().__init__()
        self.base = nn.Linear(k, oc).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, k) / rank) if rank else None
        self.b = nn.Parameter(torch.zeros(oc, rank)) if rank else None

    def forward(self, x):
        out = self.base(x)
        return out if self.a is None else out + 2.0 * F.linear(F.linear(x, self.a), self.b)


class Block(nn.Module):
    def __init__(self, c, heads, ffn):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = Linear(c, c, 8), Linear(c, c), Linear(c, c, 8)
        self.out, self.up, self.down = Linear(c, c), Linear(c, ffn), Linear(ffn, c)
        self.norms = nn.ModuleList([nn.LayerNorm(c), nn.LayerNorm(c)])

    def forward(self, x, mask):
        b, t, c = x.shape
        q, k, v = (f(x).view(b, t, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        att = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norms[0](x + self.out(att.transpose(1, 2).reshape(b, t, c)))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


class Tower(nn.Module):
    def __init__(self, vocab, layers, c, heads, ffn, embed):
        super().__init__()
        self.words = nn.Embedding(vocab, c).requires_grad_(False)
        self.places = nn.Embedding(514, c).requires_grad_(False)
        self.norm = nn.LayerNorm(c)
        self.blocks = nn.ModuleList([Block(c, heads, ffn) for _ in range(layers)])
        self.head = nn.Linear(c, embed).requires_grad_(False)

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1], device=ids.device) + 2
        x = self.norm(self.words(ids) + self.places(place))
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        m = mask[..., None].to(x.dtype)
        return self.head((x * m).sum(1) / m.sum(1))


def contrastive(a, b):
    logits = 100.0 * F.normalize(a.float()) @ F.normalize(b.float()).T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def texts(n, shorter, vocab, device):
    lengths = torch.tensor([LIKE[i * 7 % 16] - shorter for i in range(n)])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.where(mask, torch.randint(5, vocab, mask.shape), torch.ones_like(mask, dtype=torch.long))
    return ids.to(device), mask.to(device), int(lengths.sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train"])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(1)
    cuda = args.device.startswith("cuda")
    sizes = SIZES[args.size]
    tower = Tower(*sizes).to(args.device)
    trained = [p for p in tower.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-4, fused=cuda)
    scaler = torch.amp.GradScaler(enabled=cuda)
    (a_ids, a_mask, a_n), (b_ids, b_mask, b_n) = (texts(args.batch, s, sizes[0], args.device) for s in (0, 3))
    images = torch.randn(args.batch, sizes[-1], device=args.device)

    def step():
        adam.zero_grad(set_to_none=True)
        with torch.autocast(args.device.split(":")[0], torch.float16, enabled=cuda):
            anchor, partner = tower(a_ids, a_mask), tower(b_ids, b_mask)
            loss = contrastive(images, anchor) + 0.1 * F.mse_loss(anchor.float(), partner.float())
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        return loss

    wall = []
    for i in range(args.warmup + args.steps):
        if cuda:
            torch.cuda.synchronize(args.device)
        start = time.perf_counter()
        loss = step()
        loss.item()
        if i >= args.warmup:
            wall.append(time.perf_counter() - start)
    median = statistics.median(wall)
    print(json.dumps({
        "program": f"PyTorch {torch.__version__}", "device": torch.cuda.get_device_name(args.device) if cuda else "CPU",
        "task": args.task, "size": args.size, "batch": args.batch, "median_s": median, "min_s": min(wall),
        "runs": len(wall), "real_tokens": a_n + b_n, "real_tokens_per_s": (a_n + b_n) / median,
        "trainable": sum(p.numel() for p in trained),
        "peak_device_gib": torch.cuda.max_memory_allocated(args.device) / 2**30 if cuda else None,
    }))


if __name__ == "__main__":
    main()
