"""Strengths that a config gives as a pace: the numbers they come to, whole runs of them, and what is refused."""

import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from mtsp.config import ConfigError, parse, parse_yaml
from mtsp.optim.optimizers import AdamConfig, OptimizerConfig, RMSPropConfig, SGDConfig
from mtsp.regularizers import L2SP, Pace
from mtsp.regularizers.configs import AnyRegularizer, NoneConfig, RegularizerConfig, SPConfig
from mtsp.reports.sweep import rows
from mtsp.training.checkpoint import storage
from mtsp.training.experiment import as_yaml, stage_at
from tools.build import AnyExperiment, read_experiment
from tools.train import main

WEIGHTS = "start.safetensors"


def experiment(values: dict[str, Any], alpha: object, beta: object = 0.0, **changes: Any) -> AnyExperiment:
    """SGD with momentum 0.9, lr 0.01, and 0.02 in the flow branch; both branches pretrained; 200 steps of one stage."""
    branches = {"segmentation": {"weights": WEIGHTS}, "flow": {"weights": WEIGHTS, "lr": 0.02}}
    train = values["train"] | {"steps": 200, "stages": [{"steps": 1, "batch_size": {"davis": 1, "chairs": 1}}]}
    given = {
        "branches": branches,
        "regularizer": {"name": "l2sp", "alpha": alpha, "beta": beta},
        "train": train,
        "schedule": {"name": "constant"},
    }
    return parse(AnyExperiment, values | given | changes)


def test_each_way_to_say_a_pace_is_a_number_by_the_branchs_own_learning_rate(values: dict[str, Any]) -> None:
    # Coupled SGD: 1 / tau = lr alpha / (1 - momentum), alpha = 0.1 / (0.01 tau) = 10 / tau, and 5 / tau where lr is
    # 0.02. A half-life of h is tau = h / ln 2; a share s that is left by 200 steps is tau = 200 / ln(1 / s).
    for said, tau in (
        ({"time_constant": 40}, 40),
        ({"half_life": 40}, 40 / math.log(2)),
        ({"remaining": 0.05}, 200 / math.log(20)),
    ):
        alpha, beta = experiment(values, said, said).strengths()
        assert alpha == beta == pytest.approx({"segmentation": 10 / tau, "flow": 5 / tau})


def test_a_branch_has_its_own_pace_and_a_number_stays_a_number(values: dict[str, Any]) -> None:
    branches = {
        "segmentation": {"weights": WEIGHTS, "alpha": {"time_constant": 100}},
        "flow": {"weights": WEIGHTS, "beta": {"half_life": 50}},
    }
    alpha, beta = experiment(values, 7, {"time_constant": 100}, branches=branches).strengths()
    assert alpha == pytest.approx({"segmentation": 0.1, "flow": 7.0})
    assert beta == pytest.approx({"segmentation": 0.1, "flow": 0.2 * math.log(2)})


def test_what_the_run_leaves_counts_the_schedule_and_the_stages_in_which_a_branch_learns(
    values: dict[str, Any],
) -> None:
    # The pull alone, step by step, without momentum: a branch that is held does not move.
    stages = [
        {"steps": 3, "batch_size": {"davis": 1}, "learn": ["segmentation"]},
        {"steps": 1, "batch_size": {"chairs": 1}, "learn": ["flow"]},
    ]
    one = experiment(
        values,
        {"remaining": 0.2},
        train=values["train"] | {"steps": 2000, "stages": stages},
        schedule={"name": "poly", "warmup": 50},
        optimizer={"name": "sgd", "lr": 0.01, "momentum": 0.0},
    )
    alpha, _ = one.strengths()
    distance = dict.fromkeys(alpha, 1.0)
    for step in range(2000):
        share = one.schedule.lr_factor(step, 2000)
        for branch in stage_at(one.train.stages, step).learn or ():
            distance[branch] *= 1 - one.learning_rates()[branch] * share * alpha[branch]
    assert distance == pytest.approx({"segmentation": 0.2, "flow": 0.2}, rel=0.01)


def test_a_branch_that_never_learns_has_no_share_of_the_run(values: dict[str, Any]) -> None:
    frozen = {"segmentation": {"weights": WEIGHTS}, "flow": {"weights": WEIGHTS, "freeze": True}}
    assert experiment(values, {"remaining": 0.5}, branches=frozen).strengths()[0]["flow"] == 0.0
    assert experiment(values, {"half_life": 50}, branches=frozen).strengths()[0]["flow"] > 0


