"""Program, Target -> nothing, or UnsoundPlan. Proves before it runs that a plan cannot race, hang or leave its memory.

Nothing but the encoded words is believed, and of those only what a section's tasks are *for* (`Meaning`): which boxes
of which tensors they touch. Order comes from what the device does with the words, and from nothing else.
"""

from mkc.ir.conflicts import check_conflicts
from mkc.ir.contents import check_contents
from mkc.ir.order import orders_of
from mkc.ir.patterns import Patterns
from mkc.ir.program import Program
from mkc.ir.published import polls_of
from mkc.ir.streams import check_streams
from mkc.ir.target import Target
from mkc.ir.words import check_words


def check(program: Program, target: Target) -> None:
    """Raises UnsoundPlan, which shows the tasks at fault and their words."""
    check_words(program, target)
    check_streams(program, target)
    patterns = Patterns(program)
    for section in range(len(program.sections)):
        check_contents(program, section, patterns)
        polls = polls_of(program, section, patterns)
        check_conflicts(program, section, orders_of(program, section, polls), patterns)
