"""The Fisher information against numbers worked out by hand and against a loop that shares no code with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.fisher.estimate import FisherSum, diagonal_fisher, load_fisher, mean_one, save_fisher


def softmax_model(weight: list[list[float]]) -> nn.Sequential:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return nn.Sequential(layer)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(3, 4),
    )


def dense_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 1))


def images(count: int, size: int = 5) -> Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(1))


def one_class_at_a_time(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The definition, written out: for every image, class and pixel the squared gradient of log f, weighted by f."""
    model.eval()
    total = {n: torch.zeros_like(w) for n, w in model.named_parameters() if w.ndim > 1}
    observations = 0
    for image in x:
        log_f = model(image[None]).log_softmax(1)
        log_f = log_f.reshape(1, log_f.shape[1], -1)
        observations += log_f.shape[2]
        for k in range(log_f.shape[1]):
            for p in range(log_f.shape[2]):
                model.zero_grad()
                log_f[0, k, p].backward(retain_graph=True)
                for name, weight in model.named_parameters():
                    if name in total:
                        assert weight.grad is not None
                        total[name] += log_f[0, k, p].exp().detach() * weight.grad**2
    return {name: value / observations for name, value in total.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance * 10, atol=tolerance)


def test_the_exact_fisher_of_a_linear_softmax_model_is_variance_times_squared_input() -> None:
    # Logits (log 3, 0) for x = (1, 0): f = (3/4, 1/4). d log f_k / d w_cj = ([k = c] - f_c) x_j, so that
    # F_cj = x_j^2 sum_k f_k ([k = c] - f_c)^2 = x_j^2 f_c (1 - f_c) = 3/16 for both classes of the first input.
    # For x = (0, 2) all logits are zero: F = 4 * 1/4 = 1 of the second input. The mean over two samples halves both.
    model = softmax_model([[torch.tensor(3.0).log().item(), 0.0], [0.0, 0.0]])
    found = diagonal_fisher(model, [torch.tensor([[1.0, 0.0], [0.0, 2.0]])], normalize=False)
    torch.testing.assert_close(found["0.weight"], torch.tensor([[3 / 32, 1 / 2], [3 / 32, 1 / 2]]))


