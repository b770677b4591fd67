import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtsp.reports import page
from mtsp.reports.page import write_page
from mtsp.reports.runs import RunLog
from tools.report import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><img src=x onerror=alert(1)>"


def run(root: Path, name: str, settings: str = "", scale: float = 1.0) -> Path:
    """Write a run of three logged steps with a figure at steps 0 and 20, two frames of a video at 20, J of two
    sequences, IoU of two classes and distances of two layers.
    """
    folder = root / name
    (folder / "figures").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(f"name: {name}\nseed: 0\nsame: 7\n{settings}")
    rows: list[dict[str, Any]] = [
        {"step": 0, "time": 0.0, "davis/J_mean": 0.25 * scale, "distance/flow": 0.0},
        {"step": 10, "time": 1.0, "davis/J_mean": None, "train/loss": 2.0, "pull_to_gradient/flow": 0.5},
        {"step": 20, "time": 2.0, "davis/J_mean": 0.5 * scale, "distance/flow": 0.125, "train/loss": 1.0},
    ]
    rows[1]["time_constant/flow"], rows[2]["time_constant/flow"] = 1.0, 3e8
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sequences = {
        name: {"J_mean": j, "J": [j], "frames": ["1"]} for name, j in (("cows", 0.9), (EVIL, None), ("bmx", 0.1))
    }
    entry = {"J_mean": 0.5, "per_sequence": sequences, "class_iou": {"road": 0.75, "sky": float("nan")}}
    (folder / "evaluation.json").write_text(json.dumps({"entries": {"davis": entry}}))
    layers = {
        "flow.conv1.weight": {"distance": 0.125 * scale, "pull_to_gradient": 0.5},
        "flow.conv2.weight": {"distance": 0.25 * scale},
    }
    (folder / "layers.json").write_text(json.dumps(layers))
    for step, name in ((0, "cows"), (20, "cows"), (20, "bmx-00003"), (20, "bmx-00010")):
        gray = np.full((24, 40, 3), 10 * step, np.uint8)
        Image.fromarray(gray).save(folder / "figures" / f"{step:07d}-davis-{name}.png")
    return folder


def data_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def written(tmp_path: Path, *folders: Path) -> dict[str, Any]:
    write_page([RunLog.read(folder) for folder in folders], tmp_path / "page.html")
    return data_of(tmp_path / "page.html")


def test_the_page_has_settings_values_tables_and_figures_of_all_runs(tmp_path: Path) -> None:
    one, two = run(tmp_path, "l2", "lr: 0.1\n"), run(tmp_path, "l2sp", "lr: 0.2\nmodel: {width: 3}\n", scale=2.0)
    (two / "results.json").write_text('{"davis": {"J_mean": 0.875, "epe": NaN}}')
    data = written(tmp_path, one, two, one)  # a run named twice is shown once
    assert [run["label"] for run in data["runs"]] == ["l2", "l2sp"]
    settings = {row["key"]: (row["values"], row["differs"]) for row in data["config"]}
    assert settings["lr"] == (["0.1", "0.2"], True)
    assert settings["same"] == (["7", "7"], False)
    assert settings["model.width"] == (["-", "3"], True)
    assert data["curves"]["davis/J_mean"] == [[[0, 0.25], [10, None], [20, 0.5]], [[0, 0.5], [10, None], [20, 1.0]]]
    final = {row["name"]: (row["values"], row["best"]) for row in data["final"]["rows"]}
    assert final["davis/J_mean"] == ([0.5, 0.875], [1])  # the last logged value, and that of results.json
    assert final["davis/epe"] == ([None, None], [])
    assert [part["metrics"] for part in data["anchor"]] == [
        ["distance/flow"],
        ["pull_to_gradient/flow"],
        ["time_constant/flow"],
    ]
    sequences, classes = data["tables"]
    assert sequences["columns"] == ["sequence", "run", "J_mean"]
    assert sequences["rows"][:3] == [["cows", "l2", 0.9], [EVIL, "l2", None], ["bmx", "l2", 0.1]]
    assert classes["rows"] == [
        [name, run, iou] for run in ("l2", "l2sp") for name, iou in (("road", 0.75), ("sky", None))
    ]
    images = {figure["name"]: figure["images"] for figure in data["figures"]}
    figures = {name: [(one["run"], one["step"], one["frame"]) for one in found] for name, found in images.items()}
    assert figures["davis-cows"] == [(0, 0, ""), (0, 20, ""), (1, 0, ""), (1, 20, "")]
    assert sorted(figures["davis-bmx"]) == [(run, 20, frame) for run in (0, 1) for frame in ("00003", "00010")]
    assert all(one["source"].startswith("data:image/webp;base64,") for found in images.values() for one in found)


