"""What a refusal is about: tests look at the fields of an error, not at its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sfd_cli.errors import SfdError, UserError


@contextmanager
def refusal(
    subject: object, *named: object, kind: type[SfdError] = UserError
) -> Iterator[pytest.ExceptionInfo[SfdError]]:
    """The block is refused with an error about `subject` whose problem or remedy names each of `named`.

    `named` are keys, values, paths and commands: what a person needs to find the place, not prose.
    """
    with pytest.raises(kind) as caught:
        yield caught
    require_refusal(caught.value, subject, *named)


def require_refusal(error: SfdError, subject: object, *named: object) -> None:
    """Check an error in hand, as `refusal` does."""
    assert error.subject == str(subject), repr(error)
    said = f"{error.problem}; {error.remedy}"
    for part in named:
        assert str(part) in said, f"{part!s} is not named in: {said}"
