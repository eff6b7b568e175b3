"""What a dead worker's clients are set back to, and what they must answer again, without any worker."""

from pathlib import Path

import pytest
from flwr.app import Message, MessageType, RecordDict

from fedsim.federation.engines.grid import set_sender
from fedsim.federation.engines.journal import Journal, describe
from fedsim.federation.engines.state_files import StateFiles


@pytest.fixture(autouse=True)
def _sender() -> None:
    set_sender()


def message(client: int, kind: str = MessageType.TRAIN) -> Message:
    return Message(RecordDict(), client, kind)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a folder with the states of clients 0 and 1 after round 3; client 2 has none."""
    for client in (0, 1):
        StateFiles(tmp_path).path(client, 3).touch()
    return tmp_path


def test_a_client_that_has_done_nothing_since_its_checkpoint_is_back_at_it(saved: Path) -> None:
    journal = Journal()
    journal.saved(saved, {0: 3, 1: 3, 2: 3})
    assert journal.set_back([0, 2]) == ({saved: {0: 3}}, {0: 3, 2: 3})  # client 2 kept nothing, so it lost nothing
    assert journal.known() == {0, 1, 2}


def test_a_client_whose_file_has_disappeared_is_back_at_its_initial_state(saved: Path) -> None:
    journal = Journal()
    journal.saved(saved, {0: 3, 1: 3})
    StateFiles(saved).remove(1, 3)
    assert journal.set_back([0, 1]) == ({saved: {0: 3}}, {0: 3, 1: 0})


def test_a_client_that_has_trained_once_answers_that_message_again(saved: Path) -> None:
    journal, sent = Journal(), [message(0), message(1)]
    journal.saved(saved, {0: 3, 1: 3})
    journal.begin(sent)
    journal.answered(sent[0])
    assert journal.set_back([0, 1]) == ({saved: {0: 3, 1: 3}}, {1: 3})
    assert journal.waiting([0, 1]) == [sent[0]]
    assert journal.to_repeat(0) is sent[0]
    assert journal.waiting([0, 1]) == []


def test_a_client_that_has_trained_in_two_rounds_is_back_at_its_checkpoint(saved: Path) -> None:
    journal = Journal()
    journal.saved(saved, {0: 3})
    for _ in range(2):
        sent = message(0)
        journal.begin([sent])
        journal.answered(sent)
    assert journal.set_back([0]) == ({saved: {0: 3}}, {0: 3})
    assert journal.waiting([0]) == []


def test_an_evaluation_changes_no_state_and_ends_no_round(saved: Path) -> None:
    journal, trained, evaluated = Journal(), message(0), message(0, MessageType.EVALUATE)
    journal.saved(saved, {0: 3})
    journal.begin([trained])
    journal.answered(trained)
    journal.begin([evaluated])
    journal.answered(evaluated)
    assert journal.set_back([0])[1] == {}
    assert journal.waiting([0]) == [trained]


def test_a_client_that_cannot_repeat_its_message_stays_at_its_checkpoint(saved: Path) -> None:
    journal, sent = Journal(), message(1)
    journal.saved(saved, {1: 3})
    journal.begin([sent])
    journal.answered(sent)
    journal.set_back([1])
    assert journal.give_up(1) == {1: 3}
    assert journal.waiting([1]) == []
    assert journal.give_up(5) == {5: 0}


def test_a_new_checkpoint_ends_what_had_to_be_repeated(saved: Path) -> None:
    journal, sent = Journal(), message(0)
    journal.begin([sent])
    journal.answered(sent)
    assert journal.set_back([0]) == ({}, {})
    journal.saved(saved, {0: 3})
    assert journal.waiting([0]) == []
    assert journal.set_back([0]) == ({saved: {0: 3}}, {0: 3})


def test_it_says_in_words_who_is_back_where() -> None:
    assert describe({}) == ""
    assert describe({4: 2, 1: 2, 0: 0}) == (
        "clients 0 are back at their initial state; clients 1, 4 are back at their state after round 2"
    )
    assert describe(dict.fromkeys(range(12), 1)) == (
        "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... are back at their state after round 1"
    )