def test_alpha_asks_nothing_of_a_branch_without_pretrained_weights(values: dict[str, Any]) -> None:
    # The flow branch learns in one step of 100, too short to have 0.01 left of a distance from a start it has not.
    stages = [
        {"steps": 99, "batch_size": {"davis": 1}, "learn": ["segmentation"]},
        {"steps": 1, "batch_size": {"chairs": 1}, "learn": ["flow"]},
    ]
    train = values["train"] | {"steps": 100, "stages": stages}
    optimizer = {"name": "sgd", "lr": 0.01, "momentum": 0.0}
    new = {"segmentation": {"weights": WEIGHTS}, "flow": {}}
    one = experiment(values, {"remaining": 0.01}, branches=new, train=train, optimizer=optimizer)
    assert one.strengths()[0] == pytest.approx({"segmentation": math.log(100) / (0.01 * 99), "flow": 0.0})
    with pytest.raises(
        ConfigError, match=r"regularizer\.beta: no stable pull leaves only 0\.01 of the distance after 1 st"
    ):
        experiment(values, 0.1, {"remaining": 0.01}, branches=new, train=train, optimizer=optimizer)


@pytest.mark.parametrize("mode", ["auto", "coupled", "decoupled", "proximal"])
@pytest.mark.parametrize(
    "optimizer",
    [SGDConfig(name="sgd", lr=0.05), AdamConfig(name="adam", lr=0.05), RMSPropConfig(name="rmsprop", lr=0.05)],
)
def test_the_number_is_the_one_that_attaching_gives(mode: Any, optimizer: OptimizerConfig) -> None:
    section = SPConfig(name="l2sp", alpha=1.0, beta=1.0, mode=mode)
    model = nn.Linear(2, 2, bias=False)
    built = optimizer.build([{"params": list(model.parameters())}])
    pull = L2SP(model, anchors={"weight": torch.ones(2, 2)}, alpha=Pace(300, 0.3), beta=0.0, mode=mode)
    if mode == "coupled" and optimizer.name != "sgd":
        for convert in (lambda: pull.attach(built), lambda: section.strength("alpha", Pace(300, 0.3), 0.05, optimizer)):
            with pytest.raises(
                ValueError, match=r"through .* has no time constant, because it depends on the size of the grad"
            ):
                convert()
        return
    pull.attach(built)
    assert pull.targets["weight"].strength == section.strength("alpha", Pace(300, 0.3), 0.05, optimizer)


