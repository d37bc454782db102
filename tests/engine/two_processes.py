"""What a process of tests/engine/test_gather.py does: losses and gradients of its half of a batch, written to a file.

Gradients are averaged over the processes afterwards, as DDP does.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from tinyseed.engine.runtime import ProcessGroup
from tinyseed.methods.base import Group, SingleProcess
from tinyseed.objectives.cluster import sinkhorn, swav_loss
from tinyseed.objectives.contrast import nt_xent

IMAGES, WIDTH, DIM, PROTOTYPES, CROPS = 10, 6, 8, 5, 4


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crops of all images, a linear network's weight, and prototypes."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((CROPS, IMAGES, WIDTH), (WIDTH, DIM), (DIM, PROTOTYPES))
    crops, weight, prototypes = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    return crops, weight.requires_grad_(), prototypes.requires_grad_()


def losses(group: Group, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """NT-Xent and SwAV's loss of this process' images, with the gradients to the weights."""
    crops, weight, prototypes = inputs(dtype)
    share = IMAGES // group.size
    mine = crops[:, group.rank * share : (group.rank + 1) * share]
    rows = normalize(mine @ weight, dim=2)
    pairs = rows[:2].flatten(0, 1)
    contrast = nt_xent(rows[0], rows[1], group.gather_with_gradient(pairs), offset=group.rank * len(pairs))
    scores = rows @ normalize(prototypes, dim=0)
    codes = torch.stack([sinkhorn(scores[crop], gather=group.gather) for crop in range(2)])
    swapped = swav_loss(scores, codes)
    (to_weight,) = torch.autograd.grad(contrast, weight, retain_graph=True)
    found = {"nt_xent": contrast, "nt_xent.weight": to_weight, "swav": swapped}
    of_swav = torch.autograd.grad(swapped, (weight, prototypes))
    found |= {"swav.weight": of_swav[0], "swav.prototypes": of_swav[1]}
    return {name: value.detach() for name, value in found.items()}


def main(out: Path) -> None:
    """Join the group, average over it, write on the first process."""
    dist.init_process_group("gloo")
    group = ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    results = {str(dtype): losses(group, dtype) for dtype in (torch.float32, torch.float64)}
    for of_dtype in results.values():
        for value in of_dtype.values():
            dist.all_reduce(value)
            value.div_(group.size)
    if group.rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()


def alone(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The same of the whole batch in one process."""
    return losses(SingleProcess(), dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
