"""Files that crosstune wrote for PyTorch, read by PyTorch.

    python tests/torch_load.py FILE...

It needs torch and safetensors. For each FILE it writes FILE.loaded.safetensors, the tensors as
torch.load(weights_only=True) gives them, and FILE.saved, what torch.save makes of them again; and
prints a line of JSON: the keys in their order.
"""

import collections
import json
import sys

import torch
from safetensors.torch import save_file

for path in sys.argv[1:]:
    tensors = torch.load(path, weights_only=True)
    assert type(tensors) is collections.OrderedDict, type(tensors)
    mapped = torch.load(path, weights_only=True, mmap=True)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), name
        assert not tensor.requires_grad and tensor.device.type == "cpu", name
        # Mapped values lie where the file has them: they must be aligned.
        assert torch.equal(mapped[name], tensor) and mapped[name].data_ptr() % 64 == 0, name
    save_file(tensors, f"{path}.loaded.safetensors")
    torch.save(tensors, f"{path}.saved")
    print(json.dumps(list(tensors)), flush=True)
