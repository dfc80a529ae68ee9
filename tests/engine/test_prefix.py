"""What an agent's next request finds in the cache, with the real engine, template and parser."""

from itertools import pairwise

from benchmarks.prefix import PAGE, SPEAKS_AGAIN, byte_tokenizer, conversation, small_core

TOKENIZER = byte_tokenizer()


def test_preserved_thinking_computes_only_what_is_new() -> None:
    rounds = conversation(small_core(TOKENIZER), TOKENIZER, clear_thinking=False)
    assert rounds[0].cached == 0
    for before, now in pairwise(rounds):
        assert now.share >= 0.95
        # Whole pages of everything that was there, but the last token made, which nothing has been computed from.
        assert now.cached == (before.prompt + before.made - 1) // PAGE * PAGE


def test_cleared_thoughts_cost_a_recomputation_when_the_user_speaks() -> None:
    rounds = conversation(small_core(TOKENIZER), TOKENIZER, clear_thinking=True)
    for number, (before, now) in enumerate(pairwise(rounds), start=1):
        if number == SPEAKS_AGAIN:
            # The first thought begins where the first prompt ends.
            assert 0 <= rounds[0].prompt - now.cached < PAGE
        else:
            assert now.cached == (before.prompt + before.made - 1) // PAGE * PAGE
