import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from fedsim.config import Config
from fedsim.data import check_dataset
from fedsim.data.image_folder import image_folder
from fedsim.data.places import cache_folder
from fedsim.federation.data import federated_data_of

REAL = Path(__file__).parents[3] / "shared/data/cifar10-jpeg.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder() / "images"


def picture(value: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    pixels = np.full((size[1], size[0], 3), value, dtype=np.uint8)
    pixels[0, :, 0], pixels[:, 0, 2] = 255, 7
    return pixels


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, in the order of their names; the split that each image is from is in its brightness."""
    root = tmp_path / "images"
    for split, base in (("train", 10), ("test", 110)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2 + label):
                Image.fromarray(picture(base + 10 * label + i)).save(folder / f"{i}.png")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def zipped(tree: Path, top: str = "") -> Path:
    archive = tree.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(tree.rglob("*")):
            file.write(path, f"{top}{path.relative_to(tree)}")
    return archive


@pytest.mark.parametrize("make", [lambda tree: tree, zipped, lambda tree: zipped(tree, "set/")])
def test_a_tree_is_read_from_a_folder_and_from_an_archive(tree: Path, make: Callable[[Path], Path]) -> None:
    data = image_folder(path=str(make(tree)))
    assert (data.classes, data.shape) == (("cat", "dog"), (3, 4, 5))
    assert data.train.targets.tolist() == [0, 0, 1, 1, 1]
    expected = [picture(value).transpose(2, 0, 1).tolist() for value in (10, 11, 20, 21, 22)]
    assert data.train.inputs.tolist() == expected
    assert data.test.inputs[:, 1, 1, 1].tolist() == [110, 111, 120, 121, 122]
    inputs = data.normalise(data.train.inputs)
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-6


def test_grey_images_have_one_channel_and_resized_ones_the_size(tree: Path) -> None:
    Image.fromarray(picture(1, (9, 9))).save(tree / "train" / "cat" / "large.png")
    data = image_folder(path=str(tree), mode="L", size=6)
    assert data.shape == (1, 6, 6)
    assert len(data.train) == 6


def test_images_are_decoded_once_and_again_when_one_changes(tree: Path, cache: Path) -> None:
    image_folder(path=str(tree))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    image_folder(path=str(tree))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before
    Image.fromarray(picture(77, (5, 4))).save(tree / "train" / "dog" / "0.png")
    assert 77 in image_folder(path=str(tree)).train.inputs


def test_writing_to_the_images_does_not_reach_the_cache(tree: Path) -> None:
    image_folder(path=str(tree)).train.inputs.zero_()
    assert image_folder(path=str(tree)).train.inputs.any()


def test_the_path_may_lie_in_the_environments_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tree.parent))
    assert len(image_folder(path="images").train) == 5
    with pytest.raises(FileNotFoundError, match=r"path = 'image' does not exist .*FEDSIM_DATA"):
        image_folder(path="image")


def grow(root: Path, *names: str) -> None:
    """Write images of different brightness, from 10 on."""
    for value, name in enumerate(names, 10):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(value)).save(root / name)


SITES = [
    *(
        f"{site}/{split}/{label}/{i}.png"
        for site in "AB"
        for split in ("train", "test")
        for label in ("cat", "dog")
        for i in "01"
    ),
    *(f"C/train/cat/{i}.png" for i in "01"),  # a site without dogs and without a test set
]


@pytest.mark.parametrize("make", [lambda tree: tree, zipped, lambda tree: zipped(tree, "set/")])
@pytest.mark.parametrize("order", ["site/split/class", "split/site/class"])
def test_a_level_of_sites_is_an_id_column(order: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    names = SITES
    if order == "split/site/class":
        names = ["/".join([split, site, label, file]) for site, split, label, file in (n.split("/") for n in SITES)]
    grow(tmp_path / "images", *names)
    layout = "auto" if order == "site/split/class" else order
    data = image_folder(path=str(make(tmp_path / "images")), layout=layout)
    check_dataset(data)
    assert data.classes == ("cat", "dog")
    assert data.ids["site"].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert data.origins == {"site": tuple(sorted({name.split("/")[0] for name in SITES}))}
    assert data.train.targets.tolist() == [0, 0, 1, 1] * 2 + [0, 0]
    assert len(data.test) == 8
    brightness = [10 + names.index(n) for n in sorted(n for n in names if "train" in n)]
    assert data.train.inputs[:, 1, 1, 1].tolist() == brightness


def test_without_splits_every_fifth_image_of_a_class_of_a_site_is_for_the_test(tmp_path: Path) -> None:
    grow(
        tmp_path / "images",
        *(f"{site}/{label}/{i}.png" for site in ("art", "photo") for label in "ab" for i in range(5)),
    )
    data = image_folder(path=str(tmp_path / "images"), layout="site/class", test_spacing="even")
    assert data.ids["site"].tolist() == [0] * 8 + [1] * 8
    assert data.test.inputs[:, 1, 1, 1].tolist() == [14, 19, 24, 29]
    plain = image_folder(path=str(tmp_path / "images" / "art"), layout="class", test_share=0.4, test_spacing="even")
    assert not plain.ids
    assert plain.test.inputs[:, 1, 1, 1].tolist() == [12, 14, 17, 19]
    drawn = image_folder(path=str(tmp_path / "images"), layout="site/class").test
    assert [value // 5 for value in drawn.inputs[:, 1, 1, 1].tolist()] == [2, 3, 4, 5]  # one of each five
    assert len({value % 5 for value in drawn.inputs[:, 1, 1, 1].tolist()}) > 1


@pytest.mark.parametrize("around", ["", "everything/"])
def test_one_site_is_a_site_also_in_a_folder_around_it(around: str, tmp_path: Path) -> None:
    grow(tmp_path / "images", *(f"{around}art/{label}/{i}.png" for label in ("cat", "dog") for i in range(5)))
    data = image_folder(path=str(tmp_path / "images"), layout="site/class")
    assert data.classes == ("cat", "dog")
    assert data.ids["site"].tolist() == [0] * 8


def test_other_splits_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grow(tmp_path / "images", *SITES, "A/val/cat/0.png", "logo.png", "__MACOSX/A/train/cat/._0.png")
    assert len(image_folder(path=str(tmp_path / "images")).train) == 10
    assert "2 images of" in caplog.text
    assert "not in the folders of site/train or test/class/file: A/val/cat/0.png is one" in caplog.text


def test_pictures_of_a_kind_that_is_not_read_are_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.heic", "2.HEIC"):
        (tree / "train" / "dog" / name).write_bytes(b"a photo")
    assert len(image_folder(path=str(tree)).train) == 5
    assert "2 pictures of" in caplog.text
    assert "as train/dog/1.heic is of a kind that is not read; save them as .png or .jpg" in caplog.text


def test_images_are_those_of_torchvision_whatever_their_mode_and_orientation(tmp_path: Path) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
                colours.convert(mode).save(folder / f"{mode}.png")
            colours.convert("CMYK").save(folder / "cmyk.jpg")
            colours.save(folder / "turned.jpg", exif=turned)
    found, known = image_folder(path=str(tmp_path)), ImageFolder(str(tmp_path / "train"))
    expected = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture, _ in known])
    assert np.array_equal(found.train.inputs.numpy(), expected)
    assert found.train.targets.tolist() == known.targets
    grey = image_folder(path=str(tmp_path), mode="L").train.inputs
    opened = [Image.open(name).convert("L") for name, _ in known.samples]
    assert np.array_equal(grey[:, 0].numpy(), np.stack([np.asarray(picture) for picture in opened]))


DOUBTS = {
    "sites below splits": (
        ["train/A/cat/0.png", "test/A/cat/0.png"],
        {},
        r"/A/cat/0.png, .*'split/site/class' if 'A' is",
    ),
    "folders below classes": ([*SITES, "A/train/dog/more/9.png"], {}, "'site/split/class' if 'dog' is a class"),
    "splits in two places": ([*SITES, "train/cat/0.png"], {}, "has train or test both above the sites"),
    "a site without splits": ([*SITES, "D/cat/0.png"], {}, "D/cat/0.png is in no folder train or test of a site"),
    "no splits at all": (
        ["a/b/0.png", "c/b/0.png"],
        {},
        "no image train/<class>/<file> .*layouts are split/class/file and",
    ),
    "another layout": (SITES, {"layout": "split/site/class"}, "has no image train/<site>/<class>/<file>"),
    "a class of the test only": ([*SITES, "A/test/emu/0.png"], {}, "class 'emu' has no training image"),
    "two spellings": ([*SITES, "C/train/Dog/0.png"], {}, "one site has the class 'Dog' and another 'dog'; rename one"),
    "no share": (
        ["a/b/0.png"],
        {"layout": "class", "test_share": 1.0},
        "test_share = 1.0 must be more than 0 and less",
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_a_layout_in_doubt_is_refused_and_not_guessed(case: str, tmp_path: Path) -> None:
    names, options, message = DOUBTS[case]
    grow(tmp_path / "images", *names)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        image_folder(path=str(tmp_path / "images"), **options)
    assert "\n" not in str(error.value)


def test_clients_are_sites_or_share_them(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    grow(
        tmp_path / "images",
        *(
            f"{site}/{split}/{label}/{i}.png"
            for site in "AB"
            for split in ("train", "test")
            for label in "xy"
            for i in range(4)
        ),
    )
    settings = {"data": {"name": "image-folder", "path": str(tmp_path / "images")}}
    for scheme, clients in (("natural", 2), ("domain", 4)):
        data = federated_data_of(tiny(partition={"scheme": scheme}, clients=clients, **settings))
        sites = data.dataset.ids["site"]
        assert [set(sites[held]) for held in data.split.whole] == [{client % 2} for client in range(clients)]


def mixed_sizes(tree: Path) -> None:
    Image.fromarray(picture(1, (5, 5))).save(tree / "train" / "dog" / "1.png")


def cut_short(tree: Path) -> None:
    path = tree / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def no_image_at_all(tree: Path) -> None:
    (tree / "test" / "cat" / "0.png").write_bytes(b"hello")


def empty_class(tree: Path) -> None:
    (tree / "train" / "emu").mkdir()


def class_in_test_only(tree: Path) -> None:
    (tree / "test" / "emu").mkdir()
    Image.fromarray(picture(3)).save(tree / "test" / "emu" / "0.png")


def no_test_split(tree: Path) -> None:
    (tree / "test").rename(tree / "val")


def sixteen_bits(tree: Path) -> None:
    Image.fromarray(np.full((4, 5), 60_000, dtype=np.uint16)).save(tree / "train" / "dog" / "1.png")


def image_beside_the_classes(tree: Path) -> None:
    for path in sorted((tree / "test").rglob("*.png")):
        path.rename(tree / "test" / f"{path.parent.name}{path.name}")


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (mixed_sizes, r"differ in size: train/cat/0.png has 4x5 pixels and train/dog/1.png 5x5; set \[data\] size"),
    (cut_short, r"images: train/dog/1.png cannot be decoded"),
    (no_image_at_all, r"test/cat/0.png cannot be decoded \(not an image, or truncated\)"),
    (empty_class, r"class 'emu' has no training image"),
    (class_in_test_only, r"class 'emu' has no training image"),
    (sixteen_bits, r"train/dog/1.png cannot be decoded \(its pixels have more than 8 bits"),
    (image_beside_the_classes, r"has no image test/<class>/<file>"),
    (no_test_split, r"has no image test/<class>/<file>"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_what_is_wrong_with_a_tree_is_named_and_no_cache_is_left(
    tree: Path, cache: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(tree)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        image_folder(path=str(tree))
    assert "\n" not in str(error.value)
    assert not [path for path in cache.glob("*") if path.suffix != ".lock"]


def test_a_truncated_archive_and_one_with_a_wrong_checksum_are_named(tree: Path) -> None:
    archive = zipped(tree)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"images.zip is not a complete zip archive"):
        image_folder(path=str(archive))
    start = whole.index(b"\x89PNG") + 50
    archive.write_bytes(whole[:start] + bytes([whole[start] ^ 255]) + whole[start + 1 :])
    with pytest.raises(ValueError, match=r"images.zip: .*png cannot be decoded \(Bad CRC-32"):
        image_folder(path=str(archive))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the CIFAR-10 (JPEG) archive is not there")
def test_the_real_cifar10_as_jpeg_files(tmp_path: Path) -> None:
    # A tenth of a class of each split: the whole archive takes a while to decode.
    with zipfile.ZipFile(REAL) as archive:
        for name in archive.namelist():
            if name.endswith("0.jpg"):
                archive.extract(name, tmp_path)
    data = image_folder(path=str(tmp_path / "cifar10"))
    assert (len(data.train), len(data.test), data.shape, len(data.classes)) == (5000, 1000, (3, 32, 32), 10)
    assert torch.bincount(data.train.targets).tolist() == [500] * 10
    # The means and deviations of CIFAR-10 that the field uses; JPEG blurs a little.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.01)
