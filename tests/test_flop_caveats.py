"""The products of a mixture's experts, by hand; and what a count says that it leaves out."""

from __future__ import annotations

import pytest
import torch

from tests.example_modules import Apply
from wua_mlflow.flops import count_flops

zeros = torch.zeros


@pytest.mark.parametrize(("a", "b", "rows"), [
    ((24, 16), (3, 16, 8), (24, 16, 8)), ((3, 24, 16), (3, 16, 8), (3 * 24, 16, 8)),
    ((24, 48), (48, 8), (24, 48, 8)), ((3, 24, 16), (16, 24), (24, 16, 24))])
def test_the_experts_of_a_mixture(a: tuple, b: tuple, rows: tuple[int, int, int]) -> None:
    """Of groups of rows or of columns: each row meets the matrix of its own group alone."""
    offs = torch.tensor([8, 16, 24], dtype=torch.int32)
    if a == (24, 48):
        offs = torch.tensor([16, 32, 48], dtype=torch.int32)
    options = {} if len(a) == len(b) == 3 else {"offs": offs}
    count = count_flops(Apply(lambda x, y: torch._grouped_mm(x, y, **options)),
                        (zeros(*a, dtype=torch.bfloat16), zeros(*b, dtype=torch.bfloat16)),
                        backward=False)
    assert (count.forward_flops, count.caveats) == (2 * rows[0] * rows[1] * rows[2], ())


def test_what_has_no_formula_is_said_in_a_line() -> None:
    count = count_flops(Apply(lambda x: torch.fft.fft(torch.fft.fft(x))), zeros(4, 8))
    assert count.caveats == ("FLOPs are a lower bound: no formula for aten._fft_r2c (1 calls), "
                             "aten._fft_c2c (1 calls)",)
