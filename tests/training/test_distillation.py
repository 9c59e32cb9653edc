"""The distillation loss against formulas written out, and what it does to training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from wua_mlflow.training.distillation import distillation_loss
from wua_mlflow.training.fit import Budget, fit


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_several_classes_and_amounts_by_hand():
    student, teacher = draw(6, 4, seed=1), draw(6, 4, seed=2)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    distance = 9 * (p * (p / q).log()).sum(1).mean()
    expected = 0.7 * functional.cross_entropy(student, targets) + 0.3 * distance
    loss = distillation_loss(functional.cross_entropy, "multiclass", "logits", share=0.3,
                             temperature=3)
    assert loss(student, (targets, teacher)).item() == pytest.approx(expected.item(), rel=1e-12)
    certain, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    loss = distillation_loss(functional.mse_loss, "multiclass", "probabilities", share=1.0)
    assert torch.isfinite(loss(certain, (torch.zeros(1, 2), wrong)))
    amounts = draw(6, 4, seed=3)
    loss = distillation_loss(functional.mse_loss, "regression", "values")
    expected = 0.5 * ((student - amounts) ** 2).mean() + 0.5 * ((student - teacher) ** 2).mean()
    assert loss(student, (amounts, teacher)).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_a_binary_output_is_two_classes(kind):
    student, teacher = draw(5, 1, seed=1), draw(5, 1, seed=2)
    heat = 2.0 if kind == "logits" else 1.0
    p, q = (teacher / heat).sigmoid(), (student / heat).sigmoid()
    distance = heat**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    outputs, aims = (student, teacher) if kind == "logits" else (q, p)
    loss = distillation_loss(functional.mse_loss, "binary", kind, share=1.0)  # type: ignore[arg-type]
    assert loss(outputs, (torch.zeros(5, 1), aims)).item() == pytest.approx(
        distance.item(), rel=1e-9)


def test_a_network_learns_the_teacher_where_the_targets_are_noise():
    """Batches keep inputs, targets and the teacher's outputs of a sample together."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    teacher = nn.Linear(3, 1)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        taught = teacher(inputs)
    noise = torch.randn(40, 1, generator=generator)
    student = nn.Linear(3, 1)
    aim = distillation_loss(functional.mse_loss, "regression", "values", share=1.0)
    data = inputs, (noise, taught)
    records = list(fit(student, data, aim, Budget(epochs=80, lr=0.05, batch_size=7),
                       generator=generator, validation=data))
    assert records[-1].validation_loss < 1e-3  # type: ignore[operator]
    assert torch.allclose(student.weight, teacher.weight, atol=0.02)
