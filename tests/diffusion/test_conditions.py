"""The table of conditions: which row means what."""

from __future__ import annotations

import pytest
import torch

from sfd_cli.diffusion.conditions import Conditions

ANIMALS = Conditions(("cat", "dog", "owl"))


def test_row_i_is_condition_i_and_the_last_row_is_none() -> None:
    assert [ANIMALS.row(name) for name in ANIMALS.names] == [0, 1, 2]
    assert (len(ANIMALS), ANIMALS.nothing, ANIMALS.rows) == (3, 3, 4)
    assert Conditions.numbered(3).names == ("0", "1", "2")
    with pytest.raises(KeyError):
        ANIMALS.row("fox")


def test_the_last_row_is_called_null_unless_a_condition_is() -> None:
    assert ANIMALS.row("null") == 3
    assert [ANIMALS.name(row) for row in range(4)] == ["cat", "dog", "owl", "null"]
    named = Conditions(("cat", "null"))
    assert (named.row("null"), named.name(1), named.nothing) == (1, "null", 2)


def test_dropped_rows_become_the_last_one_and_the_others_stay() -> None:
    rows = torch.tensor([2, 0, 1, 0])
    found = ANIMALS.drop(rows, torch.tensor([True, False, False, True]))
    assert found.tolist() == [3, 0, 1, 3]
    assert found.dtype == torch.int64


def test_unconditional_rows_are_the_last_one_for_every_image() -> None:
    rows = ANIMALS.unconditional(torch.tensor([2, 0]))
    assert rows.tolist() == [3, 3]
    assert rows.dtype == torch.int64
