"""The model that this deployment serves: its name and limits, tokenizer and template."""

from __future__ import annotations

from pathlib import Path

from tactic.service.frontend.validation import unknown_model
from tactic.service.routing import NoWorkerError, WorkerTable
from tactic.service.text import ChatTemplate, TextTokenizer
from tactic.v1 import admin_pb2


class ServedModel:
    """What the front end must know of the model to turn text into requests.

    Attributes:
        tokenizer: of the checkpoint.
        template: its chat template.
    """

    def __init__(self, checkpoint: Path, table: WorkerTable) -> None:
        """Loads tokenizer and template.

        Raises:
            UnsupportedTokenizerError: they cannot be served.
        """
        self.tokenizer = TextTokenizer(checkpoint)
        self.template = ChatTemplate(self.tokenizer)
        self._table = table

    def describe(self) -> admin_pb2.Model:
        """Returns the model as decode workers describe it.

        Raises:
            NoWorkerError: none has been ready yet.
        """
        if self._table.model is None:
            raise NoWorkerError
        return self._table.model

    def check(self, name: str) -> admin_pb2.Model:
        """Returns the model's description if `name` is its name or empty.

        Raises:
            ServiceError: NOT_FOUND for another name.
            NoWorkerError: no worker has been ready yet.
        """
        model = self.describe()
        if name and name != model.name:
            raise unknown_model(name, model.name)
        return model
