"""The lab's one error: something is missing or went wrong; the text says what to do about it."""


class LabError(Exception):
    """The lab itself failed. The command did not run, or its outcome is not known."""
