"""The regularizer in the loops of transformers and Lightning: one exact pull for each step; and the examples run."""

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.regularizers import L2SP
from tools.examples import plain_loop

ROOT = Path(__file__).resolve().parents[3]
LR, ALPHA, BETA = 0.1, 2.0, 0.5


class Silent(nn.Module):
    """A backbone at 3 with an anchor at 1, a head at 4, and a loss whose gradient is zero: only the pull moves them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.backbone.weight, 3.0)
        nn.init.constant_(self.head.weight, 4.0)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": 0 * self.head(self.backbone(x)).sum()}

    def regularizer(self) -> L2SP:
        anchors = {"backbone.weight": torch.ones(2, 2)}
        return L2SP(self, anchors=anchors, alpha=ALPHA, beta=BETA)

    def sgd(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.parameters(), lr=LR)

    def assert_pulled(self, steps: int) -> None:
        """Each step leaves 1 - 0.1 * 2 = 0.8 of the backbone's distance 2, and 1 - 0.1 * 0.5 = 0.95 of the head."""
        torch.testing.assert_close(self.backbone.weight.data, torch.full((2, 2), 1 + 2 * 0.8**steps))
        torch.testing.assert_close(self.head.weight.data, torch.full((2, 2), 4 * 0.95**steps))


class Loud(Silent):
    """The same with a loss whose gradient is 2 in each weight.

    The backbone is 2, 1.4, 0.92, 0.536 from its anchor before the first four steps and 0.2288 after: each takes away
    0.1 * (2 + 2 * distance). The head is at 4 and 3.6 before the first two: 0.1 * (2 + 0.5 * value).
    """

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": 2 * (self.backbone.weight.sum() + self.head.weight.sum()) + 0 * x.sum()}


BRANCHES = ("backbone", "head")


# transformers


def trainer_of(model: nn.Module, folder: Path, callback: Any, optimizer: Any = None, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**(settings | options)),
        train_dataset=[{"x": torch.tensor([float(i), 1.0]), "labels": i % 2} for i in range(64)],
        optimizers=(optimizer, None),
        callbacks=[callback],
    )


def trainer_callback(regularizer: L2SP, **options: Any) -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from mtsp.integrations.transformers import L2SPCallback

    return L2SPCallback(regularizer, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 4},  # a penalty in compute_loss would be four times as strong
        {"max_grad_norm": 1e-3},  # a penalty in the loss would be clipped away
        {"bf16": True},
    ],
    ids=str,
)
def test_the_trainer_pulls_once_each_step(options: dict[str, Any], tmp_path: Path) -> None:
    model = Silent()
    trainer_of(model, tmp_path, trainer_callback(model.regularizer()), model.sgd(), **options).train()
    model.assert_pulled(steps=3)


def test_the_trainers_log_has_penalty_and_distance(tmp_path: Path) -> None:
    model = Silent()
    trainer = trainer_of(model, tmp_path, trainer_callback(model.regularizer()), model.sgd(), max_steps=1)
    trainer.train()
    # After a step backbone 2.6 and head 3.8: 4 * (2/2 * 1.6^2 + 0.5/2 * 3.8^2) = 24.68; distance 1.6 of 1.
    line = trainer.state.log_history[0]
    assert line["penalty"] == pytest.approx(24.68, rel=1e-5)
    assert line["distance"] == pytest.approx(1.6, rel=1e-5)


def test_after_training_the_trainers_optimizer_is_free_and_can_train_again(tmp_path: Path) -> None:
    model = Silent()
    trainer = trainer_of(model, tmp_path, trainer_callback(model.regularizer()), model.sgd())
    trainer.train()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    trainer.optimizer.step()
    model.assert_pulled(steps=3)
    trainer.train()
    model.assert_pulled(steps=6)


def test_a_weight_decay_of_the_trainer_is_refused(tmp_path: Path) -> None:
    model = Silent()
    trainer = trainer_of(model, tmp_path, trainer_callback(model.regularizer()), weight_decay=0.01)
    with pytest.raises(ValueError, match=r"weight_decay=0\.01 and this regularizer"):
        trainer.train()


