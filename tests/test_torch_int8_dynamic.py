"""8-bit codes times 8-bit codes, computed on the page, and what shares them."""

from __future__ import annotations

from types import SimpleNamespace

import executed
import pytest
import torch
from torch import nn

from bitsweep import engines
from bitsweep.activations import InputQuantizer
from bitsweep.engines import registry
from bitsweep.engines.layerwise import share_inputs
from bitsweep.engines.torch_int8_dynamic import Inputs, Int8DynamicLinear, TorchInt8Dynamic
from bitsweep.linear import QuantLinear
from bitsweep.spec import InputSpec, QuantSpec
from bitsweep.tensor import QuantTensor


def layer(rows: int, columns: int, inputs: InputSpec, spec: QuantSpec = executed.W8) -> QuantLinear:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator) + 0.5
    made = QuantLinear(QuantTensor.quantize(weight, spec), None, torch.float32)
    made.input_quantizer = InputQuantizer(inputs)
    return made


def test_two_numbers_by_hand() -> None:
    """x = (1, -0.5) on the grid of 2/255: codes round(127.5) = 128, cut to 127, and round(-63.75).

    Weights 3 and -2 with scale 1: 2/255 * (3 * 127 + 2 * 64) = 2/255 * 509.
    """
    weight = QuantTensor(
        torch.tensor([[131, 126]], dtype=torch.uint8),
        {"scale": torch.ones(1, 1)},
        executed.W8_SYM,
    )
    packed = Int8DynamicLinear(weight, None, Inputs(executed.int8(symmetric=True)))
    y = packed(torch.tensor([[1.0, -0.5]], dtype=torch.bfloat16))
    assert y.item() == torch.tensor(2 / 255 * 509).to(torch.bfloat16).item()


@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_inputs_are_the_fake_quantizers_to_the_last_bit(symmetric: bool, per: str) -> None:
    spec = executed.int8(symmetric, per)
    x = torch.randn(700, 400).to(torch.bfloat16) * torch.logspace(-8, 2, 700).unsqueeze(1)
    codes, scale, zero = Inputs(spec).of(x.to(torch.bfloat16))
    values = (codes.float() - (0 if zero is None else zero)) * scale
    assert torch.equal(values, InputQuantizer(spec)(x.to(torch.bfloat16).float()))


def test_largest_codes_do_not_overflow() -> None:
    """4096 products of 127 * 127: three of them are over 2^15 already."""
    weight = QuantTensor(
        torch.full((16, 4096), 255, dtype=torch.uint8),
        {"scale": torch.ones(16, 1)},
        executed.W8_SYM,
    )
    packed = Int8DynamicLinear(weight, None, Inputs(executed.int8(symmetric=True)))
    y = packed(torch.full((3, 4096), 1.0, dtype=torch.bfloat16))
    assert y.unique().tolist() == [
        torch.tensor(4096 * 127 * 127 * 2 / 255).to(torch.bfloat16).item()
    ]


@pytest.mark.parametrize(("rows", "columns"), [(3, 256), (300, 256), (7, 5), (40, 33)])
def test_a_row_that_onednns_fast_kernels_leave_out_comes_out_right(rows: int, columns: int) -> None:
    given = layer(rows, columns, executed.int8(symmetric=False))
    x = torch.randn(1, columns).to(torch.bfloat16)
    y = TorchInt8Dynamic().pack(given)(x).float()
    torch.testing.assert_close(y, given(x.float()), rtol=2**-8, atol=1e-4)


def test_a_weight_that_lies_transposed_is_laid_out_right() -> None:
    """GPT-2 keeps weights as ``(in, out)``: the codes of their transpose are not contiguous."""
    given = layer(48, 64, executed.int8(symmetric=True))
    codes = given.quant.codes.T.contiguous().T
    turned = QuantTensor(codes, given.quant.params, given.quant.spec)
    x = torch.randn(4, 64).to(torch.bfloat16)
    packed = Int8DynamicLinear(turned, None, Inputs(executed.int8(symmetric=True)))
    assert torch.equal(packed(x), TorchInt8Dynamic().pack(given)(x))


def test_a_token_that_is_not_finite_stays_so_and_leaves_others_alone() -> None:
    packed = TorchInt8Dynamic().pack(layer(40, 64, executed.int8(symmetric=False)))
    x = torch.randn(3, 64).to(torch.bfloat16)
    expected = packed(x)
    y = packed(torch.where(torch.arange(3).view(3, 1) == 1, torch.nan, x))
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


def test_layers_side_by_side_quantize_a_tensor_once_and_no_other_for_it() -> None:
    spec, other = executed.int8(symmetric=True), executed.int8(symmetric=False)
    kernel = TorchInt8Dynamic()
    parent = nn.ModuleList(
        [kernel.pack(layer(rows, 64, own)) for rows, own in ((40, spec), (48, spec), (56, other))]
    )
    alone = [each(torch.ones(2, 64, dtype=torch.bfloat16)) for each in parent]
    share_inputs(parent)
    assert parent[0].inputs is parent[1].inputs
    assert parent[2].inputs is not parent[0].inputs
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    first = parent[0].inputs.of(x)
    assert parent[1].inputs.of(x) is first
    assert all(torch.equal(each(x), y) for each, y in zip(parent, alone, strict=True))
    assert parent[1].inputs.of(x.clone()) is not first


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (InputSpec(QuantSpec(4, scale_dtype="float32")), "its inputs are a4, not dynamic 8-bit"),
        (InputSpec(QuantSpec(8)), "its inputs are a8-float16, not"),
        (executed.int8(True, group_size=32), "its inputs are a8g32-sym, not"),
        (InputSpec(executed.int8(False).quant, per="tensor", range="minmax"), "a8t-minmax, not"),
        (InputSpec(QuantSpec(8, format="narrow", scale_dtype="float32")), "narrow8"),
    ],
)
def test_other_inputs_are_refused_by_name(inputs: InputSpec, reason: str) -> None:
    assert reason in str(TorchInt8Dynamic().refuses(layer(16, 64, inputs)))


def test_floating_inputs_are_refused() -> None:
    given = layer(16, 64, executed.int8(symmetric=True))
    given.input_quantizer = None
    assert TorchInt8Dynamic().refuses(given) == (
        "its inputs float, and this kernel multiplies 8-bit integers"
    )


def test_a_processor_that_saturates_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of products cut to 16 bits, as without VNNI, are wrong on the matrix that is tried."""
    kernel = engines.kernels()["torch_int8_dynamic"]

    def saturating(layer: QuantLinear) -> nn.Module:
        packed = kernel.pack(layer)
        limit = 0.5 * float(packed(torch.full((1, 64), 4.0, dtype=torch.bfloat16)).max())
        return _Cut(packed, limit)

    broken = SimpleNamespace(
        name="broken", device="cpu", TOLERANCE=0.01, refuses=kernel.refuses, pack=saturating
    )
    assert str(registry._failure(broken)).startswith("wrong by")  # type: ignore[arg-type]


class _Cut(nn.Module):
    def __init__(self, packed: nn.Module, limit: float) -> None:
        super().__init__()
        self.packed, self.limit = packed, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.packed(x)
        return y.clamp(-self.limit, self.limit)
