"""Report errors that the user can correct, in one line."""


class InputError(ValueError):
    """Something given by the user is wrong. The message is one line: what, where, what to do; scripts print no more."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
