"""How a command ends badly, in parts that code and tests may look at; nobody has to read the sentence."""

from __future__ import annotations


class SfdError(Exception):
    """What went wrong.

    Args:
        subject: what it is about: a setting (`dit.heads`), a flag, a path, a command.
        problem: what is wrong with it, a clause without a full stop.
        remedy: what to do about it; empty where the problem says it.
    """

    def __init__(self, subject: object, problem: str, remedy: str = "") -> None:
        super().__init__(str(subject), problem, remedy)
        self.subject, self.problem, self.remedy = str(subject), problem, remedy

    def __str__(self) -> str:
        sentence = f"{self.subject}: {self.problem}" if self.subject else self.problem
        return f"{sentence}; {self.remedy}" if self.remedy else sentence


class UserError(SfdError):
    """Something the user can put right: exit code 2, one sentence, no traceback."""


class StageFailure(SfdError):
    """The stage could not do its work although the input was acceptable: exit code 1."""


class SettingError(SfdError, ValueError):
    """A setting that does not hold, found where settings are checked; a ValueError, so that pydantic carries it.

    Its subject is the setting as the section that checks it calls it, and empty where a check of one field raises.
    """
