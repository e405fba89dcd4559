"""A command killed at random moments, again and again, and then let end: `killed_commands.py KILLS WORDS...`.

One fork a round, from a process that has imported everything and started no thread: a start of Python with torch would
take seconds. WORDS name the output by {}: first `whole` is made without a stop, which takes some time, and once more,
which takes the time that it needs to see that nothing is left to do. `killed` is made by rounds that are killed at
moments that are uniform from 0 to so late that all of them together, each starting up anew, fall short of the whole.
Prints how many rounds were killed.
"""

import contextlib
import math
import os
import random
import signal
import sys
import time

from art_rs_plugin.cli import app
from art_rs_plugin.experiments import curve, logs, runs, training  # noqa: F401  # before the first fork


def start(words: list[str]) -> int:
    """Fork, and run the command there; its process id."""
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        app(words, standalone_mode=False)
        os._exit(0)
    os._exit(1)


def taken(words: list[str]) -> float:
    """Seconds that the command takes when nobody stops it."""
    begun = time.monotonic()
    assert os.waitpid(start(words), 0)[1] == 0
    return time.monotonic() - begun


if __name__ == "__main__":
    kills, whole, killed = (
        int(sys.argv[1]),
        *([word.format(name) for word in sys.argv[2:]] for name in ("whole", "killed")),
    )
    work, again = taken(whole), taken(whole)
    each = max(0.75 * (work - again) / kills, 0.001)  # what a round may get done
    latest = again + each + math.sqrt(each**2 + 2 * again * each)  # so that it does, on average
    chance, dead = random.Random(0), 0
    for _ in range(3 * kills):
        if dead == kills:
            break
        pid = start(killed)
        time.sleep(chance.uniform(0.0, latest))
        os.kill(pid, signal.SIGKILL)  # a process that nobody has waited for takes it, also where it has ended
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            dead += 1
        else:  # the machine has become faster: what is left is to be killed while it sees that all is done
            latest = min(latest, again / 2)
    taken(killed)
    print(dead)
