"""Checksums of downloaded files."""

from pathlib import Path


def check_md5(path: Path, md5: str) -> None:
    """Check that a file exists and is the published one.

    Raises
    ------
    ValueError
        If it is missing or has another MD5 sum.
    """
    from torchvision.datasets.utils import check_integrity  # takes a second, and only some data sets need it

    if not check_integrity(path, md5):
        problem = f"does not have the checksum {md5}" if path.exists() else "is missing"
        raise ValueError(f"{path} {problem}; download the file again")