def test_a_resumed_training_is_pulled_to_the_first_start(tmp_path: Path) -> None:
    def trained(steps: int, resume: bool) -> Silent:
        model = Silent()
        trainer = trainer_of(
            model, tmp_path, trainer_callback(model.regularizer()), model.sgd(),
            max_steps=steps, save_strategy="steps", save_steps=2,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume or None)
        return model

    trained(steps=2, resume=False)
    trained(steps=4, resume=True).assert_pulled(steps=4)


def test_the_trainers_log_has_the_branches_that_were_asked_for(tmp_path: Path) -> None:
    model = Loud()
    callback = trainer_callback(model.regularizer(), branches=BRANCHES)
    trainer = trainer_of(model, tmp_path, callback, model.sgd(), max_steps=2, logging_steps=2, max_grad_norm=0)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["step"] == 2
    assert line["distance/backbone"] == pytest.approx(0.92)  # after the step, of an anchor of 1
    assert line["pull_to_gradient/backbone"] == pytest.approx(2 * 1.4 / 2)  # in the step that is logged
    assert line["pull_to_gradient/head"] == pytest.approx(0.5 * 3.6 / 2)
    assert (line["time_constant/backbone"], line["time_constant/head"]) == pytest.approx((1 / 0.2, 1 / 0.05))
    assert "distance/head" not in line  # which has no anchor


