"""Stop strings: whatever the pieces, the text up to the first match and never a part of one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from glm5.server.stops import StopText

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(st.lists(LETTERS, max_size=6), STOPS)
def test_every_way_of_cutting_the_text_gives_the_same(pieces, stops):
    text = "".join(pieces)
    watcher, shown = StopText(stops), ""
    for piece in pieces:
        shown += watcher.feed(piece)
        assert not any(stop in shown for stop in stops)
    shown += watcher.flush()
    if watcher.matched is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + watcher.matched)
        assert not any(stop in shown for stop in stops)


@settings(deadline=None)
@given(LETTERS, LETTERS, st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_is_found_at_its_first_place(start, end, stop):
    watcher = StopText([stop])
    shown = "".join(watcher.feed(letter) for letter in start + stop + end)
    assert watcher.matched == stop
    assert shown == (start + stop + end).split(stop)[0]
