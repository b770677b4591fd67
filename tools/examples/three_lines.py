"""Use L2-SP for models loaded by `from_pretrained`, with one more argument of the trainer.

    pip install transformers lightning trl peft datasets
    python tools/examples/three_lines.py

The examples train an image classifier and a LoRA with a head in the Trainer of transformers, a language model in TRL's
SFTTrainer, and a backbone in Lightning. Small models with random weights take the place of pretrained models: they are
saved and loaded again.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

STEPS, LR = 3, 1e-2
TINY: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2}


def arguments(folder: str, kind: Any = None, **options: Any) -> Any:
    """Return training arguments for a few steps on a CPU that write no files."""
    from transformers import TrainingArguments

    settings = {"output_dir": folder, "max_steps": STEPS, "learning_rate": LR, "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    return (kind or TrainingArguments)(**(settings | {"disable_tqdm": True, "max_grad_norm": 0.0} | options))


def vit(**options: Any) -> nn.Module:
    """Fine-tune a Vision Transformer with a new head in the Trainer."""
    from transformers import Trainer, ViTConfig, ViTForImageClassification, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(num_hidden_layers=2, intermediate_size=32, image_size=16, patch_size=8, **TINY)
    images: Any = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 3} for i in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
        torch.manual_seed(1)
        model = ViTForImageClassification.from_pretrained(folder, num_labels=3)
        Trainer(model, arguments(folder), train_dataset=images, **_made(model, options)).train()
    return model


def language_model(**options: Any) -> nn.Module:
    """Fine-tune a language model, whose head shares its weight with the embedding, in TRL's SFTTrainer."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "a", "b", "c", "d", "e", "f", "g"])}
    config = GPT2Config(vocab_size=len(words), n_positions=16, n_embd=16, n_layer=2, n_head=2, eos_token_id=1)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(config).save_pretrained(folder)
        model = GPT2LMHeadModel.from_pretrained(folder, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
        texts = Dataset.from_dict({"text": ["a b c d", "b c d e", "c d e f", "d e f g"] * 3})
        settings = arguments(folder, SFTConfig, max_length=8, bf16=False, gradient_checkpointing=False)
        SFTTrainer(model, args=settings, train_dataset=texts, processing_class=fast, **_made(model, options)).train()
    return model


def lora_and_head(**options: Any) -> nn.Module:
    """Adapt a classifier's attention by LoRA, and train all of its head with L2-SP to the pretrained weights."""
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    from transformers import Trainer, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(num_hidden_layers=1, intermediate_size=32, image_size=16, patch_size=8, **TINY)
    images: Any = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        ViTForImageClassification(config).save_pretrained(folder)
        model = ViTForImageClassification.from_pretrained(folder)
        queries = ["q_proj", "query"]  # the later name and the earlier one
        lora = LoraConfig(r=2, target_modules=queries, modules_to_save=["classifier"])
        torch.manual_seed(1)
        model = get_peft_model(model, lora)
        settings = arguments(folder, label_names=["labels"], remove_unused_columns=False)
        Trainer(model, settings, train_dataset=images, **_made(model, options)).train()
    return model


def backbone_in_lightning(**options: Any) -> nn.Module:
    """Fine-tune a DINOv2 backbone under a linear head in Lightning."""
    from lightning.pytorch import LightningModule, Trainer
    from transformers import Dinov2Config, Dinov2Model

    class Classifier(LightningModule):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone, self.head = backbone, nn.Linear(16, 2)

        def training_step(self, batch: Any, index: int) -> Tensor:
            features: Any = self.backbone(batch[0])
            return nn.functional.cross_entropy(self.head(features.last_hidden_state[:, 0]), batch[1])

        def configure_optimizers(self) -> Any:
            return _optimizer(self, options)

    torch.manual_seed(0)
    config = Dinov2Config(num_hidden_layers=1, mlp_ratio=2, image_size=14, patch_size=7, **TINY)
    pairs = torch.utils.data.TensorDataset(torch.randn(12, 3, 14, 14), torch.arange(12) % 2)
    with tempfile.TemporaryDirectory() as folder:
        Dinov2Model(config).save_pretrained(folder)
        module = Classifier(Dinov2Model.from_pretrained(folder))
        quiet = {"logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"}
        settings = {"max_steps": STEPS, "accelerator": "cpu", "default_root_dir": folder, **dict.fromkeys(quiet, False)}
        trainer = Trainer(callbacks=options.get("callbacks", []), **settings)
        trainer.fit(module, torch.utils.data.DataLoader(pairs, batch_size=4))
    return module


def _made(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a trainer: the callbacks and, if `make` is passed, the optimizer that it returns."""
    chosen = {"callbacks": options.get("callbacks", [])}
    return chosen | ({"optimizers": (_optimizer(model, options), None)} if "make" in options else {})


def _optimizer(model: nn.Module, options: dict[str, Any]) -> Any:
    make = options.get("make", lambda weights: torch.optim.AdamW(weights.values(), lr=LR, weight_decay=0.0))
    return make({name: weight for name, weight in model.named_parameters() if weight.requires_grad})


def main() -> None:
    """Run each example if the libraries that it needs are installed."""
    from mtsp.integrations import lightning, transformers

    for example in (vit, language_model, lora_and_head):
        print(example.__name__)
        example(callbacks=[transformers.L2SPCallback(alpha=0.01)])
    print(backbone_in_lightning.__name__)
    backbone_in_lightning(callbacks=[lightning.L2SPCallback(alpha=0.01)])


if __name__ == "__main__":
    main()
