"""The one exception that means: the user can fix this, and the message says how."""


class InputError(ValueError):
    """A config field, file or argument is unusable; the message names it and the fix.

    Raised before long work begins. `experiments` prints it as a single line and exits with status 2.
    """