def test_the_empirical_fisher_takes_the_datas_labels() -> None:
    # The same model and x = (1, 0), label 1: (0 - 3/4)^2 and (1 - 1/4)^2 of the first input.
    model = softmax_model([[torch.tensor(3.0).log().item(), 0.0], [0.0, 0.0]])
    batch = (torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    found = diagonal_fisher(model, [batch], labels="empirical", normalize=False)
    torch.testing.assert_close(found["0.weight"], torch.tensor([[9 / 16, 0.0], [9 / 16, 0.0]]))


def test_each_gradient_is_squared_by_itself_not_their_mean() -> None:
    # Two samples x = 1 with labels 0 and 1 where f = (1/2, 1/2): the gradients +-1/2 cancel in a mean, whose square
    # is 0. Squared one by one they give 1/4.
    model = softmax_model([[0.0], [0.0]])
    found = diagonal_fisher(model, [(torch.ones(2, 1), torch.tensor([0, 1]))], labels="empirical", normalize=False)
    torch.testing.assert_close(found["0.weight"], torch.full((2, 1), 0.25))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_it_is_the_definition_whatever_the_chunks(vectorize: bool, chunk: int) -> None:
    x = images(4)
    found = diagonal_fisher(network(), [x], normalize=False, chunk=chunk, vectorize=vectorize)
    assert_same(found, one_class_at_a_time(network(), x))


@pytest.mark.parametrize("vectorize", [True, False])
def test_a_pixel_is_an_observation_of_dense_logits(vectorize: bool) -> None:
    x = images(2, size=3)
    found = diagonal_fisher(dense_network(), [x], normalize=False, vectorize=vectorize)
    assert_same(found, one_class_at_a_time(dense_network(), x))


def test_the_batch_size_does_not_matter() -> None:
    x = images(6)
    assert_same(diagonal_fisher(network(), [x]), diagonal_fisher(network(), x.split(1)), 1e-7)
    assert_same(diagonal_fisher(network(), [x]), diagonal_fisher(network(), [x[:4], x[4:]]), 1e-7)


def test_sampled_labels_estimate_the_exact_value() -> None:
    # One weight, f = (3/4, 1/4), x = 1: squared gradients of class 0's weight are 1/16 with chance 3/4 and 9/16 with
    # chance 1/4; mean 3/16, standard deviation sqrt(3)/8 = 0.217, of 20000 draws 0.0015. Four of those are allowed.
    model = softmax_model([[torch.tensor(3.0).log().item()], [0.0]])
    generator = torch.Generator().manual_seed(0)
    found = diagonal_fisher(
        model, [torch.ones(200, 1)], labels="sampled", draws=100, normalize=False, generator=generator
    )
    assert found["0.weight"][0, 0].item() == pytest.approx(3 / 16, abs=0.006)


def test_sampled_labels_of_all_pixels_at_once_estimate_the_sum_over_pixels() -> None:
    # The cross terms of two pixels have mean zero only if the pixels' labels are drawn independently.
    x = images(1, size=3)
    exact = diagonal_fisher(dense_network(), [x], normalize=False)
    generator = torch.Generator().manual_seed(0)
    drawn = diagonal_fisher(
        dense_network(), [x], labels="sampled", draws=4000, normalize=False, chunk=500, generator=generator
    )
    for name, value in exact.items():
        assert float((drawn[name] - value).norm() / value.norm()) < 0.05


def test_the_same_generator_draws_the_same() -> None:
    x = images(3)
    one, other = (
        diagonal_fisher(network(), [x], labels="sampled", generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_empirical_fisher_of_pixels_squares_the_gradient_of_the_images_sum() -> None:
    x, labels = images(2, size=3), torch.randint(0, 4, (2, 3, 3), generator=torch.Generator().manual_seed(2))
    labels[0, 0] = 255
    model = dense_network()
    expected = {name: torch.zeros_like(w) for name, w in model.named_parameters() if w.ndim > 1}
    for i in range(2):
        model.zero_grad()
        nn.functional.cross_entropy(
            model(x[i : i + 1]), labels[i : i + 1], ignore_index=255, reduction="sum"
        ).backward()
        for name, weight in model.named_parameters():
            if name in expected:
                assert weight.grad is not None
                expected[name] += weight.grad**2 / 15  # 18 pixels, three of them unknown
    assert_same(diagonal_fisher(model, [(x, labels)], labels="empirical", normalize=False), expected)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_unknown_pixels_do_not_count(kind: Any) -> None:
    # A 1x1 convolution: what its unknown half sees must not matter.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1))
    x, mask = images(1, size=4), torch.zeros(1, 4, 4, dtype=torch.long)
    mask[:, :, 2:] = 255
    other = x.clone()
    other[..., 2:] = 7.0
    one, two = (
        diagonal_fisher(model, [(v, mask)], labels=kind, normalize=False, generator=torch.Generator().manual_seed(3))
        for v in (x, other)
    )
    if kind == "exact":
        assert_same(one, two, 1e-8)
        assert_same(one, diagonal_fisher(model, [x[..., :2]], normalize=False), 1e-7)
    else:  # the draws of the known pixels differ, as those of the unknown ones do
        assert float(two["0.weight"].max()) < 49 / 8  # 7^2 times the largest variance 1/4, were they to count


def test_a_label_255_of_a_classification_is_a_class() -> None:
    model = softmax_model([[0.0]] * 300)
    found = diagonal_fisher(model, [(torch.ones(1, 1), torch.tensor([255]))], labels="empirical", normalize=False)
    assert found["0.weight"][255].item() == pytest.approx((1 - 1 / 300) ** 2)


def test_the_mean_over_all_entries_of_all_tensors_is_one() -> None:
    found = diagonal_fisher(network(), [images(3)])
    flat = torch.cat([value.flatten() for value in found.values()])
    assert not any(value.requires_grad for value in found.values())
    assert found.keys() == {"0.weight", "6.weight"}  # neither biases nor the normalization layer
    assert flat.mean().item() == pytest.approx(1.0, abs=1e-6)
    # By hand: tensors (1, 3) and (2, 2, 2) have the mean 10 / 5 = 2, not the mean of means 2 and 2.
    scaled = mean_one({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0, 1.0, 1.0])})
    assert scaled["a"].tolist() == [0.5, 2.5]
    assert scaled["b"].tolist() == [1.0, 0.5, 0.5]


def test_the_model_is_left_as_it_was() -> None:
    model = network().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagonal_fisher(model, [images(3)])
    assert model.training
    assert model[5].training
    assert not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


class Branching(nn.Module):
    """Control flow on a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else self.layer(-2 * x)


def test_a_model_that_vmap_cannot_take_is_looped_over_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = Branching(), torch.tensor([[1.0, 2.0], [-1.0, -3.0], [0.5, 0.1]])
    with caplog.at_level("INFO", logger="mtsp"):
        found = diagonal_fisher(model, x.split(1), normalize=False)
    assert "sample by sample" in caplog.text
    assert_same(found, one_class_at_a_time(model, x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, input_ids: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"logits": scale * self.second(self.first(input_ids).tanh())}


def test_a_tied_weight_is_named_once_and_has_the_gradient_of_both_places() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(3, 3)
    found = diagonal_fisher(model, [{"input_ids": x, "labels": torch.zeros(3)}], normalize=False)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied = model

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(x)["logits"]

    assert_same({f"tied.{name}": value for name, value in found.items()}, one_class_at_a_time(Bare(), x))


def test_the_batch_and_output_may_be_anything() -> None:
    model, x = dense_network(), images(2, size=3)

    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, frame: Tensor, next_frame: Tensor | None) -> dict[str, Tensor]:
            return {"mask_logits": self.net(frame)}

    found = diagonal_fisher(
        Project(),
        [{"name": ["a", "b"], "frame": x, "mask": torch.zeros(2, 3, 3, dtype=torch.long)}],
        inputs=lambda batch: (batch["frame"], None),
        logits=lambda outputs: outputs["mask_logits"],
        targets=lambda batch: batch["mask"],
    )
    assert_same({name.removeprefix("net."): value for name, value in found.items()}, diagonal_fisher(model, [x]))


def test_other_weights_may_be_named() -> None:
    x = images(2)
    assert diagonal_fisher(network(), [x], names=["6.bias"]).keys() == {"6.bias"}
    with pytest.raises(ValueError, match=r"no parameter '6\.wieght'; its parameters are named like '0\.weight'"):
        diagonal_fisher(network(), [x], names=["6.wieght"])


def test_half_precision_is_squared_in_float32() -> None:
    # Gradients of about 1e-4 have squares of 1e-8, which float16 has not.
    model = softmax_model([[0.0], [0.0]]).half()
    found = diagonal_fisher(model, [torch.full((1, 1), 2e-4, dtype=torch.float16)], normalize=False)["0.weight"]
    assert found.dtype == torch.float32
    assert found[0, 0].item() == pytest.approx(1e-8, rel=0.01)  # (2e-4)^2 / 4


def test_progress_is_told_after_each_batch() -> None:
    told: list[int] = []
    diagonal_fisher(network(), images(5).split(2), progress=told.append)
    assert told == [2, 4, 5]


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "none of the 0 samples"),
        ([images(1)], {"labels": "empirical"}, "empirical needs labels"),
        ([(images(2), torch.tensor([0, 4]))], {"labels": "empirical"}, "labels 0 to 4 do not fit 4 logits"),
        ([(images(2), torch.tensor([0]))], {"labels": "empirical"}, "1 labels for logits of 2 x 1"),
        ([images(1)], {"chunk": 0}, "chunk and draws must be at least 1"),
        ([images(1)], {"logits": lambda output: output[0]}, "got (4,); select them with `logits`"),
        (
            [images(1)],
            {"logits": lambda output: 0 * output, "labels": "exact"},
            "mean 0.0 and cannot be normal",
        ),
    ],
)
def test_what_gives_no_fisher_is_said(batches: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".*") as error:
        diagonal_fisher(network(), batches, **options)
    assert message in str(error.value)


def test_a_model_without_logits_is_told_what_to_say() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    with pytest.raises(ValueError, match="returns a tuple without `logits`; select them"):
        diagonal_fisher(Pair(), [torch.ones(1, 2)])


def test_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    found = diagonal_fisher(network(), [images(2)])
    save_fisher(tmp_path / "fisher.safetensors", found, labels="exact")
    loaded = load_fisher(tmp_path / "fisher.safetensors")
    assert loaded.keys() == found.keys()
    assert all(torch.equal(loaded[name], value) for name, value in found.items())


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"0.weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(FileNotFoundError, match="or write it with save_fisher"):
        load_fisher(tmp_path / "none")
    with pytest.raises(ValueError, match=r"weights\.safetensors does not hold Fisher information"):
        load_fisher(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="text cannot be read"):
        load_fisher(tmp_path / "text")


def test_other_labels_than_the_three_are_refused() -> None:
    labels: Any = "Exact"
    with pytest.raises(ValueError, match="labels must be exact, sampled, empirical, got 'Exact'"):
        diagonal_fisher(nn.Linear(2, 2), [torch.ones(1, 2)], labels=labels)


@pytest.mark.parametrize("normalize", [False, True])
def test_values_that_are_not_finite_are_refused(normalize: bool) -> None:
    with pytest.raises(ValueError, match="the Fisher information of weight has values that are NaN"):
        diagonal_fisher(nn.Linear(2, 2), [torch.full((1, 2), float("nan"))], normalize=normalize)


def test_sums_of_other_weights_are_refused_and_nothing_of_them_is_taken() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    sums, other = FisherSum(ours), FisherSum(theirs)
    sums.add(torch.ones(4, 3))
    before = sums.fisher()
    with pytest.raises(ValueError, match=r"weight is of shape \(5, 3\) in them, of shape \(2, 3\) in this model"):
        sums.load_state_dict(FisherSum(nn.Linear(3, 5)).state_dict())
    with pytest.raises(ValueError, match=r"belong to other weights: weight is not there in them, of shape \(2, 3\) in"):
        sums.load_state_dict(other.state_dict())
    more = {**sums.state_dict(), "total.extra": torch.ones(1)}
    with pytest.raises(ValueError, match=r"extra is of shape \(1,\) in them, not there in this model"):
        sums.load_state_dict(more)
    assert sums.samples == 4
    assert torch.equal(sums.fisher()["weight"], before["weight"])
