"""Best and last checkpoint of a run that may go on in another folder."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's, but a run resumed into a new folder goes on from the best score it had.

    Lightning forgets the score when the folder changes, so that a resumed run which has passed its peak would write a
    worse ``best``. The old folder's files are left alone.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})