def test_the_page_has_distance_and_pull_of_each_layer_at_the_end(tmp_path: Path) -> None:
    one, two = run(tmp_path, "l2"), run(tmp_path, "l2sp", scale=2.0)
    (branch,) = written(tmp_path, one, two)["layers"]
    assert (branch["branch"], branch["names"]) == ("flow", ["conv1", "conv2"])
    assert branch["distance"] == [[0.125, 0.25], [0.25, 0.5]]
    assert branch["pull_to_gradient"] == [[0.5, None], [0.5, None]]
    (two / "layers.json").unlink()  # of a run before 0.2.0
    assert written(tmp_path, one, two)["layers"][0]["distance"] == [[0.125, 0.25], [None, None]]


def test_runs_of_one_name_are_told_apart_by_seed_and_else_by_folder(tmp_path: Path) -> None:
    folders = [run(tmp_path / side, "l2") for side in "ab"]
    assert [part["label"] for part in written(tmp_path, *folders)["runs"]] == [str(folder) for folder in folders]
    third = run(tmp_path / "a", "third")
    (third / "experiment.yaml").write_text("name: l2\nseed: 0\n")
    assert [part["label"] for part in written(tmp_path, folders[0], third)["runs"]] == ["l2", "third"]
    (folders[1] / "experiment.yaml").write_text("name: l2\nseed: 1\n")
    assert [part["label"] for part in written(tmp_path, *folders)["runs"]] == ["l2, seed 0", "l2, seed 1"]


def test_figures_share_the_bytes_and_a_damaged_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path, "l2")
    (folder / "figures" / "0000030-davis-cows.png").write_bytes(b"\x89PNG")
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for step in range(40, 140, 10):
        Image.fromarray(noise).save(folder / "figures" / f"{step:07d}-davis-cows.png")
    monkeypatch.setattr(page, "_FIGURE_BYTES", 40_000)
    data = written(tmp_path, folder)
    sizes = [len(base64.b64decode(image["source"].partition(",")[2])) for image in data["figures"][0]["images"]]
    assert len(sizes) == 12  # steps 0, 20, 40, ..., 130
    assert 20_000 < sum(sizes) <= 40_000
    assert "Could not be read: 0000030-davis-cows.png." in data["figures_about"]


def test_of_too_many_figures_evenly_spaced_steps_stay_with_the_first_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path, "l2")
    for step in range(40, 101, 20):
        shutil.copy(folder / "figures" / "0000020-davis-cows.png", folder / "figures" / f"{step:07d}-davis-cows.png")
    monkeypatch.setattr(page, "_MOST_FIGURES", 5)
    data = written(tmp_path, folder)
    # The two frames have one step each. Steps 0, 20, 40, 60, 80, 100: places 0, round(2.5) = 2 and 5.
    assert [image["step"] for image in data["figures"][0]["images"]] == [0, 40, 100]
    assert "5 of 8 figures" in data["figures_about"]


def test_a_long_curve_is_thinned_and_keeps_its_extremes(tmp_path: Path) -> None:
    folder = run(tmp_path, "l2")
    values = dict.fromkeys(range(5000), 1.0) | {1234: 9.0, 4321: -9.0, 2222: float("nan")}
    rows = ({"step": step, "a": None if value != value else value} for step, value in values.items())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = written(tmp_path, folder)
    (points,) = data["curves"]["a"]
    assert len(points) <= 1400
    assert {(0, 1.0), (1234, 9.0), (4321, -9.0), (2222, None), (4999, 1.0)} <= {(step, value) for step, value in points}
    assert "thinned" in data["curves_about"]


def test_a_damaged_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, "l2")
    (folder / "results.json").write_text('{"davis": {')
    assert main(["page", str(folder), "--out", str(tmp_path / "report.html")]) == 1
    assert f"{folder / 'results.json'}: not a JSON file" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


