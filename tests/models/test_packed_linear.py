"""Packed linear layers: the products of torch's layers, before and after changes of the weights."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from keywise.models.packed_linear import pack_linear_layers  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="torch has no oneDNN here, or the CPU does not multiply bfloat16",
)


def make_pair(*, inputs: int = 96, outputs: int = 80, bias: bool = True) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a layer inside a model, and the same packed."""
    plain = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack_linear_layers(packed)
    assert type(packed[0]) is not torch.nn.Linear
    return plain, packed


def are_close(plain: torch.nn.Module, packed: torch.nn.Module, rows: torch.Tensor) -> bool:
    """Return whether a product equals that in float32 up to one rounding."""
    with torch.no_grad():
        exact = rows.float() @ plain[0].weight.float().T
        exact += 0.0 if plain[0].bias is None else plain[0].bias.float()
        return torch.allclose(packed(rows).float(), exact, rtol=2**-8, atol=2**-8)


def draw_numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 67), (2, 0), (130,), ()])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 80), (33, 7), (1, 1)])
def test_packed_layers_equal_the_product(shape: tuple[int, ...], inputs: int, outputs: int, *, bias: bool) -> None:
    plain, packed = make_pair(inputs=inputs, outputs=outputs, bias=bias)
    rows = draw_numbers(*shape, inputs)
    with torch.no_grad():
        assert packed(rows).shape == plain(rows).shape
    assert are_close(plain, packed, rows)


def test_rows_need_not_be_contiguous() -> None:
    plain, packed = make_pair()
    for rows in (
        draw_numbers(2, 9, 96)[:, -1:, :],
        draw_numbers(96, 7).T,
        draw_numbers(5, 192)[:, ::2],
        draw_numbers(1, 96).expand(4, 96),
    ):
        assert are_close(plain, packed, rows)


def test_the_packed_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = make_pair()
    rows = draw_numbers(4, 96)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Linear, "forward", lambda *_: pytest.fail("torch reordered the weights again"))
        with torch.no_grad():
            actual = packed(rows)
    with torch.no_grad():
        torch.testing.assert_close(actual, plain(rows), rtol=2**-7, atol=2**-7)


def test_a_weight_at_the_address_of_a_freed_one_is_used() -> None:
    plain, packed = make_pair(inputs=512, outputs=512)
    rows = draw_numbers(4, 512)
    for _ in range(3):
        replacement = plain[0].weight.detach() * 2
        for model in (plain, packed):
            del model[0].weight
        for model in (plain, packed):
            model[0].weight = torch.nn.Parameter(replacement.clone())
        assert are_close(plain, packed, rows)


def test_changed_weights_are_used() -> None:
    plain, packed = make_pair()
    rows = draw_numbers(4, 96)
    with torch.no_grad():
        for model in (plain, packed):
            model[0].weight.mul_(3)
    assert are_close(plain, packed, rows)
    state = {name: value * 0.5 for name, value in plain.state_dict().items()}
    for model in (plain, packed):
        model.load_state_dict(state)
    assert are_close(plain, packed, rows)
    for model in (plain, packed):
        model[0].weight = torch.nn.Parameter(draw_numbers(80, 96))
    assert are_close(plain, packed, rows)


def test_inputs_of_another_dtype_or_width_behave_as_in_torch() -> None:
    plain, packed = make_pair()
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        packed(draw_numbers(4, 96, dtype=torch.float32))
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
        packed(draw_numbers(4, 95))
    rows = draw_numbers(4, 96, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(packed.float()(rows), plain.float()(rows))


def test_gradients_equal_those_of_plain_layers() -> None:
    plain, packed = make_pair()
    rows = draw_numbers(4, 96).requires_grad_()
    gradients = [torch.autograd.grad(model(rows).sum(), [rows, model[0].weight]) for model in (plain, packed)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_copies_are_plain_layers_with_their_own_weights() -> None:
    plain, packed = make_pair()
    stored = io.BytesIO()
    torch.save(packed, stored)
    stored.seek(0)
    for copied in (
        copy.deepcopy(packed),
        torch.load(stored, weights_only=False),
    ):
        assert type(copied[0]) is torch.nn.Linear
        assert copied[0].weight.data_ptr() != packed[0].weight.data_ptr()
        assert are_close(plain, copied, draw_numbers(4, 96))


def test_parameter_names_and_tied_weights_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(50, 96, dtype=torch.bfloat16), torch.nn.Linear(96, 50, bias=False))
    model[1].weight = model[0].weight
    names = list(model.state_dict())
    pack_linear_layers(model)
    assert list(model.state_dict()) == names
    assert model[1].weight is model[0].weight


def test_only_plain_bfloat16_layers_are_packed() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows) * 2

    with torch.inference_mode():
        untracked = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    model = torch.nn.Sequential(Doubled(8, 8, dtype=torch.bfloat16), torch.nn.Linear(8, 8), untracked)
    before = list(model)
    pack_linear_layers(model)
    assert list(model) == before
