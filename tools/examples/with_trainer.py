"""Use L2-SP in the `Trainer` of transformers: `pip install transformers`, `python tools/examples/with_trainer.py`.

A small BERT with random weights takes the place of a pretrained model, so that nothing is downloaded.
"""

import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from mtsp import anchors
from mtsp.integrations.transformers import L2SPCallback
from mtsp.regularizers import L2SP


def main(steps: int = 8) -> list[dict[str, float]]:
    """Fine-tune and return the log history of the Trainer."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config)  # in practice: from_pretrained("bert-base-uncased")
    words = torch.randint(0, 32, (32, 6))
    examples: Any = [{"input_ids": row, "labels": int(row[0]) % 2} for row in words]

    pretrained = [name for name, _ in model.named_parameters() if name.startswith("bert.")]
    regularizer = L2SP(model, anchors=anchors.capture(model, pretrained), alpha=10.0, beta=1.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.0,  # the regularizer decays the weights
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            logging_steps=2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=examples, callbacks=[L2SPCallback(regularizer)])
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    for line in main():
        print(line)
