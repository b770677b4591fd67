"""A partial Fisher estimate, saved so that an interrupted run can continue."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtsp.files.tensors import read_tensors, write_tensors
from mtsp.fisher.estimate import FisherSum


class PartialEstimate(NamedTuple):
    """File of a partial Fisher estimate, and the settings of the estimate."""

    path: Path
    settings: Mapping[str, Any]
    """Settings, as data for JSON. An estimate can be continued only with the same settings."""

    def save(self, sums: FisherSum, rounds: int) -> None:
        """Write the sums and the number of rounds in them, atomically."""
        notes = {"settings": json.dumps(self.settings), "done": str(rounds)}
        write_tensors(self.path, sums.state_dict(), notes)

    def load(self, sums: FisherSum) -> int:
        """Load the saved sums into `sums` and return the number of rounds in them; 0 if there is no file.

        Raises:
            ValueError: the file cannot be read, is not a partial estimate, or has other settings.
        """
        if not self.path.exists():
            return 0
        tensors, notes = read_tensors(self.path)
        if missing := {"settings", "done"} - notes.keys():
            raise ValueError(f"{self.path} is not a partial estimate: it lacks {min(missing)}; move it elsewhere")
        then, now = json.loads(notes["settings"]), json.loads(json.dumps(self.settings))
        if odd := [key for key in {**now, **then} if key not in now or key not in then or then[key] != now[key]]:
            was = f"with another {odd[0]}, {str(then[odd[0]])[:80]}" if odd[0] in then else f"without {odd[0]}"
            raise ValueError(f"{self.path} was started {was}; use the same settings, or delete the file to start over")
        sums.load_state_dict(tensors)
        return int(notes["done"])
