"""The two ways a command ends badly, so that the shell and a reader can tell them apart."""

from __future__ import annotations


class SfdError(Exception):
    """What went wrong, in three parts that code and tests may look at; nobody has to read the sentence.

    Args:
        subject: what it is about: a setting (`dit.heads`), a flag, a path, a command.
        problem: what is wrong with it, a clause without a full stop.
        remedy: what to do about it; may be left out where the problem says it.
    """

    def __init__(self, subject: object, problem: str = "", remedy: str = "") -> None:
        super().__init__(str(subject), problem, remedy)
        self.subject, self.problem, self.remedy = str(subject), problem, remedy

    def __str__(self) -> str:
        sentence = f"{self.subject}: {self.problem}" if self.problem else self.subject
        return f"{sentence}; {self.remedy}" if self.remedy else sentence


class UserError(SfdError):
    """Something the user can put right: exit code 2, one sentence, no traceback."""


class StageFailure(SfdError):
    """The stage could not do its work although the input was acceptable: exit code 1."""


class SettingError(ValueError):
    """A setting that does not hold, found where the settings are checked; a ValueError, so that pydantic carries it.

    Args:
        key: the setting, as the section that checks it calls it; empty where a check of one field raises.
        problem: what is wrong with it, a clause without a full stop.
        remedy: what to do about it.
    """

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(key, problem, remedy)
        self.key, self.problem, self.remedy = key, problem, remedy

    def __str__(self) -> str:
        return "; ".join(
            part for part in (f"{self.key}: {self.problem}" if self.key else self.problem, self.remedy) if part
        )
