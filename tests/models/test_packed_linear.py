"""Linear layers whose weights are laid out once give what torch's give, and follow every change of them."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from keywise.models.packed_linear import pack  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="torch has no oneDNN here, or the CPU does not multiply bfloat16",
)


def pair(*, inputs: int = 96, outputs: int = 80, bias: bool = True) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Give a layer inside a model, and the same packed."""
    plain = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16))
    packed = copy.deepcopy(plain)
    pack(packed)
    assert type(packed[0]) is not torch.nn.Linear
    return plain, packed


def agree(plain: torch.nn.Module, packed: torch.nn.Module, rows: torch.Tensor) -> bool:
    """Compare with the float32 product: both may round it once."""
    with torch.no_grad():
        exact = rows.float() @ plain[0].weight.float().T
        exact += 0.0 if plain[0].bias is None else plain[0].bias.float()
        return torch.allclose(packed(rows).float(), exact, rtol=2**-8, atol=2**-8)


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 67), (2, 0), (130,), ()])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 80), (33, 7), (1, 1)])
def test_packed_layers_give_the_product(shape: tuple[int, ...], inputs: int, outputs: int, *, bias: bool) -> None:
    plain, packed = pair(inputs=inputs, outputs=outputs, bias=bias)
    rows = numbers(*shape, inputs)
    with torch.no_grad():
        assert packed(rows).shape == plain(rows).shape
    assert agree(plain, packed, rows)


def test_rows_may_lie_apart() -> None:
    plain, packed = pair()
    for rows in (numbers(2, 9, 96)[:, -1:, :], numbers(96, 7).T, numbers(5, 192)[:, ::2], numbers(1, 96).expand(4, 96)):
        assert agree(plain, packed, rows)


def test_the_layout_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = pair()
    rows = numbers(4, 96)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Linear, "forward", lambda *_: pytest.fail("torch laid the weights out again"))
        with torch.no_grad():
            found = packed(rows)
    with torch.no_grad():
        torch.testing.assert_close(found, plain(rows), rtol=2**-7, atol=2**-7)


def test_a_weight_in_the_place_of_a_freed_one_is_used() -> None:
    plain, packed = pair(inputs=512, outputs=512)
    rows = numbers(4, 512)
    for _ in range(3):
        replacement = plain[0].weight.detach() * 2
        for model in (plain, packed):
            del model[0].weight
        for model in (plain, packed):
            model[0].weight = torch.nn.Parameter(replacement.clone())
        assert agree(plain, packed, rows)


def test_changed_weights_are_used() -> None:
    plain, packed = pair()
    rows = numbers(4, 96)
    with torch.no_grad():
        for model in (plain, packed):
            model[0].weight.mul_(3)
    assert agree(plain, packed, rows)
    state = {name: value * 0.5 for name, value in plain.state_dict().items()}
    for model in (plain, packed):
        model.load_state_dict(state)
    assert agree(plain, packed, rows)
    for model in (plain, packed):
        model[0].weight = torch.nn.Parameter(numbers(80, 96))
    assert agree(plain, packed, rows)


def test_another_dtype_and_other_rows_are_computed_or_refused_as_by_torch() -> None:
    plain, packed = pair()
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        packed(numbers(4, 96, dtype=torch.float32))
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
        packed(numbers(4, 95))
    rows = numbers(4, 96, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(packed.float()(rows), plain.float()(rows))


def test_gradients_flow() -> None:
    plain, packed = pair()
    rows = numbers(4, 96).requires_grad_()
    gradients = [torch.autograd.grad(model(rows).sum(), [rows, model[0].weight]) for model in (plain, packed)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_copies_are_ordinary_layers_with_weights_of_their_own() -> None:
    plain, packed = pair()
    stored = io.BytesIO()
    torch.save(packed, stored)
    stored.seek(0)
    for copied in (
        copy.deepcopy(packed),
        torch.load(stored, weights_only=False),
    ):
        assert type(copied[0]) is torch.nn.Linear
        assert copied[0].weight.data_ptr() != packed[0].weight.data_ptr()
        assert agree(plain, copied, numbers(4, 96))


def test_names_and_ties_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(50, 96, dtype=torch.bfloat16), torch.nn.Linear(96, 50, bias=False))
    model[1].weight = model[0].weight
    names = list(model.state_dict())
    pack(model)
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
    pack(model)
    assert list(model) == before