BEFORE = """<script>
window.problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("securitypolicyviolation", event => problems.push(event.violatedDirective));
for (const kind of ["error", "warn"]) console[kind] = text => problems.push(String(text));
window.alert = () => problems.push("a name from a file ran as code");
</script>"""
AFTER = """<script>
const texts = selector => [...document.querySelectorAll(selector)].map(element => element.textContent);
const found = {runs: texts("#runs label"), differing: texts("#config tr.differs:not([hidden]) td:first-child")};
const table = document.querySelector("#tables table"), value = table.querySelectorAll("th button")[2];
const column = () => [...table.tBodies[0].rows].map(row => row.cells[2].textContent);
value.click(); found.up = column();
value.click(); found.down = column();
const svg = document.querySelector("#curves .chart svg"), tip = svg.parentNode.querySelector(".tip");
const area = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: area.right - 23, clientY: area.top + 50}));
found.tip = [...tip.children].map(line => line.textContent);
const chooser = document.getElementById("metric"), charts = () => texts("#curves h3");
found.before = charts();
chooser.value = "distance/flow"; chooser.dispatchEvent(new Event("change"));
found.after = charts();
document.querySelector("#curves .chart header button").click(); found.removed = charts();
const slider = document.getElementById("step"); found.first = texts("#figures figcaption");
slider.value = 0; slider.dispatchEvent(new Event("input")); found.slid = texts("#figures figcaption");
const layers = document.querySelector("#layers .chart svg"), edge = layers.getBoundingClientRect();
layers.dispatchEvent(new PointerEvent("pointermove", {clientX: edge.right - 23, clientY: edge.top + 50}));
found.layer = [...layers.parentNode.querySelector(".tip").children].map(line => line.textContent);
found.layers = texts("#layers h3");
const figure = document.getElementById("figure"), film = document.getElementById("frame");
const turn = name => { figure.selectedIndex = [...figure.options].findIndex(option => option.text === name);
  figure.dispatchEvent(new Event("change")); };
found.still = film.parentNode.hidden;
turn("davis-bmx"); found.frames = [film.parentNode.hidden, film.max, texts("#figures figcaption")];
film.value = 1; film.dispatchEvent(new Event("input")); found.filmed = texts("#figures figcaption");
turn("davis-cows");
const check = document.querySelector("#runs input");
check.click();
found.hidden = [texts("#figures figcaption"), document.querySelector("#curves svg").querySelectorAll("path").length];
found.overflow = document.documentElement.scrollWidth - innerWidth;
found.images = document.querySelectorAll("img:not([src^='data:image/webp'])").length;
document.querySelectorAll("details").forEach(part => { part.open = true; });
const cut = [...document.querySelectorAll("svg text")].filter(text => text.getBBox().x < 0);
found.cut = cut.map(text => text.textContent);
found.problems = problems;
document.body.append(Object.assign(document.createElement("pre"), {id: "found", textContent: JSON.stringify(found)}));
</script>"""


class Found(HTMLParser):
    """Text of the element that AFTER adds."""

    text, inside = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = ("id", "found") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_tables_sort_curves_answer_figures_slide_and_nothing_is_an_error(tmp_path: Path) -> None:
    folders = [run(tmp_path, "l2", f"note: '{EVIL}'\n"), run(tmp_path, "l2sp", scale=2.0)]
    assert main(["page", *map(str, folders), "--out", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert EVIL not in text
    checked = text.replace("<title>", BEFORE + "<title>", 1).replace("</body>", AFTER + "</body>")
    (tmp_path / "checked.html").write_text(checked, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", (tmp_path / "checked.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    parser = Found()
    parser.feed(shown)
    found = json.loads(parser.text)
    assert found["problems"] == []
    assert found["images"] == 0
    assert found["cut"] == []  # 300000000 beside a chart would begin outside of it
    assert found["overflow"] <= 0
    assert found["runs"] == ["l2", "l2sp"]
    assert found["differing"] == ["name", "note"]
    assert found["up"] == ["0.1000", "0.1000", "0.9000", "0.9000", "-", "-"]
    assert found["down"] == ["0.9000", "0.9000", "0.1000", "0.1000", "-", "-"]
    assert found["before"] == ["davis/J_mean", "train/loss"]
    assert found["tip"] == ["step 20", "l2: 0.5000", "l2sp: 1"]
    assert found["after"] == ["distance/flow", "davis/J_mean", "train/loss"]
    assert found["removed"] == ["davis/J_mean", "train/loss"]
    assert found["first"] == ["davis-cows, l2, step 20", "davis-cows, l2sp, step 20"]
    assert found["slid"] == ["davis-cows, l2, step 0", "davis-cows, l2sp, step 0"]
    assert found["layers"] == ["distance, flow", "pull, flow"]
    assert found["layer"] == ["conv2", "l2: 0.2500", "l2sp: 0.5000"]
    assert found["still"] is True
    assert found["frames"] == [False, "1", [f"davis-bmx, frame 00003, {run}, step 20" for run in ("l2", "l2sp")]]
    assert found["filmed"] == [f"davis-bmx, frame 00010, {run}, step 20" for run in ("l2", "l2sp")]
    assert found["hidden"] == [["davis-cows, l2sp, step 0"], 1]
