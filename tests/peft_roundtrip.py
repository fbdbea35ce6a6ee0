"""Adapters by PEFT itself, compared with crosstune both ways on a tiny M-CLIP.

    python tests/peft_roundtrip.py CROSSTUNE WORLD

CROSSTUNE is the program; WORLD is a folder of tests/peft.rs with a model (model/) and an adapter
of it (run/adapter_last.safetensors). It needs torch, transformers, peft, safetensors, tokenizers.
Prints a line of JSON a case: the largest difference of features over the largest feature. Ends with
1 if one is above BOUND.
"""

import collections
import json
import pathlib
import subprocess
import sys
import warnings

import peft
import torch
import torch.distributed.tensor  # PEFT uses it and does not import it
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel

BOUND = 5e-6  # measured: 7e-7
TEXTS = ["a red circle", "ein blaues Quadrat über einem Kreis", "x", "a green square and a blue circle"]
# A key that PEFT does not find would leave the model as it was.
warnings.filterwarnings("error", message=".*missing adapter keys.*")
torch.manual_seed(0)


class MClip(torch.nn.Module):
    """multilingual_clip's MultilingualCLIP, with its tokenizer outside."""

    def __init__(self, folder):
        super().__init__()
        settings = json.loads((folder / "config.json").read_text())
        rows = settings["numDims"]
        settings = {k: v for k, v in settings.items() if k not in ("model_type", "numDims")}
        self.transformer = XLMRobertaModel(XLMRobertaConfig(**settings))
        self.LinearTransformation = torch.nn.Linear(settings["hidden_size"], rows)
        weights = load_file(folder / "model.safetensors")
        result = self.load_state_dict(weights, strict=False)
        assert not result.unexpected_keys, result
        left = [k for k in result.missing_keys if "pooler" not in k and "position_ids" not in k]
        assert not left, left

    def forward(self, ids, mask):
        h = self.transformer(input_ids=ids, attention_mask=mask)[0]
        pooled = (h * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        return self.LinearTransformation(pooled)


class World:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        tokenizer = Tokenizer.from_file(str(folder / "model/tokenizer.json"))
        rows = [e.ids for e in tokenizer.encode_batch(TEXTS)]
        longest = max(map(len, rows))
        self.ids = torch.tensor([r + [1] * (longest - len(r)) for r in rows])
        self.mask = (self.ids != 1).float()
        (folder / "texts.txt").write_text("".join(t + "\n" for t in TEXTS))
        self.failed = False

    def run(self, *args):
        args = [str(a) for a in (self.program, *args, "--quiet")]
        subprocess.run(args, cwd=self.folder, check=True)

    def model(self, name="model"):
        return MClip(self.folder / name).eval()

    def theirs(self, model):
        with torch.no_grad():
            return model(self.ids, self.mask)

    def ours(self, name, adapter):
        """Features of the model with the adapter merged, and PyTorch's of the merged folder."""
        merged, out = f"{name}-merged", f"{name}-features.safetensors"
        self.run("merge", "--model=model", "--adapter", adapter, "--out", merged)
        self.run("encode", "--model", merged, "--texts=texts.txt", "--out", out)
        return load_file(self.folder / out)["image_features"], self.theirs(self.model(merged))

    def report(self, name, want, got, merged):
        scale = want.abs().max()
        row = {"case": name, "adapter": ((got - want).abs().max() / scale).item()}
        row["merged"] = ((merged - want).abs().max() / scale).item()
        bad = not max(row["adapter"], row["merged"]) <= BOUND
        self.failed |= bad
        print(json.dumps(row), "ABOVE THE BOUND" if bad else "", flush=True)


def peft_to_ours(world, name, settings, encoder=False):
    """PEFT makes an adapter; crosstune imports, merges and encodes, and exports it again."""
    plain = world.model()
    before = world.theirs(plain)
    config = peft.LoraConfig(**settings)
    if encoder:
        plain.transformer = peft.get_peft_model(plain.transformer, config)
        adapted = plain.transformer
    else:
        adapted = plain = peft.get_peft_model(plain, config)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    plain.eval()
    want = world.theirs(plain)
    assert (want - before).abs().max() > 0.05, "the adapter changes nothing"
    adapted.save_pretrained(world.folder / name)
    world.run("import", "--from=peft", "--adapter", name, "--model=model", "--out", f"{name}.safetensors")
    world.report(name, want, *world.ours(name, f"{name}.safetensors"))
    module = "encoder" if encoder else "m-clip"
    back = f"{name}-back"
    world.run("export", "--to=peft", "--adapter", f"{name}.safetensors", "--out", back, "--module", module)
    saved = load_file(world.folder / name / "adapter_model.safetensors")
    again = load_file(world.folder / back / "adapter_model.safetensors")
    saved = {k: v for k, v in saved.items() if ".pooler." not in k}
    assert saved.keys() == again.keys(), saved.keys() ^ again.keys()
    assert all(torch.equal(v, again[k]) for k, v in saved.items()), "values changed"
    # Its settings too: PEFT gives the same features from what came back.
    other = world.model()
    if encoder:
        other.transformer = peft.PeftModel.from_pretrained(other.transformer, world.folder / back)
    else:
        other = peft.PeftModel.from_pretrained(other, world.folder / back)
    got = world.theirs(other.eval())
    world.report(f"{name} and back", want, got, got)


def ours_to_peft(world, name, encoder=False):
    """crosstune's adapter in PEFT."""
    adapter = "run/adapter_last.safetensors"
    module = "encoder" if encoder else "m-clip"
    world.run("export", "--to=peft", "--adapter", adapter, "--out", name, "--module", module)
    model = world.model()
    if encoder:
        model.transformer = peft.PeftModel.from_pretrained(model.transformer, world.folder / name)
    else:
        model = peft.PeftModel.from_pretrained(model, world.folder / name)
    want = world.theirs(model.eval())
    world.report(name, want, *world.ours(name, adapter))


def pectvlm(world):
    """A file as PECTVLM saves it: names of OpenDelta from `transformer.` on, alpha 16."""
    tensors = load_file(world.folder / "run/adapter_last.safetensors")
    torch.save(collections.OrderedDict(tensors), world.folder / "text_model_best.ckpt")
    out = "pectvlm.safetensors"
    world.run("import", "--from=pectvlm", "--adapter=text_model_best.ckpt", "--model=model", "--out", out)
    again = load_file(world.folder / out)
    assert tensors.keys() == again.keys(), tensors.keys() ^ again.keys()
    assert all(torch.equal(v, again[k]) for k, v in tensors.items()), "values changed"
    print(json.dumps({"case": "pectvlm", "tensors": len(again)}))


def main():
    world = World(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve())
    norms = "output.LayerNorm"
    two = ["query", "value"]
    cases = {
        "plain": {"r": 2, "lora_alpha": 16, "target_modules": two},
        "norms": {"r": 4, "lora_alpha": 5, "target_modules": two, "modules_to_save": [norms]},
        "head": {"target_modules": ["key"], "modules_to_save": [norms, "LinearTransformation"]},
        "rslora": {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": two},
        "regex": {"r": 2, "target_modules": r".*layer\.\d\.(attention\.self\.key|output\.dense)"},
        "one-layer": {"r": 2, "target_modules": two, "layers_to_transform": [1]},
        "dropout": {"r": 2, "target_modules": two, "lora_dropout": 0.1},
        "dense": {"r": 3, "target_modules": ["dense"]},
        "all-linear-names": {"r": 1, "target_modules": ["query", "key", "value", "output.dense"]},
        "patterns": {
            "r": 8, "lora_alpha": 8, "target_modules": two,
            "rank_pattern": {"query": 2, "value": 2}, "alpha_pattern": {"self.query": 6, "value": 6},
        },
        "ranks-that-differ": {
            "r": 3, "lora_alpha": 6, "target_modules": [*two, "output.dense"], "use_rslora": True,
            "rank_pattern": {"layer.1.attention.self.query": 5, "0.output.dense": 1, "value": 2},
            "alpha_pattern": {"query": 4, "layer.0.attention.self.value": 9},
        },
        "gaussian": {"r": 2, "target_modules": two, "init_lora_weights": "gaussian"},
    }
    for name, settings in cases.items():
        peft_to_ours(world, f"peft-{name}", settings)
    for name in ("plain", "norms", "rslora", "one-layer", "ranks-that-differ"):
        peft_to_ours(world, f"encoder-{name}", cases[name], encoder=True)
    ours_to_peft(world, "ours-m-clip")
    ours_to_peft(world, "ours-encoder", encoder=True)
    pectvlm(world)
    print(json.dumps({"torch": torch.__version__, "peft": peft.__version__}))
    sys.exit(world.failed)


main()
