"""A loss that is ten times the largest before it is a spike."""

from mtsp.training.spikes import FACTOR, WINDOW, Spikes


def test_a_loss_far_above_all_recent_ones_of_its_stage_is_a_spike() -> None:
    spikes = Spikes()
    assert [spikes.add("0", loss) for loss in (0.1, 0.3, 0.2, FACTOR * 0.3)] == [None] * 4
    assert spikes.add("1", 1e6) is None  # the first of another stage
    assert spikes.add("0", 31.0) == FACTOR * 0.3
    assert spikes.add("0", 300.0) is None  # the same rise goes on
    assert spikes.add("1", -5.0) is None


def test_only_the_last_losses_count_and_a_resumed_watch_sees_the_same() -> None:
    spikes, resumed = Spikes(), Spikes()
    spikes.add("0", 100.0)
    for _ in range(WINDOW):
        assert spikes.add("0", 1.0) is None
    resumed.losses = {stage: list(losses) for stage, losses in spikes.losses.items()}
    assert spikes.add("0", 11.0) == resumed.add("0", 11.0) == 1.0
