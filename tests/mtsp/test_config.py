"""Configs are strict, and what is wrong with one is said at once, with the key and the nearest known one."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from mtsp.config import Config, ConfigError, find, load, parse, parse_yaml


class Small(Config):
    name: Literal["small"]
    width: int = Field(default=4, gt=0)


class Large(Config):
    name: Literal["large"]
    rate: float
    sides: tuple[int, int] = (1, 2)
    root: Path = Path("here")


class Whole(Config):
    model: Annotated[Small | Large, Field(discriminator="name")]
    data: dict[str, Annotated[Small | Large, Field(discriminator="name")]] = Field(default_factory=dict)
    steps: int = 3
    stages: tuple[Small, ...] = ()


def written(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E4", 10000.0), (".5", 0.5), ("on", "on"), ("no", "no"), ("010", "010"), ("12:30", "12:30")],
)
def test_yaml_reads_numbers_as_numbers_and_words_as_words(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_a_valid_file_becomes_typed_values(tmp_path: Path) -> None:
    path = written(tmp_path, "model: {name: large, rate: 1e-3, sides: [5, 6], root: a/b}\nsteps: 7\n")
    whole = load(Whole, path, ["data.x.name=small", "data.x.width=9", "model.rate=2"])
    assert whole.model == Large(name="large", rate=2.0, sides=(5, 6), root=Path("a/b"))
    assert whole.data == {"x": Small(name="small", width=9)}
    assert whole.steps == 7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {name: small, widht: 3}", "model.widht: unknown key; did you mean model.width?"),
        ("model: {name: small}\nstep: 3", "step: unknown key; did you mean steps?"),
        ("model: {name: smal}", "model.name: 'smal' is not one of small, large; did you mean small?"),
        ("model: {width: 3}", "model.name: missing"),
        ("steps: 3", "model: this required key is missing"),
        ("model: {name: small}\nsteps: 3.5", "steps: Input should be a valid integer, got 3.5"),
        ("model: {name: small}\nsteps: true", "steps: Input should be a valid integer, got True"),
        ("model: {name: small}\nsteps: many", "steps: Input should be a valid integer, got 'many'"),
        ("model: {name: large, rate: true}", "model.rate: Input should be a valid number, got True"),
        ("model: {name: large, rate: 1, sides: [1, 2, 3]}", "model.sides: Tuple should have at most 2 items"),
        ("model: {name: small}\ndata: {a: {name: small, width: 0}}", "data.a.width: Input should be greater than 0"),
        ("model: {name: small}\nstages: [{name: small}, {name: small, w: 1}]", "stages.1.w: unknown key"),
        ("model: {name: small}\nmodel: {name: small}", "'model' appears twice"),
        ("model: &a {name: small}\ndata: {x: *a}", "anchors and aliases"),
        ("model: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("- 1", "expected `key: value` lines, got list"),
        ("a: [", "line"),
    ],
)
def test_each_mistake_in_a_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Whole, written(tmp_path, text))
    assert sentence in str(error.value)


def test_all_problems_of_file_and_command_line_are_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "model: {name: small, widht: 3}\nsteps: many\n")
    with pytest.raises(ConfigError) as error:
        load(Whole, path, ["nonsense", "steps.x=1"])
    for part in ("'nonsense' is not key=value", "steps.x: steps is a single value", "model.widht", "steps: Input"):
        assert part in str(error.value)


def test_a_missing_file_names_the_nearest_shipped_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*davis_segflow\.yaml"):
        find("davis_segflw.yaml")


def test_a_config_named_without_a_folder_is_found_in_configs() -> None:
    assert find("davis_segflow.yaml").parent.name == "configs"


def test_a_section_never_changes() -> None:
    section = parse(Small, {"name": "small"})
    with pytest.raises(ValueError, match="frozen"):
        section.width = 5  # pyright: ignore[reportAttributeAccessIssue]
