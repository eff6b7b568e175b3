import numpy as np
import torch

from fedsim.training.augmentation import Augmentation

IMAGES = torch.arange(40 * 2 * 3 * 4, dtype=torch.float32).reshape(40, 2, 3, 4)


def augmented(augmentation: Augmentation, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return augmentation.move(images, *augmentation.draw(len(images), rng))


def slow(
    images: torch.Tensor, flip: bool, crop: int, fill: tuple[float, ...], rng: np.random.Generator
) -> torch.Tensor:
    """Augment image by image, with the same numbers."""
    flips = rng.random(len(images)) < 0.5 if flip else np.zeros(len(images), dtype=bool)
    down, right = (
        rng.integers(0, 2 * crop + 1, size=(2, len(images), 1)) if crop else np.zeros((2, len(images), 1), int)
    )
    result = []
    for i, image in enumerate(images):
        channels, height, width = image.shape
        canvas = torch.empty(channels, height + 2 * crop, width + 2 * crop)
        for channel in range(channels):
            canvas[channel] = fill[channel]
        canvas[:, crop : crop + height, crop : crop + width] = image
        top, left = int(down[i, 0]), int(right[i, 0])
        cut = canvas[:, top : top + height, left : left + width]
        result.append(cut.flip(2) if flips[i] else cut)
    return torch.stack(result)


def test_flips_and_crops_are_those_of_a_slow_loop() -> None:
    for flip, crop in ((True, 0), (False, 1), (True, 2)):
        fill = (-7.0, 0.5)
        got = augmented(Augmentation(flip, crop, fill), IMAGES, np.random.default_rng(3))
        assert torch.equal(got, slow(IMAGES, flip, crop, fill, np.random.default_rng(3)))


def test_one_value_may_fill_all_channels() -> None:
    one, each = (
        augmented(Augmentation(crop=1, fill=fill), IMAGES, np.random.default_rng(0)) for fill in ((3.0,), (3.0, 3.0))
    )
    assert torch.equal(one, each)


def test_about_half_of_the_images_are_mirrored_and_each_offset_occurs() -> None:
    images = torch.arange(12.0).reshape(1, 1, 3, 4).repeat(2000, 1, 1, 1)
    mirrored = augmented(Augmentation(flip=True), images, np.random.default_rng(0))[:, 0, 0, 0] == 3
    assert abs(mirrored.double().mean() - 0.5) < 0.05
    cropped = augmented(Augmentation(crop=1, fill=(-1.0,)), images, np.random.default_rng(0))
    assert len(torch.unique(cropped.flatten(1), dim=0)) == 9


def test_no_augmentation_is_false_and_changes_nothing() -> None:
    assert not Augmentation()
    assert torch.equal(augmented(Augmentation(), IMAGES, np.random.default_rng(0)), IMAGES)


def test_the_result_is_laid_out_for_convolutions() -> None:
    assert augmented(Augmentation(True, 1, (0.0, 0.0)), IMAGES, np.random.default_rng(0)).is_contiguous(
        memory_format=torch.channels_last
    )
