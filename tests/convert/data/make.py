"""Made pytorch_model.bin beside it, with torch 2.13: a state dict with all that such a file may have.

python tests/convert/data/make.py
"""

from collections import OrderedDict
from pathlib import Path

import torch

numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6)
state = OrderedDict(
    whole=numbers,
    tied=numbers,  # one storage, as a tied head has
    transposed=numbers.T,
    part=numbers[1:3, 2:5],
    parameter=torch.nn.Parameter(torch.tensor([1.5, -2.0])),
    bfloat16=torch.tensor([[0.1, 3.0]], dtype=torch.bfloat16),
    float16=torch.tensor([0.1], dtype=torch.float16),
    int64=torch.tensor([1, 2**40]),
    scalar=torch.tensor(7.0),
    empty=torch.empty(0, 3),
)
torch.save(state, Path(__file__).with_name("pytorch_model.bin"))
