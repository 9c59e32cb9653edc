"""A small language model of Hugging Face's form: dict batches, its own labels, perplexity."""

from __future__ import annotations

from pathlib import Path

from tests.first_hour.hour import answer, tried

MINE = '''
import torch
from transformers import GPT2Config, GPT2LMHeadModel

def part(n, seed):
    """Counting in steps of one or two, with a slip here and there."""
    made = torch.Generator().manual_seed(seed)
    step = torch.randint(1, 3, (n, 1), generator=made)
    start = torch.randint(10, (n, 1), generator=made)
    ids = (start + step * torch.arange(12)) % 10
    slips = torch.rand(n, 12, generator=made) < 0.05
    ids = torch.where(slips, torch.randint(10, (n, 12), generator=made), ids)
    return [{"input_ids": rows, "labels": rows} for rows in ids.split(64)]

def data(seed):
    return part(1000, 1), part(300, 2), part(800, 3)

def model(widths):
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=10, n_positions=12, n_embd=32, n_layer=1, n_head=4, n_inner=widths[0],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))
'''


def hour(folder: Path) -> None:
    """One command; the margin is of the perplexity, as a share of the original's."""
    (folder / "mine.py").write_text(MINE)
    printed = answer(folder, "run", "--data", "mine:data", "--model", "mine:model", "--hidden",
                     "128", "--slim-hidden", "32", "--how", "prune", "--epochs", "8",
                     "--slim-epochs", "4", "--lr", "0.01", "--null-draws", "3", "--margin", "0.03")
    assert "taken as language_modeling" in printed
    assert "perplexity" in printed


if __name__ == "__main__":
    tried(hour)
