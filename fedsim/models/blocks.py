"""Models cut into blocks that fit into a core's cache, and functions run over the blocks, on threads if worth it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from fedsim.models.params import Params, as_flat

# Small enough for the accumulator to stay in a core's cache, large enough to be worth the dispatch.
BLOCK_BYTES = 2**20
# Large enough to keep a GPU busy for longer than a launch takes.
GPU_BLOCK_BYTES = 2**25
# Two cores saturate the memory; below this number of elements a thread costs more than it saves.
THREADS = 2
THREADS_FROM = 2**20

# A function of a block of one model, the same block of others, and a workspace of two blocks.
BlockFunction = Callable[[Tensor, Sequence[Tensor], Tensor], None]


def for_each_block(function: BlockFunction, dtype: torch.dtype, models: Sequence[Params]) -> None:
    """Cut models into the same blocks and call a function with each, on threads if that is worth it."""
    blocks = list(_blocks(models, dtype))
    elements = sum(first.numel() * (1 + len(others)) for first, others in blocks)
    if elements < THREADS_FROM or blocks[0][0].is_cuda:
        _work(function, dtype, blocks)
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(partial(_work, function, dtype), [blocks[thread::THREADS] for thread in range(THREADS)]))


@torch.no_grad()
def _work(function: BlockFunction, dtype: torch.dtype, blocks: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> None:
    if blocks:
        largest = max(first.numel() for first, _ in blocks)
        workspace = torch.empty(2, largest, dtype=dtype, device=blocks[0][0].device)
        for first, others in blocks:
            function(first, others, workspace)


def _blocks(models: Sequence[Params], dtype: torch.dtype) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """Yield parts of the models' buffers if all are flat, else rows of their tensors."""
    buffers = [buffer for buffer in map(as_flat, models) if buffer is not None]
    columns = [buffers] if len(buffers) == len(models) else zip(*(model.values() for model in models), strict=True)
    for column in columns:
        tensors = torch.atleast_1d(*column)
        rows, elements = len(tensors[0]), tensors[0].numel()
        size = (GPU_BLOCK_BYTES if tensors[0].is_cuda else BLOCK_BYTES) // dtype.itemsize
        step = max(1, size * rows // max(1, elements))
        for first, *others in zip(*(tensor.split(step) for tensor in tensors), strict=True):
            yield first, others
