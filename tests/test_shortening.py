"""Error lines: a long value is cut in its middle, and what is around it stays."""

import re

import pytest

from fedsim.shortening import LINE, cut, one_line

REMEDY = "must be a name; use a shorter one"
VALUES = {
    "quoted": '"' + "a few words " * 100 + '"',
    "escaped quotes": repr('it\'s "so" ' * 90),
    "list": str([[1, 2], [3, 4]] * 90),
    "table": str({"a": {"b": [1] * 400}}),
    "digits": "9" * 5000,
    "brackets": "[" * 3000 + "]" * 3000,
    "path": "/a/b" * 1000,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_long_value_is_cut_in_its_middle_and_the_rule_stays(value: str) -> None:
    line = one_line(f"study.toml: model.name = {value}: {REMEDY}")
    assert len(line) <= LINE
    assert line.startswith(f"study.toml: model.name = {value[:12]}")
    assert line.endswith(f"{value[-5:]}: {REMEDY}")
    assert line.count(" ... ") == 1


def test_of_several_long_values_each_stays_in_part() -> None:
    line = one_line(f"'{'a' * 900}' and '{'b' * 900}' differ; choose one of {'c' * 900}")
    assert len(line) <= LINE
    assert all(each * 10 in line for each in "abc")
    assert "differ; choose one of " in line


def test_a_list_of_names_keeps_its_ends_and_no_part_of_a_name() -> None:
    names = [f"layer{place}" for place in range(400)]
    line = one_line(f"layer pattern 'hed*' matches nothing; layers are: {', '.join(names)}; correct it")
    assert LINE - 20 < len(line) <= LINE
    assert set(re.findall(r"layer\w+", line)) < {*names, "layers"}
    assert line.startswith("layer pattern 'hed*' matches nothing; layers are: layer0, layer1, ")
    assert line.endswith("layer399; correct it")


def test_names_in_a_list_are_not_cut_one_by_one() -> None:
    names = ", ".join(f"some_library:TheLongNameOfPart{place}" for place in range(20))
    line = one_line(f"partition.scheme = 'part' is unknown; known are: iid, {names}")
    assert len(line) <= LINE
    assert line.startswith("partition.scheme = 'part' is unknown; known are: iid, some_library:TheLongNameOfPart0, ")
    assert line.endswith("some_library:TheLongNameOfPart19")
    assert line.count(" ... ") == 1


@pytest.mark.parametrize("text", ["[ " * 3000, "'" * 3000, "it's a dog's " * 300, "a" * 3000, "\x1b" * 3000])
def test_whatever_a_message_holds_it_has_the_length_of_a_line(text: str) -> None:
    assert len(one_line(text)) <= LINE


def test_an_escape_is_cut_as_a_whole() -> None:
    name = "ab" + r"\u202e\x1b\U000e0001\n" * 40
    for longest in range(10, 120):
        short = cut(name, longest)
        assert len(short) <= longest
        assert re.fullmatch(r"ab(\\u202e|\\x1b|\\U000e0001|\\n)* \.\.\. (\\u202e|\\x1b|\\U000e0001|\\n)*", short)


def test_a_short_message_is_only_made_one_printable_line() -> None:
    assert one_line("no such\n  file \x1b[31m'\udcff'") == r"no such file \x1b[31m'\udcff'"
    assert cut("abc", 3) == "abc"
