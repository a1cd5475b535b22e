import torch

from pixelhdm.models.conditioners.context import Context
from tests.stubs import context


def test_contexts_of_one_length_need_no_mask():
    a, b = context(2, 3), context(1, 3, seed=9)
    both = a.cat(b)
    assert both.mask is None
    assert torch.equal(both.tokens, torch.cat([a.tokens, b.tokens]))
    assert torch.equal(both.pooled, torch.cat([a.pooled, b.pooled]))
    assert both.num_valid.tolist() == [3, 3, 3]


def test_the_shorter_context_is_padded_and_masked():
    short, long = context(2, 1), context(1, 4)
    for both, lengths in ((short.cat(long), [1, 1, 4]), (long.cat(short), [4, 1, 1])):
        assert both.mask.tolist() == [[n < length for n in range(4)] for length in lengths]
        assert both.num_valid.tolist() == lengths
        assert (both.tokens[~both.mask] == 0).all()
    assert torch.equal(both.tokens[:1], long.tokens)
    assert torch.equal(both.tokens[1:, :1], short.tokens)


def test_padding_keeps_an_own_mask():
    mask = torch.tensor([[True, False, False]])
    own = context(1, 3)._replace(mask=mask)
    assert own.padded(5).mask.tolist() == [[True, False, False, False, False]]
    assert own.cat(context(1, 3)).mask.tolist() == [[True, False, False], [True, True, True]]
    assert own.num_valid.tolist() == [1]


def test_no_tokens_at_all():
    empty: Context = context(2, 0)
    assert empty.cat(empty).mask is None
    assert empty.num_valid.tolist() == [0, 0]
    assert empty.cat(context(2, 2)).num_valid.tolist() == [0, 0, 2, 2]
