"""The two ways a command ends badly, so that the shell and a reader can tell them apart."""


class UserError(Exception):
    """Something the user can put right: exit code 2, one sentence, no traceback."""


class StageFailure(Exception):
    """The stage could not do its work although the input was acceptable: exit code 1."""
