"""Mini-batches: the rows that an epoch takes."""

import pytest
import torch

from fedsim.training.batches import rows_of

IMAGES = torch.arange(5 * 3 * 4 * 2, dtype=torch.float32).view(5, 3, 4, 2)
LAID_OUT = {
    "contiguous": IMAGES,
    "channels last": IMAGES.contiguous(memory_format=torch.channels_last),
    "one channel": torch.empty_strided((5, 1, 4, 3), (12, 1, 3, 1)).copy_(torch.arange(60.0).view(5, 1, 4, 3)),
    "part of a larger tensor": torch.cat([IMAGES, IMAGES])[3:8],
    "every second example": torch.cat([IMAGES, IMAGES])[::2],
    "part of each example": IMAGES[:, :, 1:],
    "one value for all": torch.ones(1, 1).expand(5, 4),
    "one value for each": torch.arange(5.0)[:, None].expand(5, 4),
    "transposed": torch.arange(20.0).view(4, 5).T,
    "tokens": torch.arange(35).view(5, 7),
    "targets": torch.arange(5),
    "without values": torch.ones(5, 0),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_rows_have_the_values_and_the_layout_that_indexing_gives(name: str) -> None:
    values, order = LAID_OUT[name], torch.tensor([4, 0, 3, 3, 1, 2])
    rows, expected = rows_of(values, order), values[order]
    assert torch.equal(rows, expected)
    assert (rows.dtype, rows.stride()) == (expected.dtype, expected.stride())
    rows += 1  # an augmentation may change them
    assert torch.equal(values[order], expected)
