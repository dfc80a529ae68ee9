"""Stop strings: whatever the pieces, the text up to the first match and never a part of one."""

from hypothesis import given
from hypothesis import strategies as st

from glm5.server.stops import StopText

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_every_way_of_cutting_the_text_gives_the_same(pieces, stops):
    text = "".join(pieces)
    watcher, shown = StopText(stops), ""
    for piece in pieces:
        shown += watcher.feed(piece)
        # What has been shown is certain: no continuation could have hidden it.
        assert all(not shown.endswith(stop[:1]) or stop not in shown for stop in stops)
    shown += watcher.flush()
    first = min((text.index(stop) for stop in stops if stop in text), default=None)
    if watcher.matched is None:
        assert shown == text
        assert first is None
    else:
        assert text.startswith(shown + watcher.matched)
        assert not any(stop in shown for stop in stops)


@given(LETTERS, LETTERS, st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_is_found_at_its_first_place(start, end, stop):
    watcher = StopText([stop])
    shown = "".join(watcher.feed(letter) for letter in start + stop + end)
    assert watcher.matched == stop
    assert shown == (start + stop + end).split(stop)[0]
