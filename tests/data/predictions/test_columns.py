"""Tables of predicted classes whose columns are misspelled."""

from pathlib import Path

import numpy as np
import pytest

from data.files.images import write_image
from data.predictions.score import score, truth_of
from data.types import DataError

GRAY = np.full((4, 10, 3), 128, np.uint8)


@pytest.mark.parametrize("column", ["Prediction_2", "prediction-2", "probabilty", "Truth"])
def test_a_column_that_is_not_read_but_looks_like_one_is_refused(tmp_path: Path, column: str) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        write_image(tmp_path / f"images/{name}/1.png", GRAY)
    truth, table = truth_of("image_folder", tmp_path / "images"), tmp_path / "labels.csv"
    table.write_text(f"name,prediction,{column}\nant/1,ant,bee\nbee/1,bee,ant\n")
    with pytest.raises(DataError, match=rf"labels\.csv: a column '{column}', which is not read; did you mean"):
        score(truth, table)
    table.write_text("name,prediction,camera\nant/1,ant,Canon\nbee/1,bee,Canon\n")
    assert score(truth, table)[0].values["top1"] == 1.0
