"""What is larger than the free memory is refused before any of it is taken."""

from pathlib import Path

import pytest

from fedsim import memory


def test_what_does_not_fit_says_what_it_needs_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 5000)
    memory.check_fits(5000, "a model")
    with pytest.raises(MemoryError, match=r"^a model needs 5,001 bytes of memory, and 5,000 are free$"):
        memory.check_fits(5001, "a model")
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    memory.check_fits(10**30, "where the system does not tell, anything")


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:   500 kB\n")
    (tmp_path / "used").write_text("90000\n")
    (tmp_path / "statistics").write_text("anon 7\ninactive_file 1000\n")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "USED", tmp_path / "used")
    monkeypatch.setattr(memory, "STATISTICS", tmp_path / "statistics")
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "limit")
    for limit, expected in (("100000", 11_000), ("max", 512_000), ("9000000", 512_000)):
        (tmp_path / "limit").write_text(f"{limit}\n")
        assert memory.free_bytes() == expected
    (tmp_path / "meminfo").unlink()
    assert memory.free_bytes() is None
