"""Sampling: greedy, seeded, and true to the distribution."""

import pytest
import torch

from homing.workers.model.sampling import Sampling, sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def shares(sampling, draws=4000):
    counts = torch.zeros(len(LOGITS))
    for position in range(draws):
        counts[sample(LOGITS, sampling, position)] += 1
    return counts / draws


def test_temperature_zero_takes_the_likeliest_whatever_the_seed():
    assert {sample(LOGITS, Sampling(seed=seed), 3) for seed in range(20)} == {1}


def test_the_same_seed_and_position_give_the_same_token():
    settings = Sampling(temperature=1.0, seed=11)
    once = [sample(LOGITS, settings, position) for position in range(200)]
    again = [sample(LOGITS, settings, position) for position in reversed(range(200))]
    assert once == again[::-1]
    assert len(set(once)) > 1


def test_seed_and_position_both_matter():
    draws = {
        (seed, position): sample(torch.zeros(1000), Sampling(temperature=1.0, seed=seed), position)
        for seed in range(10)
        for position in range(10)
    }
    assert len(set(draws.values())) > 80  # a thousand equal choices: a hundred draws hardly meet


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample(LOGITS, Sampling(temperature=1.0, seed=1), 1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert sample(LOGITS, Sampling(temperature=1.0, seed=1), 1) == first


def test_draws_follow_the_softmax_of_the_temperature():
    wanted = (LOGITS / 0.7).softmax(-1)
    # Four standard deviations of a share over 4000 draws are at most 0.032.
    assert (shares(Sampling(temperature=0.7)) - wanted).abs().max() < 0.032


def test_top_k_draws_among_the_likeliest_only():
    kept = shares(Sampling(temperature=1.0, top_k=2))
    assert kept.nonzero().flatten().tolist() == [1, 4]


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    # Shares in order: 0.44 (token 1), 0.27 (4), 0.16 (2), 0.06 (0), ..: 0.5 is crossed by the second.
    assert shares(Sampling(temperature=1.0, top_p=0.5)).nonzero().flatten().tolist() == [1, 4]
    assert shares(Sampling(temperature=1.0, top_p=0.01)).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}],
)
def test_settings_out_of_range_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
