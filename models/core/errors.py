"""The one exception for what the user can mend."""


class InputError(ValueError):
    """Something given by the user is wrong. The message is one line: what, where, what to do; scripts print no more."""
