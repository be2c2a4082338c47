"""Errors that are the user's to mend, told in one line and without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """What the user gave cannot be used; the message says what, where and what was expected."""


class DivergedError(UserError):
    """The model's numbers are no longer finite, after a step that was too long say."""


class WaitingError(UserError):
    """No fault: the run waits for somebody, and goes on when it is started again."""


class ProcessesError(UserError):
    """The processes of a run have lost one another, or do not have the same."""
