"""Schedules are functions of the step."""

from typing import Any

import pytest

from mtsp.config import ConfigError, parse
from mtsp.optim.schedule import ScheduleConfig


def test_poly_falls_as_written() -> None:
    schedule = ScheduleConfig(name="poly", power=0.9)
    assert schedule.lr_factor(0, 100) == 1.0
    assert schedule.lr_factor(75, 100) == pytest.approx(0.25**0.9)
    assert schedule.lr_factor(100, 100) == 0.0


def test_step_halves_every_so_many_steps_or_at_milestones() -> None:
    every = ScheduleConfig(name="step", every=50, factor=0.5)
    assert [every.lr_factor(s, 200) for s in (0, 49, 50, 149, 150)] == [1.0, 1.0, 0.5, 0.25, 0.125]
    milestones = ScheduleConfig(name="step", milestones=(10, 30), factor=0.1)
    assert [milestones.lr_factor(s, 200) for s in (9, 10, 29, 30)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_cosine_is_at_half_in_the_middle_and_ends_at_its_final_share() -> None:
    schedule = ScheduleConfig(name="cosine", final=0.2)
    assert schedule.lr_factor(50, 100) == pytest.approx(0.6)
    assert schedule.lr_factor(100, 100) == pytest.approx(0.2)


def test_warmup_rises_linearly_to_the_full_rate() -> None:
    schedule = ScheduleConfig(name="constant", warmup=4)
    assert [schedule.lr_factor(s, 100) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_step_schedule_that_does_not_say_when_is_refused() -> None:
    with pytest.raises(ConfigError, match="a step schedule needs exactly one of `every` and `milestones`"):
        parse(ScheduleConfig, {"name": "step"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"every": 100, "factor": 0.5},
            "`every` does nothing in a constant schedule; leave it out, or set `name: step`",
        ),
        ({"name": "cosine", "milestones": [10]}, "`milestones` does nothing in a cosine schedule; .* `name: step`"),
        ({"name": "poly", "factor": 0.1}, "`factor` does nothing in a poly schedule; .* `name: step`"),
        ({"name": "cosine", "power": 2.0}, "`power` does nothing in a cosine schedule; .* `name: poly`"),
        ({"final": 0.1}, "`final` does nothing in a constant schedule; .* `name: poly` or `name: cosine`"),
    ],
)
def test_a_field_that_the_schedule_does_not_use_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(ScheduleConfig, values)


@pytest.mark.parametrize(
    "values", [{}, {"name": "step", "every": 9}, {"name": "poly"}, {"name": "cosine", "final": 0.1}]
)
def test_a_resolved_schedule_which_has_every_default_is_read_again(values: dict[str, Any]) -> None:
    schedule = parse(ScheduleConfig, values)
    assert parse(ScheduleConfig, schedule.model_dump(mode="json")) == schedule


def test_a_milestone_before_the_first_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"milestones\.0"):
        parse(ScheduleConfig, {"name": "step", "milestones": [-5]})
