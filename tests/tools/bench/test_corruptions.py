"""A few damaged files of every format: refused by name, or equal; different only where the format has no checksum."""

from pathlib import Path

import pytest

from tools.bench.corruptions.__main__ import main
from tools.bench.corruptions.damage import KINDS, damaged
from tools.bench.corruptions.formats import FORMATS, Format, digest
from tools.bench.corruptions.outcomes import OUTCOMES, outcome_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_damage_is_refused_by_name(tmp_path: Path, form: Format) -> None:
    form.write(tmp_path)
    path = tmp_path / form.file
    data, whole = path.read_bytes(), digest(form.read(path))
    assert outcome_of(form, path, whole) == ("equal", "")
    allowed = {"equal", "named", "different"} if form.silent else {"equal", "named"}
    for place, other in enumerate(damaged(data, len(KINDS), seed=1)):
        path.write_bytes(other)
        outcome, note = outcome_of(form, path, whole)
        assert outcome in allowed, f"{form.name} {place} ({KINDS[place]}): {outcome} {note}"


def test_the_program_prints_a_row_for_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "--only", "KITTI"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| KITTI flow |")
    assert sum(int(cell) for cell in lines[-1].split("|")[2 : 2 + len(OUTCOMES)]) == 3
