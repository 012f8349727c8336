"""Exceptions of flashcupy that are not plain ValueError or TypeError."""


class UnsupportedError(NotImplementedError):
    """A valid request that the backend serving these arrays cannot carry out.

    The message names the argument, the backend and, where there is one, the way round.
    """
