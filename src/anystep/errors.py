"""The one exception for input a user can correct."""


class InputError(ValueError):
    """Bad input: one line that names the value, what was expected and what to do. The command line exits with 2."""
