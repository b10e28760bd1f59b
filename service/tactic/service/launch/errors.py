"""What may go wrong on the way up."""


class LaunchError(RuntimeError):
    """A deployment cannot start or stop; the message says why and what to do."""
