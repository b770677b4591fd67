"""An estimate of Fisher information that is not done, kept in a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save

from mtsp.checkpoint import write_atomically
from mtsp.fisher import FisherSum, tensors_and_notes


class KeptSum(NamedTuple):
    """A file that holds a :class:`mtsp.fisher.FisherSum` while it is not done, and what it belongs to."""

    path: Path
    settings: Mapping[str, Any]
    """Plain data; sums are taken up again under the same settings alone."""

    def save(self, sums: FisherSum, done: int) -> None:
        """Write the sums and how far they are, whole or not at all."""
        notes = {"settings": json.dumps(self.settings), "done": str(done)}
        tensors = {name: value.cpu().contiguous() for name, value in sums.state_dict().items()}
        write_atomically(self.path, save(tensors, notes))

    def load(self, sums: FisherSum) -> int:
        """Give `sums` what is kept, and return how far it is; 0 if there is no file.

        Raises:
            ValueError: it cannot be read, or is of other settings.
        """
        if not self.path.exists():
            return 0
        tensors, notes = tensors_and_notes(self.path)
        then = json.loads(notes.get("settings", "{}"))
        now = json.loads(json.dumps(self.settings))
        if odd := [key for key in now if then.get(key) != now[key]]:
            raise ValueError(
                f"{self.path} was begun with another {odd[0]}, {str(then.get(odd[0]))[:80]}; give it again, or delete "
                "the file to begin anew"
            )
        sums.load_state_dict(tensors)
        return int(notes["done"])
