"""Sentences of different lengths for a small BERT: dict batches, padded by a collate function."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

def rows(n, seed):
    """Is word 3 among the words?"""
    made = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(2, 14, (int(torch.randint(4, 11, (), generator=made)),), generator=made)
        yield {"input_ids": ids, "labels": int((ids == 3).any())}

def padded(batch):
    ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in batch], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([row["labels"] for row in batch])}

def data(seed):
    return [DataLoader(list(rows(n, number)), batch_size=64, shuffle=not number, collate_fn=padded)
            for number, n in enumerate((800, 200, 600))]

def model(widths):
    return BertForSequenceClassification(BertConfig(
        vocab_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=widths[0], max_position_embeddings=12, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
'''


def hour(folder: Path) -> None:
    """One command: the feed-forward units are cut, and what is left is fine-tuned."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--model", "mine:model", "--hidden",
                     "64", "--how", "prune", "--slim-hidden", "16", "--epochs", "12",
                     "--slim-epochs", "3", "--null-draws", "3")
    assert "fewer FLOPs" in printed


if __name__ == "__main__":
    tried(hour)
