"""Shakespeare's plays: the next character, speaker by speaker."""

import re
from pathlib import Path

import numpy as np
import torch

from fedsim.data.checksum import check_md5
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.places import find_or_download, user_path
from fedsim.data.text import tokens, vocabulary, windows
from fedsim.reading import read_text

FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
MD5 = "6fb458f1232090904fb40fe944165e91"
TEST_SHARE = 10
# A speech: after an empty line, a line that ends in a colon, and all that follows up to the next empty line.
SPEECH = re.compile(r"(?:\A|\n\n)\s*([^\n:]+):\n(.*?)(?=\n\n|\Z)", flags=re.DOTALL)


def shakespeare(*, path: str = "", data_dir: str | None = None, length: int = 80) -> Dataset:
    """Predict the next character of a plain text of plays, by default tiny Shakespeare's 1.1 million characters.

    Its natural clients are the speakers, the id column ``speaker``.

    Parameters
    ----------
    path
        Your own text in the same format: speeches separated by an empty line, each below its speaker and a colon.
    data_dir
        Folder with ``tinyshakespeare.txt`` (default: ``$FEDSIM_DATA``, else a download). Not used with ``path``.
    length
        Number of characters in an example; the target of each is the next character.

    Raises
    ------
    FileNotFoundError
        If the text is not found; the message says where to put it.
    ValueError
        If it is not the published text (where no ``path`` was given), has no speeches, or ``length`` is too large.

    Notes
    -----
    There is no official split: the last tenth of each speaker's examples, in the order of the plays, is the server's
    test set. A speaker's speeches are joined and cut without overlap, so speakers with at most ``length`` characters
    have no example; the remainder is dropped.

    References
    ----------
    Caldas et al. 2018, LEAF: a benchmark for federated settings, arXiv 1812.01097; the text is that of
    char-rnn, Karpathy 2015.
    """
    if length < 1:
        raise ValueError(f"length = {length} must be at least 1 character")
    place = user_path(path) if path else _published(data_dir)
    text = read_text(place)
    speeches: dict[str, list[str]] = {}
    for speaker, speech in SPEECH.findall(text):
        speeches.setdefault(speaker.strip(), []).append(speech.rstrip("\n") + "\n")
    if not speeches:
        raise ValueError(
            f"{place} has no speech: a line with a speaker and a colon, then the words, then an empty line"
        )
    spoken = {speaker: "".join(parts) for speaker, parts in speeches.items()}
    classes = vocabulary(list(spoken.values()))
    index = {character: position for position, character in enumerate(classes)}
    every = {speaker: windows(tokens(said, index), length) for speaker, said in spoken.items()}
    speakers = tuple(speaker for speaker, part in every.items() if len(part[0]))
    cut = [every[speaker] for speaker in speakers]
    if sum(len(inputs) for inputs, _ in cut) < TEST_SHARE or not any(len(inputs) >= TEST_SHARE for inputs, _ in cut):
        raise ValueError(f"length = {length} leaves no speaker of {place} {TEST_SHARE} examples; use a smaller length")
    splits = [len(inputs) - len(inputs) // TEST_SHARE for inputs, _ in cut]
    train, test = (
        Examples(*(torch.cat([part[side][chosen(n)] for part, n in zip(cut, splits, strict=True)]) for side in (0, 1)))
        for chosen in (lambda n: slice(None, n), lambda n: slice(n, None))
    )
    names = tuple({"\n": "newline", " ": "space"}.get(character, character) for character in classes)
    ids = {"speaker": np.repeat(np.arange(len(cut)), splits)}
    return Dataset("shakespeare", train, test, names, ids=ids, origins={"speaker": speakers})


def _published(data_dir: str | None) -> Path:
    def download(root: Path) -> None:
        from torchvision.datasets.utils import download_url  # takes a second, and only the download needs it

        download_url(URL, root / "shakespeare", FILE, MD5)

    folder = find_or_download(
        "shakespeare",
        data_dir,
        lambda place: (place / FILE).is_file(),
        download,
        folders=("shakespeare", "."),
        needs=FILE,
    )
    check_md5(folder / FILE, MD5)
    return folder / FILE
