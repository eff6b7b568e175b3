"""A text file, each line of which is an example: the next token is predicted."""

from typing import Annotated

from annotated_types import Ge

from fedsim.data.dataset import Dataset, Examples, Spacing, set_aside
from fedsim.data.places import user_path
from fedsim.data.tokenised import tokenised
from fedsim.reading import read_text


def lines(
    *,
    path: str,
    tokenizer: str,
    length: Annotated[int, Ge(0)] = 0,
    test_share: float = 0.2,
    test_spacing: Spacing = "random",
) -> Dataset:
    """Read a text file by the tokenizer of a pretrained model; each line is an example, of which tokens are predicted.

    Parameters
    ----------
    path
        Path of a text file, as given or relative to ``$FEDSIM_DATA``. Empty lines are left out.
    tokenizer
        Folder of a model with its tokenizer, or the id of a model of the hub; ``id@revision`` for another branch, tag
        or commit than ``main``.
    length
        Largest number of tokens of a line, 0 for as many as the model takes; longer ones are truncated.
    test_share
        Share of the lines that become the test set, such as one of every five.
    test_spacing
        Where in every stretch of lines those lie: at ``random`` places, or always at the last (``even``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds too few lines, or there is no tokenizer.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share = {test_share} must be more than 0 and less than 1")
    place = user_path(path)
    found = [line for line in read_text(place).split("\n") if line.strip()]
    is_test = set_aside(len(found), test_share, test_spacing)
    if is_test.all() or not is_test.any():
        raise ValueError(f"{place} has {len(found)} lines, too few to set test_share = {test_share} aside; give more")
    texts = {
        part: [line for line, test in zip(found, is_test, strict=True) if test == (part == "test")]
        for part in ("train", "test")
    }
    tokens = tokenised(texts, tokenizer, length, str(place))
    train, test = (Examples(*tokens.next_of(part)) for part in texts)
    return Dataset(place.stem, train, test, tokens.vocabulary, task="next-token", pad_token=tokens.pad)