PACED = {**dict.fromkeys(("l2", "l2sp", "l2spk"), ("alpha", "beta")), "cautiousl2sp": ()}
"""The strengths that may be a pace; of all others beta alone."""
SECTIONS = {
    name: section
    for section in get_args(AnyRegularizer)
    if section is not NoneConfig
    for name in get_args(section.model_fields["name"].annotation)
}


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("key", ["alpha", "beta"])
def test_a_config_refuses_a_pace_where_its_regularizer_does(name: str, key: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    anchors, given = {"0.weight": torch.ones(2, 2)}, "radius" if (name, key) == ("mars", "alpha") else key
    arguments: dict[str, Any] = {"radius" if name == "mars" else "alpha": 0.1, "beta": 0.1} | {given: Pace(10)}
    has_pace = key in PACED.get(name, ("beta",))
    values = {"name": name, "beta": 0.1} | ({"radius": 0.1} if name == "mars" else {"alpha": 0.1})
    built: RegularizerConfig = SECTIONS[name].model_validate(values | ({"fisher": "f"} if "fisher" in name else {}))
    if built.kind.shared_penalty.uses_fisher:
        arguments["fisher"] = anchors
    with nullcontext() if has_pace else pytest.raises(ValueError, match=f"{key} of .* has no time constant; give a"):
        built.strength(key, Pace(10), 0.1, AdamConfig(name="adam", lr=0.1))
    reason = "has no time constant; give a number" if given == key else "the radius must be above 0"
    with nullcontext() if has_pace else pytest.raises(ValueError, match=reason):
        built.kind(model, anchors=anchors, **arguments)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ({"timeconstant": 3}, "regularizer.alpha.timeconstant: unknown key; did you mean regularizer.alpha.time_const"),
        (
            {"time_constant": 3, "remaining": 0.1},
            "regularizer.alpha: give one of time_constant, half_life, remaining, or a number; got time_constant and "
            "remaining",
        ),
        ({}, "regularizer.alpha: give one of time_constant, half_life, remaining, or a number; got none"),
        ({"half_life": 0}, "regularizer.alpha.half_life: Input should be greater than or equal to 1, got 0"),
        ({"half_life": "long"}, "regularizer.alpha.half_life: Input should be a valid number, got 'long'"),
        ({"remaining": 1}, "regularizer.alpha.remaining: Input should be less than 1, got 1"),
        ("strong", "regularizer.alpha: Input should be a valid number, got 'strong'"),
        ([1], "regularizer.alpha: Input should be a valid number, got [1]"),
        (-1, "regularizer.alpha: Input should be greater than or equal to 0, got -1"),
        (math.inf, "regularizer.alpha: Input should be a finite number, got inf"),
        (math.nan, "regularizer.alpha: Input should be a finite number, got nan"),
        # 200 steps at the full rate: 0.1 / (1 + sqrt(0.9))^2 = 0.02634 of it in each leave exp(-5.3) = 5e-3 at least.
        (
            {"remaining": 1e-5},
            "regularizer.alpha: no stable pull leaves only 1e-05 of the distance after 200 steps at the full learning ",
        ),
        (
            {"remaining": 0.005},
            "regularizer.alpha: no stable pull leaves only 0.005 of the distance after 200 steps at the full learning ",
        ),
        (
            {"time_constant": 37},
            "regularizer.alpha: no stable pull leaves only 0.368 of the distance after 37 steps at the full learning "
            "rate; give 38 steps or more, or use the mode decoupled, which momentum 0.9 does not limit",
        ),
    ],
)
def test_a_strength_that_is_none_is_one_line_with_its_key(values: dict[str, Any], alpha: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(values, alpha)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 2  # one line per branch at most
    with pytest.raises(ConfigError) as error:
        experiment(values, 0.1, branches={"segmentation": {"weights": WEIGHTS, "alpha": alpha}, "flow": {}})
    assert said.replace("regularizer.alpha", "branches.segmentation.alpha") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"regularizer": {"name": "l1sp", "alpha": {"half_life": 3}, "beta": 0}},
            "alpha: alpha of L1SP has no time constant",
        ),
        (
            {"regularizer": {"name": "spd", "alpha": {"half_life": 3}, "beta": 0}},
            "alpha: alpha of SPD has no time constant",
        ),
        (
            {"regularizer": {"name": "cautiousl2sp", "alpha": 1, "beta": {"half_life": 3}}},
            "beta: beta of CautiousL2SP has no time constant",
        ),
        (
            {
                "regularizer": {"name": "l2sp", "alpha": {"half_life": 3}, "beta": 0, "mode": "coupled"},
                "optimizer": {"name": "adam", "lr": 0.1},
            },
            "regularizer.alpha: a pull coupled through Adam has no time constant",
        ),
        (
            {"regularizer": {"name": "glsp", "alpha": 1, "beta": 0, "mode": "decoupled"}},
            "regularizer: GLSP cannot be decoupled; it can be proximal, coupled",
        ),
    ],
)
def test_a_pull_without_a_pace_is_refused_before_anything_is_built(
    values: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(values, 0.1, **changes)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_resolved_experiment_says_the_pace_as_it_was_written(values: dict[str, Any]) -> None:
    one = experiment(values, {"remaining": 0.05}, {"time_constant": 300})
    written = parse_yaml(as_yaml(one))
    assert written["regularizer"]["alpha"] == {"remaining": 0.05}
    assert written["regularizer"]["beta"] == {"time_constant": 300.0}
    assert parse(AnyExperiment, written) == one


def test_a_sweep_of_an_experiment_with_paces_keeps_betas_and_gives_l2_its_strength(values: dict[str, Any]) -> None:
    # beta of 40 steps is 10 / 40 in the segmentation branch and 5 / 40 in the flow branch; so is the alpha of L2.
    found = {
        row.key: row.experiment.strengths()
        for row in rows(experiment(values, {"remaining": 0.5}, {"time_constant": 40}))
    }
    beta = pytest.approx({"segmentation": 1 / 4, "flow": 1 / 8})
    assert found["l2"] == (beta, beta)
    assert found["tau200"] == (pytest.approx({"segmentation": 0.05, "flow": 0.025}), beta)
    assert found["none"] == ({}, {})


def test_every_section_that_the_docs_show_can_be_read() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/regularizers.md").read_text()
    shown = re.findall(r"(regularizer(?:\.\w+)?)='(\{.*?\})'", page)
    names = [read_experiment("cub_small.yaml", [f"{key}={section}"]).regularizer.name for key, section in shown]
    assert {"l2sp", "mars", "l2spfisher"} <= set(names)
    assert len(shown) >= 5


def test_the_time_constant_in_the_header_of_the_birds_is_their_alpha() -> None:
    alpha = read_experiment("cub_small.yaml").strengths()[0]["backbone"]
    paced = read_experiment("cub_small.yaml", ["regularizer.alpha={time_constant: 100}"])
    assert paced.strengths()[0]["backbone"] == pytest.approx(alpha)


@pytest.fixture
def tuned(values: dict[str, Any], train: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """Four steps from the weights of a run of one."""
    values["train"] |= {"steps": 1, "stages": [{"steps": 1, "batch_size": {"davis": 2, "chairs": 2}}]}
    values["evaluation"] = {"data": []}
    train(values, tmp_path / "source")
    weights = str(tmp_path / "source/weights.safetensors")
    values["branches"] = {"segmentation": {"weights": weights}, "flow": {"weights": weights, "lr": 0.02}}
    values["train"] |= {"steps": 4, "save_every": 2}
    return values


def test_a_run_by_pace_is_the_run_by_its_numbers_and_resumes_as_if_uninterrupted(
    tuned: dict[str, Any], train: Callable[..., Any], outcome: Callable[[Path], Any], tmp_path: Path
) -> None:
    tuned["regularizer"] = {"name": "l2sp", "alpha": {"remaining": 0.4}, "beta": {"half_life": 50}, "mode": "decoupled"}
    tuned["branches"]["flow"]["alpha"] = {"time_constant": 30}
    train(tuned, tmp_path / "paced")
    shutil.copytree(tmp_path / "paced", tmp_path / "resumed")
    shutil.rmtree(storage.checkpoints(tmp_path / "resumed/checkpoints")[-1])
    (tmp_path / "resumed/results.json").unlink()
    train(tuned, tmp_path / "resumed", "auto")
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "paced")
    alpha, beta = parse(AnyExperiment, tuned).strengths()
    tuned["regularizer"] |= {"alpha": alpha["segmentation"], "beta": beta["segmentation"]}
    tuned["branches"]["flow"] |= {"alpha": alpha["flow"], "beta": beta["flow"]}
    train(tuned, tmp_path / "numbers")
    assert outcome(tmp_path / "numbers") == outcome(tmp_path / "paced")


def test_the_table_at_the_start_shows_the_number_and_the_time_constant(
    tuned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    tuned["regularizer"] = {"name": "l2sp", "alpha": {"time_constant": 80}, "beta": 0.0}
    (tmp_path / "small.yaml").write_text(json.dumps(tuned))
    assert main(["--config", str(tmp_path / "small.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.split()[-1:] == ["80"]]
    # alpha = (1 - 0.9) / (lr 80): 0.125 at 0.01, 0.0625 at 0.02; then beta, lr and the steps to 1/e.
    assert [(line[0], line[-4:]) for line in lines] == [
        ("segmentation", ["0.125", "0", "0.01", "80"]),
        ("flow", ["0.0625", "0", "0.02", "80"]),
    ]


def test_the_table_at_the_start_calls_the_radius_of_mars_by_its_name(
    tuned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    tuned["regularizer"] = {"name": "mars", "radius": 0.75, "beta": 0.25}
    (tmp_path / "small.yaml").write_text(json.dumps(tuned))
    assert main(["--config", str(tmp_path / "small.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    (heading,) = [line for line in lines if line[:2] == ["branch", "pretrained"]]
    assert heading[4:7] == ["radius", "beta", "lr"]
    (row,) = [line for line in lines if line[:1] == ["segmentation"]]
    assert row[-4:] == ["0.75", "0.25", "0.01", "-"]


def test_anchors_are_kept_as_the_config_says() -> None:
    model = nn.Linear(2, 1, bias=False)
    anchors = {"weight": torch.tensor([[1.0 + 2**-10, 1.0]])}  # bf16 has 8 bits, and rounds the first to 1
    section = parse(SPConfig, {"name": "l2sp", "alpha": 1.0, "beta": 0.0, "anchor_dtype": "bf16", "offload": True})
    kept = section.build(model, anchors=anchors, alpha={"": 1.0}, beta={"": 0.0}).targets["weight"].anchor
    assert kept is not None
    assert (kept.dtype, kept.tolist()) == (torch.bfloat16, [[1.0, 1.0]])
    plain = parse(SPConfig, {"name": "l2sp", "alpha": 1.0, "beta": 0.0})
    anchor = plain.build(model, anchors=anchors, alpha={"": 1.0}, beta={"": 0.0}).targets["weight"].anchor
    assert anchor is not None
    assert torch.equal(anchor, anchors["weight"])