def test_a_resumed_training_logs_what_the_whole_one_logs(tmp_path: Path) -> None:
    def trained(folder: str, steps: int, resume: bool = False) -> dict[str, float]:
        model = Loud()
        trainer = trainer_of(
            model, tmp_path / folder, trainer_callback(model.regularizer(), branches=["backbone"]), model.sgd(),
            max_steps=steps, logging_steps=4, save_strategy="steps", save_steps=2, max_grad_norm=0,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer.state.log_history[0]

    whole = trained("whole", 4)
    assert whole["pull_to_gradient/backbone"] == pytest.approx(0.536)
    trained("parts", 2)
    again = trained("parts", 4, resume=True)
    assert {key: again[key] for key in whole if "/" in key} == {key: whole[key] for key in whole if "/" in key}


def test_where_the_trainer_logs_epochs_their_first_step_is_measured(tmp_path: Path) -> None:
    model = Loud()
    callback = trainer_callback(model.regularizer(), branches=["backbone"])
    options: dict[str, Any] = {"logging_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1, "max_grad_norm": 0}
    trainer = trainer_of(model, tmp_path, callback, model.sgd(), per_device_train_batch_size=64, **options)
    trainer.train()
    found = [line["pull_to_gradient/backbone"] for line in trainer.state.log_history[:2]]
    assert found == pytest.approx([2.0, 1.4])  # of one step each


def test_a_branch_that_is_not_there_is_refused_at_once() -> None:
    regularizer = Silent().regularizer()
    with pytest.raises(
        ValueError, match=r"'backbones': no regularized weight's name .* of Silent, whose first weight is backbone\."
    ):
        trainer_callback(regularizer, branches=("head", "backbones"))
    assert trainer_callback(regularizer, branches="head").branches == ("head",)


# Lightning


def fitted(model: Silent, manual: bool = False, branches: tuple[str, ...] = (), **options: Any) -> Any:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from mtsp.integrations.lightning import L2SPCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            self.automatic_optimization = not manual

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = model(batch[0])["loss"]
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return model.sgd()

    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [L2SPCallback(model.regularizer(), branches=branches)],
    }
    trainer = lightning.Trainer(**(settings | options))
    data = torch.utils.data.TensorDataset(torch.ones(12, 2))
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=1))
    return trainer


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 12),  # automatic optimization computes the gradient in a closure, inside the step
        ({"accumulate_grad_batches": 4}, 3),
        ({"gradient_clip_val": 1e-3}, 12),
        ({"precision": "bf16-mixed"}, 12),
        ({"manual": True}, 12),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_lightning_pulls_once_each_step(options: dict[str, Any], steps: int) -> None:
    model = Silent()
    fitted(model, **options)
    model.assert_pulled(steps)


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_penalty_and_distance_and_frees_the_optimizer() -> None:
    model = Silent()
    trainer = fitted(model, limit_train_batches=1)
    assert float(trainer.callback_metrics["penalty"]) == pytest.approx(24.68, rel=1e-5)  # as above
    assert float(trainer.callback_metrics["distance"]) == pytest.approx(1.6, rel=1e-5)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    trainer.optimizers[0].step()
    model.assert_pulled(steps=1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_the_branches_that_were_asked_for() -> None:
    found = fitted(Loud(), branches=BRANCHES, max_epochs=2, limit_train_batches=1).callback_metrics
    numbers = {name: float(value) for name, value in found.items() if "/" in name}
    assert numbers == pytest.approx(
        {
            "distance/backbone": 0.92,
            "pull_to_gradient/backbone": 1.4,  # of the second epoch's first step
            "time_constant/backbone": 5.0,
            "pull_to_gradient/head": 0.9,
            "time_constant/head": 20.0,
        }
    )


def test_several_optimizers_want_a_choice() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from mtsp.integrations.lightning import L2SPCallback

    class Two:
        def __init__(self, model: Silent) -> None:
            self.optimizers = [torch.optim.SGD([weight], lr=LR) for weight in model.parameters()]

    model = Silent()
    loop, regularizer = Two(model), model.regularizer()
    with pytest.raises(ValueError, match="has 2 optimizers; choose one"):
        L2SPCallback(regularizer).on_train_start(loop, None)
    with pytest.raises(ValueError, match="optimizer=2, but the module has 2"):
        L2SPCallback(regularizer, optimizer=2).on_train_start(loop, None)
    L2SPCallback(regularizer, optimizer=1).on_train_start(loop, None)
    for weight, optimizer in zip(model.parameters(), loop.optimizers, strict=True):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert model.backbone.weight.unique().item() == 3.0
    assert model.head.weight.unique().item() == pytest.approx(3.8)


# What is not installed, and the examples


@pytest.mark.parametrize(
    ("module", "library"),
    [("mtsp.integrations.transformers", "transformers"), ("mtsp.integrations.lightning", "lightning")],
)
def test_a_missing_library_is_named(module: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.pytorch", None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=f"pip install {library}"):
        importlib.import_module(module)


def test_the_plain_loop_needs_torch_and_the_regularizer_alone() -> None:
    tree = ast.parse((ROOT / "tools/examples/plain_loop.py").read_text())
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"torch", "mtsp.regularizers"}
    body = inspect.getsource(plain_loop.main).partition("    anchors = ")[2].partition("\n\n")[0]
    assert len(body.splitlines()) == 10


def test_the_plain_loop_is_what_a_term_in_the_loss_gives() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 16), nn.Linear(16, 3)
    images, labels = torch.randn(64, 8), torch.randint(0, 3, (64,))
    start = first.weight.detach().clone()
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1, momentum=0.9)
    for step in range(60):
        rows = range(16 * (step % 4), 16 * (step % 4) + 16)
        data = nn.functional.cross_entropy(second(first(images[rows]).relu()), labels[rows])
        penalty = 0.1 / 2 * (first.weight - start).square().sum() + 0.01 / 2 * second.weight.square().sum()
        optimizer.zero_grad()
        (data + penalty).backward()
        optimizer.step()
    found = plain_loop.main()
    loss = nn.functional.cross_entropy(second(first(images).relu()), labels)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-3)
    assert found["0"] == pytest.approx(((first.weight - start).norm() / start.norm()).item(), rel=1e-3)


def test_the_trainer_example_runs() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tools.examples import with_trainer

    lines = [line for line in with_trainer.main(steps=4) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line["penalty"] > 0 and 0 < line["distance"] < 1 for line in lines)


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_example_runs() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from tools.examples import with_lightning

    found = with_lightning.main(epochs=2)
    assert found["penalty"] > 0
    assert 0 < found["distance"] < 1


def test_no_example_hides_the_library_that_it_imports() -> None:
    # As a script its own folder comes first on the path: `import lightning` would find a lightning.py there.
    names = {path.stem for path in (ROOT / "tools/examples").glob("*.py")}
    assert names == {"plain_loop", "three_lines", "with_trainer", "with_lightning"}
