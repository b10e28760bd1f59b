"""What a user of the evaluation can put right."""


class EvaluationError(ValueError):
    """An argument can't be used; the message names it and says what to do."""
