"""L2-SP by one argument of a trainer: what from_pretrained loaded is anchored, and each step is that of a reference.

The reference is an AdamW that moves the weights itself, towards copies that are read from the model by name.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtsp.anchors import capture
from mtsp.integrations import l2sp_of_loaded, summary
from mtsp.regularizers import L2SP
from tools.examples import three_lines

ALPHA, BETA = 20.0, 5.0
"""At a learning rate of 0.01, a step takes 0.2 of a distance to an anchor, and 0.05 of a new weight."""


EPS = 1e-3
"""Biases of keys have no gradient but for rounding, which Adam would blow up to whole steps."""


def adamw(weights: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights.values(), lr=three_lines.LR, weight_decay=0.0, eps=EPS)


class Reference(torch.optim.AdamW):
    def __init__(self, weights: dict[str, nn.Parameter], new: Callable[[str], bool], skip: Callable[[str], bool]):
        super().__init__(weights.values(), lr=three_lines.LR, weight_decay=0.0, eps=EPS)
        matrices = {n: w for n, w in weights.items() if w.ndim > 1 and not skip(n)}
        self.starts = {n: torch.zeros_like(w) if new(n) else w.detach().clone() for n, w in matrices.items()}
        self.rates = {n: three_lines.LR * (BETA if new(n) else ALPHA) for n in matrices}
        self.weights = weights

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, start in self.starts.items():
            self.weights[name].lerp_(start.to(self.weights[name]), self.rates[name])
        super().step()
        return loss


def is_embedding(name: str) -> bool:
    return any(part in name for part in ("cls_token", "position_embeddings", "wpe", "mask_token", "lora_"))


EXAMPLES: dict[str, tuple[Any, str, Callable[[str], bool], str]] = {
    "vit": (three_lines.vit, "transformers", lambda n: n.startswith("classifier"), "13 weights anchored"),
    "lora": (three_lines.lora_and_head, "transformers", lambda n: False, "1 weights anchored"),
    "dinov2": (three_lines.backbone_in_lightning, "lightning", lambda n: n.startswith("head"), "7 weights anchored"),
    "language model": (three_lines.language_model, "transformers", lambda n: False, "9 weights anchored"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_a_reference_optimizer_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, library, new, told = EXAMPLES[name]
    pytest.importorskip(library, reason=f"needs {library}")
    for needed in {"lora": ["peft"], "language model": ["trl", "datasets"]}.get(name, []):
        pytest.importorskip(needed, reason=f"needs {needed}")
    module = __import__(f"mtsp.integrations.{library}", fromlist=["L2SPCallback"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = run(make=adamw)
        ours = run(make=adamw, callbacks=[module.L2SPCallback(alpha=ALPHA, beta=BETA)])
        reference = run(make=lambda weights: Reference(weights, new, is_embedding))
    assert told in capsys.readouterr().out
    far = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert far > 1e-3  # the pull matters
    for (which, one), two in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=which)


def loaded(model: nn.Module, *names: str) -> nn.Module:
    """Marked as from_pretrained of transformers 5 does."""
    for name, weight in model.named_parameters():
        if any(name.startswith(prefix) for prefix in names):
            weight._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
    return model


def network() -> nn.Module:
    return nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 2)})


def test_what_is_marked_is_anchored_and_the_rest_is_new() -> None:
    model = loaded(network(), "embed", "body")
    regularizer = l2sp_of_loaded(model, alpha=0.1, beta=0.2)
    assert {name: target.shared for name, target in regularizer.targets.items()} == {
        "body.weight": True,
        "head.weight": False,
    }
    told = "L2SP: 1 weights anchored (16), 1 weights new (8), 3 weights free (26); embeddings pulled: none"
    assert summary(regularizer) == told
    every = l2sp_of_loaded(model, alpha=0.1, beta=0.2, every=True)
    assert summary(every).endswith("embeddings pulled: embed")


def test_a_tied_embedding_is_pulled_once_and_told() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    regularizer = l2sp_of_loaded(loaded(model, "embed"), alpha=0.1)
    assert summary(regularizer) == (
        "L2SP: 1 weights anchored (20), 0 weights new (0), 0 weights free (0); embeddings pulled: embed"
    )


def test_models_of_other_libraries_want_to_hear_what_is_new() -> None:
    with pytest.raises(ValueError, match=r"nothing in ModuleDict is marked as loaded .* new=\['head'\] or new=\[\]"):
        l2sp_of_loaded(network(), alpha=0.1)
    with pytest.raises(ValueError, match="new='haed': no weight's name in ModuleDict begins with it"):
        l2sp_of_loaded(network(), alpha=0.1, new=["haed"])
    regularizer = l2sp_of_loaded(network(), alpha=0.1, new="head")
    assert [target.shared for target in regularizer.targets.values()] == [True, False]
    with pytest.raises(ValueError, match="no convolution or linear weight of ModuleDict is pretrained"):
        l2sp_of_loaded(network(), alpha=0.1, new=["body", "head"])


def test_a_callback_wants_one_of_a_regularizer_and_alpha() -> None:
    for library in ("transformers", "lightning"):
        pytest.importorskip(library, reason=f"needs {library}")
        callback = __import__(f"mtsp.integrations.{library}", fromlist=["L2SPCallback"]).L2SPCallback
        with pytest.raises(ValueError, match="give a regularizer, or alpha"):
            callback()
        with pytest.raises(ValueError, match="give a regularizer, or alpha"):
            callback(object(), alpha=0.1)


def test_a_resumed_trainer_compares_the_anchors(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    callbacks = __import__("mtsp.integrations.transformers", fromlist=["L2SPCallback"])

    class Model(nn.Module):
        def __init__(self, start: float) -> None:
            super().__init__()
            self.body = nn.Linear(2, 2, bias=False)
            nn.init.constant_(self.body.weight, start)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"loss": self.body(x).square().mean()}

    def train(start: float, steps: int, resume: bool) -> Any:
        settings = three_lines.arguments(str(tmp_path), max_steps=steps, save_strategy="steps", save_steps=2)
        data = [{"x": torch.tensor([float(i), 1.0]), "labels": 0} for i in range(16)]
        callback = callbacks.L2SPCallback(alpha=1.0)
        trainer = transformers.Trainer(loaded(Model(start), "body"), settings, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        return callback.regularizer

    train(3.0, 2, False)
    resumed = train(3.0, 4, True)
    assert torch.equal(resumed.targets["body.weight"].anchor, torch.full((2, 2), 3.0))
    with pytest.raises(ValueError, match="the checkpoint was trained with another anchors"):
        train(2.0, 6, True)


ADAPTERS = ["LoraConfig", "IA3Config", "LoHaConfig", "LoKrConfig", "OFTConfig", "BOFTConfig", "VeraConfig"]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_anchors_from_before_an_adapter_keep_their_names_and_only_the_head_is_pulled(kind: str) -> None:
    """A new head, trained in full: 1 - 0.1 * 0.5 = 0.95 of it is left, whatever adapter stands beside the body."""
    peft = pytest.importorskip("peft", reason="needs peft")
    model = network()
    anchors = capture(model, ["body.weight"])
    settings = {"IA3Config": {"feedforward_modules": []}, "OFTConfig": {"oft_block_size": 4, "r": 0}}.get(kind, {})
    config = getattr(peft, kind)(target_modules=["body"], modules_to_save=["head"], **settings)
    adapted = peft.get_peft_model(model, config)
    regularizer = L2SP(adapted, anchors=anchors, alpha=0.5, beta=0.5)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    regularizer.attach(optimizer := torch.optim.SGD(trained.values(), lr=0.1))
    starts = {name: weight.detach().clone() for name, weight in adapted.named_parameters()}
    for weight in trained.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in adapted.named_parameters():
        factor = 0.95 if "modules_to_save" in name and name.endswith("weight") else 1.0
        torch.testing.assert_close(weight.detach(), factor * starts[name], msg=name)


def test_an_adapter_alone_has_nothing_to_pull() -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    model = network()
    anchors = capture(model, ["body.weight"])
    adapted = peft.get_peft_model(model, peft.IA3Config(target_modules=["body"], feedforward_modules=[]))
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=r"trains 1 weights of the model, the first body\.ia3_l.* needs no pull"):
        L2SP(adapted, anchors=anchors, alpha=0.5, beta=0.5).attach(optimizer)


def test_capture_without_names_takes_every_matrix_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"all 2 convolution and linear weights are captured .* \['head\.weight'\]"):
        anchors = capture(network())
    assert list(anchors) == ["body.weight", "head.weight"]
