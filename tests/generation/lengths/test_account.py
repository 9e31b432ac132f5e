"""What drafting has won and lost: it is let go of where it loses, and tried again at fixed intervals."""

from itertools import count

import pytest

from dspark_hf.generation.lengths.account import Account


def drafted_rounds(gains, account=None, extra=0.25, num_rounds=256):
    """Whether each of some rounds was drafted; `gains(round)` tells what it then wins."""
    account = Account() if account is None else account
    drafted = []
    for index in range(num_rounds):
        rests = account.rests(num_rows=1)
        if not rests and not account.affords(extra):
            account.pause(num_rows=1)
            rests = True
        drafted.append(not rests)
        if drafted[-1]:
            account.settle(gains(index), extra)
    return drafted


def runs(drafted):
    """Lengths of the runs of equal values."""
    ends = [place for place in range(1, len(drafted)) if drafted[place] != drafted[place - 1]]
    return [end - start for start, end in zip([0, *ends], [*ends, len(drafted)], strict=True)]


def test_a_useless_drafter_costs_little():
    # Two steps at first, then half a step a try, ever less often.
    assert runs(drafted_rounds(lambda index: 0, num_rounds=800)) == [8, 64, 2, 128, 2, 256, 2, 256, 2, 80]


def test_what_costs_more_is_let_go_of_sooner():
    assert runs(drafted_rounds(lambda index: 0, extra=1.0))[0] == 2


def test_a_decent_drafter_is_left_alone():
    # One draft in every other round.
    assert all(drafted_rounds(lambda index: index % 2))
    # And a bad stretch after good times is borne for longer than one at the beginning.
    assert runs(drafted_rounds(lambda index: index < 50))[:1] == [82]


def test_an_unlucky_beginning_is_borne():
    assert all(drafted_rounds(lambda index: index > 6))


def test_it_recovers():
    lens = runs(drafted_rounds(lambda index: int(70 < index < 150)))
    assert lens[:2] == [8, 64] and lens[2] > 80


def test_a_round_that_cannot_be_lost_any_more_is_not_begun():
    # Two rounds, where a third would take more than a quarter of a step.
    assert runs(drafted_rounds(lambda index: 0, extra=1.0))[:2] == [2, 64]
    # A try is one round at least, whatever it takes.
    assert runs(drafted_rounds(lambda index: 0, extra=5.0))[:4] == [1, 64, 1, 64]


def test_pauses_of_what_has_won_are_short_and_grow():
    lens = runs(drafted_rounds(lambda index: 4 * (index < 20), extra=1.0, num_rounds=800))
    # A try of one round each.
    assert lens[0] == 28 and lens[1::2][:7] == [8, 16, 32, 64, 64, 64, 64] and set(lens[2::2][:6]) == {1}


@pytest.mark.parametrize("pause_len", [1, 2, 64, 1000])
def test_a_whole_pause_is_as_long_as_asked_for(pause_len):
    account = Account()
    account.pause_len = pause_len
    account.pause(num_rows=1)
    # The round that was about to begin is the first of it.
    assert [account.rests(num_rows=1) for _ in range(pause_len)] == [True] * (pause_len - 1) + [False]


def test_pauses_do_not_outgrow_a_whole_one_where_now_and_then_a_draft_stands():
    def pauses(interval):
        numbers = count(1)
        return runs(drafted_rounds(lambda index: next(numbers) % interval == 0, extra=1.0, num_rounds=800))[1::2]

    assert set(pauses(interval=4)[:-1]) == {64} and pauses(interval=1000)[:5] == [64, 64, 128, 256, 256]


def test_what_wins_again_has_a_short_pause_again():
    # It wins in five rounds, and in five more when the second whole pause is over.
    lens = runs(drafted_rounds(lambda index: 4 * (index < 5 or index in range(200, 206)), extra=1.0, num_rounds=300))
    assert lens == [13, 8, 1, 16, 1, 32, 1, 64, 1, 64, 13, 8, 1, 16, 1, 32, 1, 27]


def test_another_call_does_not_wait_for_more_than_a_whole_pause():
    account = Account()
    drafted_rounds(lambda index: 0, account, num_rounds=210)
    account.begin_call(64)
    assert [account.rests(num_rows=1) for _ in range(65)] == [True] * 64 + [False]
    account.pause(num_rows=1)
    # The round that was about to begin is the first of it.
    assert [account.rests(num_rows=1) for _ in range(256)] == [True] * 255 + [False]
    # As that call wants it, not the one before.
    account.pause_len = 1000
    account.pause(num_rows=1)
    account.begin_call(8)
    assert [account.rests(num_rows=1) for _ in range(9)] == [True] * 8 + [False]


def test_a_try_is_over_when_it_has_won_a_credit():
    account = Account()
    account.pause(num_rows=1)
    assert account.is_trying and account.has_paused
    assert all(account.rests(num_rows=1) for _ in range(account.pause_len - 1)) and not account.rests(num_rows=1)
    account.settle(1.0, 0.25)
    assert account.is_trying and not account.is_winning
    account.settle(1.0, 0.25)
    account.settle(1.0, 0.25)
    assert not account.is_trying and account.is_winning


def test_many_rows_tell_more_in_a_round():
    lens = [runs(drafted_rounds(lambda index: 0, Account(num_rows)))[0] for num_rows in (1, 4, 16, 64)]
    assert lens == [8, 4, 2, 1]


def test_a_pause_ends_when_rows_have_left():
    account = Account(10)
    account.pause(num_rows=10)
    assert account.rests(num_rows=8)
    assert not account.rests(num_rows=6)
