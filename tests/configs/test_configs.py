"""Every config that is shipped: it can be read, its network is built, and its regularizer and optimizer fit it."""

import re
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch import nn

from data.video.davis import DavisConfig
from mtsp.config import CONFIGS
from mtsp.optim.groups import parameter_groups
from mtsp.regularizers import L2SP, time_constant
from mtsp.reports.paper import paper_rows
from tests.configs.shipped import shipped
from tools.build import AnyExperiment, read_experiment
from tools.train import main

ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
EXPERIMENTS = shipped(CONFIGS)
PAPER = [path for path in EXPERIMENTS if path.parent.name == "paper" and path.name.startswith("segflow")]


def ids(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


_BUILT: dict[str, nn.Module] = {}


def on_meta(experiment: AnyExperiment) -> nn.Module:
    """The network without the memory and the time that its weights take; one for all that describe it alike."""
    section = experiment.model.model_dump_json()
    if section not in _BUILT:
        with torch.device("meta"):
            _BUILT[section] = experiment.model.build()
    return _BUILT[section]


def header(path: Path) -> str:
    """Comment at the top of a config, without the line that names the schema."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# yaml-language-server")]
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:first])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_an_experiment_is_read_and_its_parts_fit_its_network(path: Path) -> None:
    experiment = read_experiment(path)
    model = on_meta(experiment)
    assert set(model.branches) == set(experiment.branches)  # pyright: ignore[reportArgumentType]
    optimizer = experiment.optimizer.build(parameter_groups(model, experiment.learning_rates()))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    shares = [experiment.schedule.lr_factor(step, experiment.train.steps) for step in range(experiment.train.steps)]
    assert 0.5 < max(shares) <= 1
    assert min(shares) >= 0
    if experiment.regularizer.name != "none":
        alpha, beta = experiment.strengths()
        anchored = [branch for branch, section in experiment.branches.items() if section.weights is not None]
        anchors = {name: w for name, w in model.named_parameters() if name.partition(".")[0] in anchored}
        l2 = experiment.regularizer.name == "l2"
        regularizer = L2SP(model, anchors=anchors, alpha=alpha, beta=beta, zero=l2)
        regularizer.attach(optimizer)
        assert bool(anchored) == any(pull.shared for pull in regularizer.targets.values())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_a_config_begins_with_what_it_is_and_its_command(path: Path) -> None:
    text = header(path)
    own = path.relative_to(CONFIGS).as_posix()
    assert len(text.splitlines()[0]) > 20
    assert re.search(rf"(launch|python) tools/\w+\.py .*{re.escape(own)}|make demo", text), "the header has no command"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_a_config_names_the_schema_for_editors(path: Path) -> None:
    first = path.read_text().partition("\n")[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == CONFIGS / "schema.json"


def test_the_schema_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--print-schema"])
    said = "write it anew: python tools/train.py --print-schema > configs/schema.json"
    assert (CONFIGS / "schema.json").read_text() == capsys.readouterr().out, said


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_davis_is_read_as_it_is_released_or_as_the_demo_writes_it(path: Path) -> None:
    entries = [entry.dataset for entry in read_experiment(path).data.values()]
    assert {entry.resolution for entry in entries if isinstance(entry, DavisConfig)} <= {"480p"}


def test_the_weak_pull_of_the_large_example_is_told() -> None:
    experiment = read_experiment(CONFIGS / "davis_segflow.yaml")
    alpha, beta = experiment.strengths()
    rates = experiment.learning_rates()
    steps = [
        time_constant(strength[branch], rates[branch], coupled=True, momentum=0.9)
        for strength in (alpha, beta)
        for branch in ("segmentation", "flow")
    ]
    assert steps == pytest.approx([1e4, 1e4, 1e6, 1e7])
    said = "for alpha of both branches, as many as each learns in; for beta 1e6 and 1e7"
    assert said in header(CONFIGS / "davis_segflow.yaml")


def test_names_are_unique_and_are_those_of_the_files() -> None:
    names = {path: read_experiment(path).name for path in EXPERIMENTS}
    assert {path.stem: name for path, name in names.items()} == {path.stem: path.stem for path in EXPERIMENTS}
    assert len(set(names.values())) == len(EXPERIMENTS)


def test_every_row_of_the_paper_has_its_config_and_every_config_its_row() -> None:
    rows = {row.config: row for row in paper_rows()}
    assert len(rows) == 42
    assert rows.keys() == {path.stem for path in EXPERIMENTS if path.parent.name == "paper"}
    for path in EXPERIMENTS:
        if path.parent.name == "paper":
            entries = {metric.partition("/")[0] for metric in rows[path.stem].paper}
            assert entries <= set(read_experiment(path).evaluation.data)


@pytest.mark.parametrize("path", PAPER, ids=ids)
def test_a_row_of_the_paper_has_the_strengths_and_rates_that_are_known(path: Path) -> None:
    experiment = read_experiment(path)
    alpha, beta = experiment.strengths()
    words = path.stem.split("_")
    row = next(row for row in paper_rows() if row.config == path.stem)
    assert {(alpha[name], beta[name]) for name in alpha} == {(row.alpha, row.beta)}
    assert experiment.regularizer.name == {"L2": "l2", "L2-SP": "l2sp"}[row.regularizer]
    ((metric, number),) = row.paper.items()
    assert (f"Paper: EPE {number:.2f}." if metric.endswith("epe") else f"Paper: IoU {number:.1f} ") in header(path)
    rates = experiment.learning_rates()
    assert rates == {"segmentation": 1e-8, "flow": 1e-9} if "star" not in words else {"segmentation": 1e-8}
    assert experiment.tasks.segmentation is not None
    assert experiment.tasks.segmentation.reduction == "sum"
    text = " ".join(line.lstrip("# ") for line in header(path).splitlines())
    said = [
        float(number)
        for pair in re.findall(r"= (\d+e\d+) steps(?: \(flow: (\d+e\d+)\))?", text)
        for number in pair
        if number
    ]
    steps = [time_constant(alpha[branch], lr, coupled=True, momentum=0.9) for branch, lr in rates.items()]
    assert said == pytest.approx(steps)


@pytest.mark.parametrize("path", PAPER, ids=ids)
def test_a_flow_row_is_measured_both_ways_on_its_own_pass(path: Path) -> None:
    experiment = read_experiment(path)
    data, which = path.stem.split("_")[1:3]
    if data not in ("monkaa", "driving"):
        assert experiment.evaluation.data == ("davis_val",)
        return
    for name in (data, f"{data}_val"):
        settings = experiment.data[name].dataset.model_dump()
        assert (settings["name"], settings["passes"]) == (data, (which,))
        assert settings["directions"] == ("into_future", "into_past")
    assert experiment.evaluation.data == (f"{data}_val",)
    assert [stage.learn for stage in experiment.train.stages] == [("segmentation",), ("flow",)]


ENCNET = {row.config: row for row in paper_rows() if row.system.startswith("EncNet")}


@pytest.mark.parametrize("name", ENCNET)
def test_an_encnet_row_of_the_paper_has_its_strengths_and_the_recipe_of_the_published_networks(name: str) -> None:
    path = CONFIGS / "paper" / f"{name}.yaml"
    experiment = read_experiment(path)
    alpha, beta = ENCNET[name].alpha, ENCNET[name].beta
    miou, accuracy = ENCNET[name].paper.values()
    assert experiment.regularizer.name == ("l2" if name.endswith("_l2") else "l2sp")
    assert experiment.strengths() == ({"backbone": alpha, "head": alpha}, {"backbone": beta, "head": beta})
    assert f"Paper: mIoU {miou:.2f}, pixel acc. {accuracy:.2f}." in header(path)
    assert experiment.learning_rates() == {"backbone": 1e-3, "head": 1e-2}
    assert experiment.train.steps == 80 * (4996 // 16)
    assert [stage.batch_size for stage in experiment.train.stages] == [{"context": 16}]
    depth = "101" if "101" in name else "50"
    assert experiment.model.model_dump()["encoder"] == f"resnet{depth}s"
    text = " ".join(line.lstrip("# ") for line in header(path).splitlines())
    steps = [time_constant(s, lr, coupled=True, momentum=0.9) for s, lr in ((alpha, 1e-3), (beta, 1e-2))]
    assert f"backbone {said(steps[0])} (alpha), head {said(steps[1])} (beta)" in text


def said(steps: float) -> str:
    return f"{steps:.0e}".replace("e+0", "e")


@pytest.mark.parametrize("path", ACCELERATE, ids=ids)
def test_accelerate_launches_with_its_config(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "no"  # train.precision decides
    program = ["tools/train.py", "--config", "davis_segflow.yaml"]
    arguments = launch_command_parser().parse_args(["--config_file", str(path), *program])
    checked, _, _ = _validate_launch_command(arguments)
    expected = {"one_gpu": (1, 1), "eight_gpus": (8, 1), "two_nodes": (16, 2), "fsdp2": (8, 1)}[path.stem]
    assert (checked.num_processes, checked.num_machines) == expected
    assert checked.multi_gpu == (path.stem in ("eight_gpus", "two_nodes"))
    assert checked.use_fsdp == (path.stem == "fsdp2")
    assert checked.use_fsdp is False or (checked.fsdp_version, checked.fsdp_auto_wrap_policy) == (2, "SIZE_BASED_WRAP")
    assert f"accelerate launch --config_file configs/accelerate/{path.name}" in header(path)
