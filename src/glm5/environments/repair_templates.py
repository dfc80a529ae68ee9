"""The functions that get broken: short, ordinary, each with one line that says what it is meant to do.

`$name` is a name or a constant, drawn anew each time. `@kind(right|wrong|wrong)` is a slot: the function is correct
with the first text in every slot. Kinds: `o` operator, `c` comparison, `k` constant, `v` variable. Loops run over
something finite only, so that no mutation can make one endless.
"""

from dataclasses import dataclass
from typing import Literal

Argument = Literal["list", "number", "small", "word"]
KINDS = {"o": "operator", "c": "comparison", "k": "constant", "v": "variable"}


@dataclass(frozen=True, slots=True)
class Template:
    """A function with slots, and what it takes."""

    takes: tuple[Argument, ...]
    text: str


TEMPLATES = (
    Template(
        ("list",),
        """\
# sum of $xs above $a
def $f($xs):
    $t = 0
    for $x in $xs:
        if $x @c(>|<|<=) $a:
            $t @o(+=|-=|=) @v($x|$a|$t)
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# how many of $xs divide by $b
def $f($xs):
    $t = 0
    for $x in $xs:
        if $x @o(%|//|-) $b @c(==|!=|>) 0:
            $t += @k(1|2|0)
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# largest of $xs, $a if none
def $f($xs):
    $t = $a
    for $i, $x in enumerate($xs):
        if $i == @k(0|1|2) or $x @c(>|<|==) $t:
            $t = @v($x|$i|$a)
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# smallest of $xs, $a if none
def $f($xs):
    $t = $a
    for $i, $x in enumerate($xs):
        if $i == @k(0|1|2) or $x @c(<|>|==) $t:
            $t = @v($x|$i|$a)
    return $t
""",
    ),
    Template(
        ("number",),
        """\
# limit $x to -$a .. $a
def $f($x):
    if $x @c(>|<|==) $a:
        return @v($a|$x|-$a)
    if $x @c(<|>|==) -$a:
        return @v(-$a|$x|$a)
    return $x
""",
    ),
    Template(
        ("list",),
        """\
# those of $xs below $a
def $f($xs):
    $t = []
    for $x in $xs:
        if $x @c(<|>|>=) $a:
            $t.append(@v($x|$a|0))
    return $t
""",
    ),
    Template(
        ("number", "number"),
        """\
# distance of $x and $y
def $f($x, $y):
    if $x @c(>|<|==) $y:
        return $x @o(-|+|*) $y
    return @v($y|$x|0) - @v($x|$y|1)
""",
    ),
    Template(
        ("list",),
        """\
# each of $xs times $b plus $a
def $f($xs):
    $t = []
    for $x in $xs:
        $t.append($x @o(*|+|-) @v($b|$x|$a) @o(+|-|*) $a)
    return $t
""",
    ),
    Template(
        ("number", "number"),
        """\
# the larger of $x and $y
def $f($x, $y):
    if $x @c(>|<|==) $y:
        return @v($x|$y|0)
    return @v($y|$x|0)
""",
    ),
    Template(
        ("word",),
        """\
# $x backwards
def $f($x):
    $t = ""
    for $y in $x:
        $t = @v($y|$x|$t) + $t
    return $t
""",
    ),
    Template(
        ("small",),
        """\
# product of 1 .. $x
def $f($x):
    $t = @k(1|0|2)
    for $i in range(@k(1|0|2), $x @o(+|-|*) 1):
        $t @o(*=|+=|=) @v($i|$x|$t)
    return $t
""",
    ),
    Template(
        ("small",),
        """\
# sum of squares of 1 .. $x
def $f($x):
    $t = @k(0|1|2)
    for $i in range(1, $x @o(+|-|*) 1):
        $t += $i @o(*|+|-) @v($i|$x|$t)
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# mean of $xs rounded down, $a if none
def $f($xs):
    $t = len($xs)
    if $t @c(==|!=|>) 0:
        return @v($a|$t|0)
    return sum($xs) @o(//|*|%) @v($t|$a|2)
""",
    ),
    Template(
        ("list", "number"),
        """\
# first place of $y in $xs, else -1
def $f($xs, $y):
    for $i, $x in enumerate($xs):
        if $x @c(==|!=|<) @v($y|$i|0):
            return @v($i|$x|$y)
    return @k(-1|0|1)
""",
    ),
    Template(
        ("list",),
        """\
# running sums of $xs
def $f($xs):
    $t, $y = [], 0
    for $x in $xs:
        $y @o(+=|-=|=) @v($x|$y|1)
        $t.append(@v($y|$x|0))
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# differences of neighbours in $xs
def $f($xs):
    $t = []
    for $i in range(@k(1|0|2), len($xs)):
        $t.append($xs[$i] @o(-|+|*) $xs[$i - @k(1|0|2)])
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# every second of $xs from place $c
def $f($xs):
    $t = []
    for $i in range(@k($c|0|3), len($xs), @k(2|1|3)):
        $t.append($xs[@v($i|0|-1)])
    return $t
""",
    ),
    Template(
        ("list",),
        """\
# are $xs in ascending order
def $f($xs):
    for $i in range(@k(1|0|2), len($xs)):
        if $xs[$i] @c(<|>|==) $xs[$i - 1]:
            return @k(False|True|0)
    return @k(True|False|1)
""",
    ),
    Template(
        ("number",),
        """\
# the sign of $x: -1, 0 or 1
def $f($x):
    if $x @c(>|<|>=) 0:
        return @k(1|-1|0)
    if $x @c(<|>|<=) 0:
        return @k(-1|1|0)
    return 0
""",
    ),
    Template(
        ("number",),
        """\
# price $x, $b off from $a on
def $f($x):
    if $x @c(>=|<|==) $a:
        return $x @o(-|+|*) @v($b|$a|$x)
    return @v($x|$a|$b)
""",
    ),
    Template(
        ("list",),
        """\
# $xs without repeats, in order
def $f($xs):
    $t = []
    for $x in $xs:
        if $x @c(not in|in|==) $t:
            $t.append($x)
    return $t
""",
    ),
    Template(
        ("list", "list"),
        """\
# those of $xs that are in $ys
def $f($xs, $ys):
    $t = []
    for $x in @v($xs|$ys|$t):
        if $x @c(in|not in|==) @v($ys|$xs|$t):
            $t.append($x)
    return $t
""",
    ),
    Template(
        ("list", "list"),
        """\
# sum of products of $xs and $ys
def $f($xs, $ys):
    $t = @k(0|1|2)
    for $x, $y in zip($xs, $ys):
        $t @o(+=|-=|=) $x @o(*|+|-) @v($y|$x|$t)
    return $t
""",
    ),
    Template(
        ("word",),
        """\
# how many vowels are in $x
def $f($x):
    $t = @k(0|1|2)
    for $y in $x:
        if $y @c(in|not in|==) "aeiou":
            $t @o(+=|-=|=) 1
    return $t
""",
    ),
    Template(
        ("small",),
        """\
# number $x of 0, 1, 1, 2, 3, 5 ...
def $f($x):
    $y, $t = @k(0|1|2), @k(1|0|2)
    for $i in range($x):
        $y, $t = @v($t|$y|$i), $y @o(+|-|*) $t
    return $y
""",
    ),
    Template(
        ("number", "number"),
        """\
# do $x and $y differ by $a or less
def $f($x, $y):
    $t = $x @o(-|+|*) $y
    if $t @c(<|>|==) 0:
        $t = -$t
    return $t @c(<=|>|==) @v($a|$x|$y)
""",
    ),
    Template(
        ("list",),
        """\
# split $xs into below $a and the rest
def $f($xs):
    $t, $y = [], []
    for $x in $xs:
        if $x @c(<|>|==) $a:
            @v($t|$y|[]).append($x)
        else:
            @v($y|$t|[]).append($x)
    return [$t, $y]
""",
    ),
    Template(
        ("list",),
        """\
# length of the longest run over $a in $xs
def $f($xs):
    $t, $y = 0, 0
    for $x in $xs:
        $y = $y @o(+|-|*) 1 if $x @c(>|<|==) $a else @k(0|1|2)
        $t = max($t, $y)
    return $t
""",
    ),
)
